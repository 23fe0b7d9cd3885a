"""Configurations, and the commands that read them, in this process."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from ruamel.yaml import YAML

from statsig_otel.plugin.cli.main import main

SECRET = "webhook-s3cr3t"


def call(*args: str, env: Mapping[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, args, env=env)


def config(receiver: str = "", exporters: str = "debug: {}", names: str = "debug", more: str = "") -> str:
    """A configuration of ten lines or so; the receiver's keys begin in line 5, the exporters in line 7."""
    Path("config.yaml").write_text(
        "receivers:\n"
        "  statsig:\n"
        f"    signing_secrets: [{SECRET}]\n"
        "    # the rest:\n"
        f"    {receiver or 'endpoint: localhost:0'}\n"
        "exporters:\n"
        f"  {exporters}\n"
        f"service:\n  pipelines: {{logs: {{receivers: [statsig], exporters: [{names}]}}}}\n{more}"
    )
    return "config.yaml"


def errors(*args: str) -> str:
    """What `validate` says, without its first line."""
    result = call("validate", *args)
    assert result.exit_code == 1
    assert SECRET not in result.output
    first, _, rest = result.output.partition("\n")
    assert first == "Error: the configuration has errors"
    return rest.removesuffix("\n").replace(f"{Path.cwd()}/", "")  # messages show absolute paths


def tls(**files: str) -> str:
    return "{" + ", ".join(f"{key}: {file}" for key, file in files.items()) + "}"


STORAGE = "extensions: {file_storage: {directory: %s}}\n"


def as_written(text: str) -> Any:
    """What an editor sees: no reference is resolved."""
    return YAML(typ="safe", pure=True).load(text)


def wrong(schema: Any, text: str) -> list[str]:
    return ["::".join(map(str, error.absolute_path)) for error in schema.iter_errors(as_written(text))]
