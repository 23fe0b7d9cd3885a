"""Whether files still hold what they held."""

from pathlib import Path

import pytest

from statsig_otel.exporters import OtlpGrpcSettings, OtlpHttpSettings
from statsig_otel.exporters.local.debug import DebugSettings
from statsig_otel.plugin.server.tls import digest, digests


def test_any_change_of_any_file_is_seen(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"1")
    second.write_bytes(b"23")
    seen = {digest([first, second])}
    assert digest([first, second]) in seen
    for text, other in ((b"12", b"3"), (b"1", b"24"), (b"", b"123"), (b"1\n2", b"3")):
        first.write_bytes(text)
        second.write_bytes(other)
        assert digest([first, second]) not in seen
        seen.add(digest([first, second]))
    assert digest([second, first]) not in seen
    assert digest([first, None, second]) != digest([first, second]) != digest([first])
    first.unlink()
    assert digest([first, second]) not in seen


@pytest.mark.parametrize("tls", [{}, {"ca_file": "a"}, {"cert_file": "a", "key_file": "b"}])
def test_exporters_have_the_files_that_they_use(tls: dict[str, str]) -> None:
    files = tuple(map(Path, tls.values()))
    secure = [
        OtlpGrpcSettings.model_validate({"endpoint": "h:1", "tls": tls}),
        OtlpGrpcSettings.model_validate({"endpoint": "https://h:1", "tls": tls}),
        OtlpHttpSettings.model_validate({"endpoint": "https://h", "tls": tls}),
    ]
    assert [settings.own_files for settings in secure] == [files] * 3
    plain = OtlpGrpcSettings.model_validate({"endpoint": "h:1", "tls": {**tls, "insecure": True}})
    assert plain.own_files == ()
    found = digests({"a": secure[0], "b": plain, "c": DebugSettings()})
    assert list(found) == (["a"] if tls else [])
