"""What is said of each entry of a period, at its edges and of each kind."""

from collections.abc import Sequence

from statsig_otel.exporters.arrival import Arrival
from statsig_otel.plugin.audit_log.entries import AuditEntry, Page
from statsig_otel.plugin.audit_log.report import Period, Report, report

BEGIN, END = 1000, 2000


def entry(second: int, action_type: str = "gate_update", name: str = "gate") -> AuditEntry:
    return AuditEntry(f"{action_type} {second}", second, name, action_type, "", None, None, None)


def arrival(second: int, name: str = "gate") -> Arrival:
    return Arrival("0" * 32, second, name)


def made(
    entries: Sequence[AuditEntry], arrivals: Sequence[Arrival], *, remembered: int = 0, ignore: Sequence[str] = ()
) -> Report:
    period = Period(BEGIN, END, remembered)
    return report(Page(tuple(entries), ("broken",)), arrivals, period, tolerance=2.0, ignore=ignore)


def verdicts(found: Report) -> dict[int, str]:
    return {line.entry.second: line.verdict for line in found.lines}


def test_entries_at_the_edges_take_part_and_only_those_of_the_period_are_told() -> None:
    """The webhook of one just before the period is not that of one at its beginning."""
    entries = [entry(2001), entry(2000), entry(1000), entry(999), entry(500)]
    found = made(entries, [arrival(999), arrival(1000), arrival(2001)])
    assert verdicts(found) == {1000: "received", 2000: "ambiguous"}
    assert found.missed == 0, (
        "the change that came may be that of 2001, and then 2000 is missed, or the other way round"
    )
    assert made(entries, [arrival(999)]).missed == 1


def test_each_kind_of_entry_has_its_verdict() -> None:
    kinds = ["gate_update", "thing_of_tomorrow", "config_add_tag", "user_login", "integration_set_enabled"]
    entries = [entry(1100 + 10 * number, kind) for number, kind in enumerate(kinds)]
    found = made(entries, [], ignore=["config_add_tag"])
    expected = ["missed", "unknown_type", "ignored_type", "not_a_change", "not_a_change"]
    assert [*verdicts(found).values()] == expected
    assert [one.action_type for one in found.about_webhooks] == ["integration_set_enabled"]
    came = made(entries, [arrival(one.second) for one in entries], ignore=["config_add_tag"])
    assert [*verdicts(came).values()] == ["received"] * 3 + ["not_a_change"] * 2


def test_what_is_from_before_it_was_remembered_is_not_missed() -> None:
    """Nor is what is so close to that moment that the clocks decide."""
    entries = [entry(second) for second in (1100, 1201, 1203)]
    found = made(entries, [], remembered=1200)
    assert verdicts(found) == {1100: "not_remembered", 1201: "not_remembered", 1203: "missed"}
    assert found.missed == 1
    came = made(entries, [arrival(1202)], remembered=1200)
    assert verdicts(came) == {1100: "not_remembered", 1201: "not_remembered", 1203: "ambiguous"}


def test_it_is_json() -> None:
    found = made([entry(1100), entry(1102)], [arrival(1101)]).to_json()
    assert (found["missed"], found["counts"], found["unreadable"]) == (1, {"ambiguous": 2}, ["broken"])
    assert found["since"] == "1970-01-01T00:16:40Z"
    assert isinstance(found["entries"], list)
    assert found["entries"][0] == {
        "id": "gate_update 1100",
        "at": "1970-01-01T00:18:20Z",
        "verdict": "ambiguous",
        "may_be": ["missed", "received"],
        "uid": None,
        "name": "gate",
        "type": "gate_update",
        "text": "",
        "by": {"id": None, "name": None, "email": None},
    }


def test_what_was_filled_in_is_not_missed() -> None:
    """Unless a webhook came after all; and what the filter drops then is called that."""

    def own(one: AuditEntry, *, filtered: bool = False) -> Arrival:
        return Arrival(one.uid, one.second, one.name, filtered=filtered, from_log=True)

    lost, dropped, late, twin = entry(1100), entry(1200), entry(1300), entry(1301)
    found = made(
        [lost, dropped, late, twin], [own(lost), own(dropped, filtered=True), own(late), own(twin), arrival(1300)]
    )
    assert verdicts(found) == {1100: "filled_in", 1200: "filtered", 1300: "filled_in", 1301: "filled_in"}
    assert found.missed == 0, "one of the two that are too much alike came, and a record of each was made"
    assert [line.uid for line in found.lines] == [lost.uid, None, late.uid, twin.uid]
    found = made([lost], [own(lost), arrival(1100)])
    assert (verdicts(found), found.lines[0].uid) == ({1100: "received"}, "0" * 32)
    details = Arrival(lost.details_uid, lost.second, lost.name, from_log=True)
    assert verdicts(made([lost], [details])) == {1100: "missed"}, "values of a change are not the change"
