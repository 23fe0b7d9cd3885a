"""docs/chronosphere.md: with its nginx, each webhook reaches both receivers, and both accept its signature."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.processes import SECRET, post, signed
from tests.e2e.service_process import ServiceProcess
from tests.peers.otlp_servers import GrpcSink
from tests.peers.ports import free_port
from tests.waiting import wait_until

PAGE = Path(__file__).parents[1] / "docs" / "chronosphere.md"
BODY = (
    b'{"data": [{"eventName": "statsig::config_change", "timestamp": 1764300000000, '
    b'"metadata": {"type": "Gate", "name": "checkout_v2", "action": "updated"}}'
    + b', {"eventName": "x"}' * 100_000
    + b"]}"
)
"""A change among many other events: more than nginx takes by itself."""


def service(backend: GrpcSink, port: int) -> ServiceProcess:
    return ServiceProcess(
        None,
        "--listen",
        f"127.0.0.1:{port}",
        env={"STATSIG_SIGNING_SECRET": SECRET, "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{backend.port}"},
    )


BLOCKS = re.findall(r"^ *```nginx\n(.*?)```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def test_the_page_has_the_proxy_before_and_after_the_switch() -> None:
    assert len(BLOCKS) == 2


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=["before", "after"])
def test_both_receivers_get_each_webhook(block: str, tmp_path: Path) -> None:
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if nginx is None:
        pytest.skip("NGINX IS NOT INSTALLED: the page's configuration is not proven")
    public, old_port, new_port = free_port(), free_port(), free_port()
    locations = block.replace("https://YOUR-TENANT.example", f"http://127.0.0.1:{old_port}")
    locations = locations.replace("127.0.0.1:8080", f"127.0.0.1:{new_port}")
    config = tmp_path / "nginx.conf"
    user = "user root; " if os.geteuid() == 0 else ""  # another one can't write into a test's folder
    config.write_text(
        f"{user}daemon off; pid {tmp_path}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {tmp_path}/body; proxy_temp_path {tmp_path}/proxy;\n"
        f"fastcgi_temp_path {tmp_path}/a; uwsgi_temp_path {tmp_path}/b; scgi_temp_path {tmp_path}/c;\n"
        f"server {{ listen 127.0.0.1:{public};\n{locations}}} }}\n"
    )
    with (
        GrpcSink() as old_backend,
        GrpcSink() as new_backend,
        service(old_backend, old_port) as old,
        service(new_backend, new_port) as new,
    ):
        proxy = subprocess.Popen([nginx, "-p", str(tmp_path), "-c", str(config)], stderr=subprocess.PIPE, text=True)
        try:
            url = new.url.replace(str(new_port), str(public))
            assert old.url != new.url != url
            wait_until(lambda: is_accepted(url))
            wait_until(lambda: len(old_backend.records) == len(new_backend.records) == 1)
        finally:
            proxy.terminate()
            _, errors = proxy.communicate(timeout=30)
        assert new_backend.records[0].attributes == old_backend.records[0].attributes, errors


def is_accepted(url: str) -> bool:
    """Whether a webhook got 200; False while nginx does not listen yet."""
    try:
        return post(url, BODY, signed(BODY)).status == 200
    except OSError:
        return False
