"""How many records and bytes a sender puts into one batch."""

from pathlib import Path

from tests.exporters.delivery.helpers import (
    Backend,
    named,
    rig,
    settings,
)


def test_a_batch_over_the_backend_s_limit_is_halved_until_it_passes(tmp_path: Path, backend: Backend) -> None:
    """200 KiB in whole; one record is larger by itself."""
    sizes = {**dict.fromkeys(named(16), 20 << 10), "giant": 220 << 10, **dict.fromkeys(named(4, "s"), 1000)}
    backend.rule = lambda sent: "too large" if sum(sizes[name] for name in sent) > 200 << 10 else "delivered"
    with rig(tmp_path, backend.exporter(), settings(max_bytes=800 << 10)) as made:
        for name, size in sizes.items():
            made.put(name, size=size)
        made.start()
        made.drained()
        assert backend.taken == [name for name in sizes if name != "giant"]
        assert made.dead_letter_names() == ["giant"]


def test_two_records_larger_than_any_batch_are_dead_letters_and_the_rest_goes_on(tmp_path: Path, http: Backend) -> None:
    http.rule = lambda sent: "too large" if sent[0].startswith("giant") else "delivered"
    with rig(tmp_path, http.exporter(), settings(max_bytes=10_000)) as made:
        made.put("giant1", "giant2", size=11_000)
        made.put("a", "b")
        made.start()
        made.drained()
        assert made.dead_letter_names() == ["giant1", "giant2"]
        assert sorted(http.taken) == ["a", "b"]


def test_a_batch_keeps_to_its_limits_and_a_larger_record_goes_alone(tmp_path: Path, http: Backend) -> None:
    with rig(tmp_path, http.exporter(), settings(max_bytes=10_000, max_records=7)) as made:
        made.put(*named(10))
        made.put(*named(10, "s"), size=3000)
        made.put("giant", size=20_000)
        made.put(*named(3, "t"))
        made.start()
        made.drained()
        batches = [names for names, _ in http.calls]
        assert [name for names in batches for name in names] == [*named(10), *named(10, "s"), "giant", *named(3, "t")]
        assert ["giant"] in batches
        assert all(len(names) <= 7 for names in batches)
        assert all(len(request.payload) <= 10_000 for request in http.sink.requests if len(request.records) > 1)
        assert all(len(names) >= 3 for names in batches[:-3]), "and is as large as it can be"
