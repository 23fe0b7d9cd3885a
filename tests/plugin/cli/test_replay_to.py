"""Records are replayed only to an exporter that is configured: their own, or one that the command names."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from statsig_otel.exporters.exporter import Delivered
from statsig_otel.plugin.cli import dead_letters
from tests.plugin.cli.served_queue import (
    Served,
    add_dead_letter,
    as_json,
    change,
    config_file,
    letter_of_item,
    letter_of_record,
    maybe_served,
    ok,
    run,
    waiting,
)


def test_without_a_service_and_a_configuration_nobody_knows_what_is_configured(tmp_path: Path) -> None:
    add_dead_letter(tmp_path, letter_of_record("x"))
    refused = run(tmp_path, "dead-letters", "replay", "1")
    assert refused.exit_code == 1
    assert "unknown whether bad is still configured: give --config FILE, or confirm with --to bad" in refused.output
    assert waiting(tmp_path)["bad"] == 0
    ok(tmp_path, "dead-letters", "replay", "1", "--to", "bad")
    assert waiting(tmp_path)["bad"] == 1


def test_nothing_is_replayed_to_an_exporter_that_left_the_configuration(tmp_path: Path) -> None:
    directory = tmp_path / "queue"
    directory.mkdir()
    add_dead_letter(directory, letter_of_record("x"), letter_of_record("y", owner="debug/good"))
    config = config_file(tmp_path, directory)

    def replay(*words: str) -> str:
        return CliRunner().invoke(dead_letters.command, ["--config", str(config), "replay", *words]).output

    stays = (
        "1 stays: the exporter bad is not in the configuration; `statsig-otel dead-letters replay --to NAME` replays"
    )
    assert stays in replay("1")
    assert "2 stays: the queue knows no exporter debug/good: a service with it has to run first" in replay("2")
    assert set(waiting(directory).values()) == {0}


@pytest.mark.parametrize("how", ["running", "stopped"])
def test_a_record_is_replayed_to_an_exporter_with_another_name(tmp_path: Path, how: str) -> None:
    add_dead_letter(tmp_path, letter_of_record("x", owner="renamed"), letter_of_item("y"))
    with maybe_served(tmp_path, how) as served:
        stays = run(tmp_path, "dead-letters", "replay", "1").output
        assert "1 stays: " in stays
        if served:
            assert (
                "the exporter renamed is not in the running configuration; `statsig-otel dead-letters replay --to NAME`"
                in stays
            )
        nowhere = run(tmp_path, "dead-letters", "replay", "1", "--to", "nope").output
        assert "1 stays: the exporter nope is not in the running" in nowhere or "knows no exporter nope" in nowhere
        item = run(tmp_path, "dead-letters", "replay", "2", "--to", "good").output
        assert "2 stays: it goes to all exporters of its receiver" in item
        (done,) = as_json(tmp_path, "dead-letters", "replay", "1", "--to", "good")
        assert (done["outcome"], done["exporters"]) == ("replayed", ["good"])
        if served is None:
            assert waiting(tmp_path) == {"good": 1, "bad": 0}
            return
        served.good.wait(lambda: served.good.received == ["x"])
        served.bad.outcome = Delivered()
        served.accept("z")
        served.bad.wait(lambda: served.bad.received == ["z"])


def test_a_record_keeps_its_uid_under_another_name(tmp_path: Path) -> None:
    add_dead_letter(tmp_path, letter_of_record("x", owner="renamed"))
    ok(tmp_path, "dead-letters", "replay", "1", "--to", "good")
    with Served(tmp_path) as served:
        served.good.wait(lambda: served.good.received == ["x"])
    add_dead_letter(tmp_path, letter_of_record("x", owner="renamed"))
    assert as_json(tmp_path, "dead-letters", "list")[0]["uid"] == change("x").uid
