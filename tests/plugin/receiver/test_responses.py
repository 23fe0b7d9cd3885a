"""What is logged of a path that leads to no receiver: anybody on the internet chooses it."""

from __future__ import annotations

import pytest

from statsig_otel.plugin.receiver.responses import Paths


@pytest.mark.parametrize("is_told", [True, False])
@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/x\nWARNING a line of their own\r\n", "/x\\nWARNING a line of their own\\r\\n"),
        ("/\x1b[2J\x9b31m\x7f", "/\\x1b[2J\\x9b31m\\x7f"),
        ("/\u202egnp.exe\u200b", "/\\u202egnp.exe\\u200b"),
        ("/" + "a" * 500, "/" + "a" * 99),
        ("/" + "\0" * 500, "/" + "\\x00" * 99),
    ],
)
def test_a_wrong_path_is_logged_escaped_and_with_100_characters(
    path: str, shown: str, caplog: pytest.LogCaptureFixture, *, is_told: bool
) -> None:
    """Whether the server tells the path as it was sent, or only with its escapes decoded."""
    Paths(["/hook"]).route(path, "POST", encoded=path if is_told else "")
    assert caplog.messages == [f"a request for {shown} is answered with 404: the receiver's path is /hook"]
