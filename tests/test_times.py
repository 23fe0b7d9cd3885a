"""The times that depend on each other: the table of a shutdown's budget shows those of the code, and they fit."""

from pathlib import Path

from statsig_otel import _times

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "architecture.md"

WORDS = {1 / 2: "a half", 1 / 4: "a quarter"}
REST = "the time that is left"


def test_the_page_shows_the_budget_of_a_shutdown() -> None:
    text = PAGE.read_text().partition("## A shutdown's budget")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[2:4]] for line in text.splitlines() if line.startswith("| ")]
    bodies, sends, requests = (
        [f"{one.longest:g} s", WORDS[one.share]]
        for one in (_times.BODY_GRACE, _times.SYNCHRONOUS_GRACE, _times.REQUEST_DRAIN)
    )
    margin = f"{_times.SHUTDOWN_MARGIN:g} s"
    command = WORDS[_times.COMMAND_SHARE].removeprefix("a ")
    assert rows == [
        ["at most", "share"],
        [f"{_times.LAST_HEADS.longest:g} s", WORDS[_times.LAST_HEADS.share * _times.REQUEST_DRAIN.share]],
        bodies,
        sends,
        requests,
        [f"{_times.SERVER_CLOSING:g} s", "-"],
        [f"{command} of {REST}, and {margin}", "-"],
        [f"{REST}, and {margin}", "-"],
        [f"{_times.QUEUE_DRAIN:g} s", REST],
        [f"{_times.HANGING_SEND:g} s", "-"],
        [f"{_times.AUDIT_LOG_CLOSING:g} s", "-"],
        [f"{_times.SERVER_CLOSING:g} s", "-"],
        [f"{_times.READERS_CLOSING:g} s", "-"],
    ]
    assert f"`Service.shutdown` has {_times.SHUTDOWN_TIMEOUT:g} s by default" in text
    assert f"The caller waits for {margin} more than the timeout" in text


def test_embedders_read_the_same_times() -> None:
    bodies, requests = _times.BODY_GRACE, _times.REQUEST_DRAIN
    text = " ".join((DOCS / "embedding.md").read_text().split())
    said = f"bodies that are still being read get {WORDS[bodies.share]} of the timeout, at most {bodies.longest:g} s"
    assert said in text
    assert f"All requests in flight together get {WORDS[requests.share]}, at most {requests.longest:g} s" in text


def test_a_supervisor_is_told_how_long_a_stop_takes() -> None:
    longest = _times.SHUTDOWN_TIMEOUT + _times.SHUTDOWN_MARGIN
    text = " ".join((DOCS / "supervisors.md").read_text().split())
    assert (
        f"ends within {longest:g} s ({longest + _times.READERS_CLOSING:g} s if it sends its metrics or spans)" in text
    )


def test_the_steps_of_a_shutdown_fit_into_its_timeout() -> None:
    for timeout in (0.0, 0.1, 1.0, _times.SHUTDOWN_TIMEOUT, 3600.0):
        requests = _times.REQUEST_DRAIN.of(timeout)
        assert requests <= timeout / 2
        for cut_short in (
            _times.LAST_HEADS.of(requests),
            _times.BODY_GRACE.of(timeout),
            _times.SYNCHRONOUS_GRACE.of(timeout),
        ):
            assert cut_short <= requests / 2  # so that as much time is left for the answers
    assert _times.REQUEST_DRAIN.longest + _times.QUEUE_DRAIN <= _times.SHUTDOWN_TIMEOUT * 3 / 4
    assert _times.PAGE_DRAIN < _times.SERVER_CLOSING
    assert max(_times.BATCH_FINISH, _times.REPLAY_TIMEOUT) < _times.COMMAND_TIMEOUT
