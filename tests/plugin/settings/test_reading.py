"""The commands about the queue take the service's configuration as `run` takes it."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from statsig_otel.exporters.queue import schema
from statsig_otel.plugin.cli.main import main

CONFIG = """\
receivers: {statsig: {signing_secrets: []}}
exporters: {debug: {}}
extensions: {file_storage: {directory: nowhere}}
service: {extensions: [file_storage], pipelines: {logs: {receivers: [statsig], exporters: [debug]}}}
"""


@pytest.fixture
def locations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A file, and over it the directory of an empty queue, as a text."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "none"))
    folder = tmp_path / "queue"
    folder.mkdir()
    schema.connect(folder / "queue.db").close()
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return ["--config", str(path), "--config", f"yaml:extensions::file_storage::directory: {folder}"]


def call(*args: str) -> Result:
    return CliRunner().invoke(main, args)


def test_several_locations_are_merged(locations: list[str], tmp_path: Path) -> None:
    found = call("queue", *locations)
    assert found.exit_code == 0, found.output
    assert found.output.startswith(f"{tmp_path / 'queue'}: the queue of a service that is not running\n")
    assert call("dead-letters", *locations, "list").exit_code == 0
    assert call("dead-letters", "list", *locations).exit_code == 0
    assert "nowhere contains no queue" in call("queue", *locations[:2]).output


def test_a_configuration_without_a_queue_is_told_where_to_look(locations: list[str]) -> None:
    unqueued = "yaml:exporters::debug::sending_queue::enabled: false"
    for command in (["queue"], ["top", "--once"], ["dead-letters", "list"]):
        found = call(*command, *locations[:2], "--config", unqueued)
        assert found.exit_code == 1, command
        told = "no exporter of this configuration has a sending queue: look at its live page (zpages)"
        assert told in found.output, command
    assert "If no exporter of the service has a sending queue, look at its live page" in call("top").output


def test_those_behind_a_subcommand_take_the_place_of_those_before_it(locations: list[str]) -> None:
    assert call("dead-letters", "--config", "no.yaml", "list", *locations).exit_code == 0
    assert "nowhere contains no queue" in call("dead-letters", *locations, "list", *locations[:2]).output


def test_what_is_wrong_with_one_of_them_is_told(locations: list[str]) -> None:
    result = call("queue", *locations, "--config", "yaml:exporters::debug::verbosity: loud")
    assert result.exit_code == 1
    assert "exporters::debug::verbosity: must be 'basic', 'normal' or 'detailed'" in result.output
    assert "hint: --directory DIR, without --config, needs no configuration" in result.output
