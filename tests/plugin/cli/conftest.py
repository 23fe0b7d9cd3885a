"""The environment of the commands' tests."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.plugin.cli.configurations import call


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of the machine configures anything here."""
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_RESOURCE_ATTRIBUTES", "STATSIG_SIGNING_SECRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def schema() -> Any:
    """A validator with the schema that the command prints."""
    jsonschema = pytest.importorskip("jsonschema")
    printed = json.loads(call("schema").output)
    jsonschema.Draft202012Validator.check_schema(printed)
    return jsonschema.Draft202012Validator(printed)
