"""examples/fastapi, flask and falcon: the commands of "Try it" work in a terminal of their own."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.e2e.service_process import environment
from tests.peers.otlp_servers import GrpcSink
from tests.test_embedding_docs import BIN, EXAMPLES, FALCON, FASTAPI, FLASK, ROOT, at_port, running


@pytest.mark.slow
@pytest.mark.parametrize(("heading", "name"), [(FASTAPI, "fastapi"), (FLASK, "flask"), (FALCON, "falcon")])
def test_a_change_is_sent_from_another_terminal(heading: str, name: str, tmp_path: Path) -> None:
    exports = re.findall(r"(STATSIG_SIGNING_SECRET)=(\S+)", "\n".join(EXAMPLES[heading].commands))
    section = (ROOT / "examples" / name / "README.md").read_text().partition("## Try it\n")[2]
    commands = "\n".join(re.findall(r"(?m)^    (.*)", section))
    with GrpcSink() as sink:
        variables = {**dict(exports), "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{sink.address}"}
        with running(heading, tmp_path, **variables) as (_, (_, port)):
            terminal = ["sh", "-e", "-c", at_port(commands, port)]
            sent = subprocess.run(
                terminal, env=environment({"PATH": f"{BIN}:/usr/bin:/bin"}), capture_output=True, text=True, check=False
            )
            assert sent.returncode == 0, sent.stdout + sent.stderr
            sink.wait_for(1)
        assert [record.event_name for record in sink.records] == ["statsig.config_change"]
