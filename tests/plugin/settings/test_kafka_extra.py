"""The Kafka exporter without its library: what is missing is said, with the command that installs it."""

import subprocess
import sys
from pathlib import Path

import pytest

from statsig_otel.config import ConfigError
from statsig_otel.exporters import KafkaSettings
from statsig_otel.plugin.cli.components import list_components
from statsig_otel.plugin.settings.catalog import create_exporter


def test_without_the_library_the_error_has_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("statsig_otel.exporters.kafka.")]:
        if not name.endswith((".settings", ".messages")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(ConfigError) as caught:
        create_exporter("kafka/eu", KafkaSettings())
    listed = {one["name"]: one for one in list_components()["exporters"]}
    assert str(listed["kafka"]["problem"]).startswith("needs the package confluent-kafka, which can't be imported: ")
    assert listed["kafka"]["hint"] == "pip install 'statsig-otel[kafka]'"
    assert [name for name in listed if "problem" in listed[name]] == ["kafka"]
    (problem,) = caught.value.problems
    assert problem.path == ("exporters", "kafka/eu")
    assert problem.message.startswith("needs the package confluent-kafka, which can't be imported: ")
    assert problem.hint == "pip install 'statsig-otel[kafka]'"


@pytest.mark.slow
def test_nothing_else_imports_the_library(tmp_path: Path) -> None:
    """Neither a command nor a service without the exporter; `validate` names the line of the one that needs it."""
    (tmp_path / "confluent_kafka.py").write_text("raise ImportError('there is none', name='confluent_kafka')")
    file = tmp_path / "config.yaml"
    text = "receivers: {statsig: {signing_secrets: [webhook-x]}}\nexporters:\n  EXPORTER: {}\n"
    text += "service: {pipelines: {logs: {receivers: [statsig], exporters: [EXPORTER]}}}\n"
    command = [sys.executable, "-m", "statsig_otel", "validate", "--config", str(file)]
    for exporter, status, said in (("debug", 0, ""), ("kafka", 1, "pip install 'statsig-otel[kafka]'")):
        file.write_text(text.replace("EXPORTER", exporter))
        ran = subprocess.run(
            command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
        )
        assert ran.returncode == status, ran.stderr
        assert said in ran.stderr
        if status:
            assert "exporters::kafka: needs the package confluent-kafka" in ran.stderr
            assert f"{file}:3" in ran.stderr
