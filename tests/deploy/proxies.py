"""nginx, Caddy and HAProxy with the files of examples/proxies, in front of a service.

A file is used as it stands, but for its ports and the paths of its certificate.
"""

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import urllib3

from tests.deploy.machine import ROOT
from tests.e2e.processes import Process
from tests.peers.certs import Authority
from tests.peers.ports import free_port
from tests.waiting import wait_until

FILES = ROOT / "examples" / "proxies"
HOST = "statsig.example.com"
PATH = "/api/v1/data/events/receiver/statsig"
HEALTH_PATH = "/healthz"
"""Passed like the webhook's. So the files for systemd, Docker and Kubernetes have it as `health_path`."""


@dataclass(frozen=True)
class Proxy:
    """A running proxy.

    Attributes:
        port: Where it listens on 127.0.0.1, with TLS.
        authority: The file with the certificate to trust.
        process: The program. Its output has the log of requests.
    """

    port: int
    authority: str
    process: Process

    def pool(self, *, size: int = 8, timeout: float = 60) -> urllib3.HTTPSConnectionPool:
        return urllib3.HTTPSConnectionPool(
            "127.0.0.1",
            self.port,
            maxsize=size,
            timeout=timeout,
            retries=False,
            headers={"Host": HOST},
            ca_certs=self.authority,
            server_hostname=HOST,
            assert_hostname=HOST,
        )


def _nginx(folder: Path, text: str) -> list[str]:
    main = f"""
        daemon off; worker_processes 1; error_log stderr; pid {folder}/pid;
        events {{ worker_connections 256; }}
        http {{
            access_log /dev/stdout;
            client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
            uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
            {text}
        }}
    """
    (folder / "nginx.conf").write_text("user root;" * (os.geteuid() == 0) + main)
    return ["nginx", "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]


def _caddy(folder: Path, text: str) -> list[str]:
    """Not with a certificate of its own making, since that comes from the internet."""
    certificate = f"tls {folder}/{HOST}.pem {folder}/{HOST}.key"
    text = "{\n\tadmin off\n\tauto_https disable_redirects\n}\n" + text.replace(" {\n", f" {{\n\t{certificate}\n", 1)
    (folder / "Caddyfile").write_text(text)
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


def _haproxy(folder: Path, text: str) -> list[str]:
    (folder / "haproxy.cfg").write_text("global\n    log stdout format raw local0\n" + text)
    return ["haproxy", "-db", "-f", str(folder / "haproxy.cfg")]


@dataclass(frozen=True)
class Kind:
    """A program.

    Attributes:
        file: Its file in examples/proxies.
        listens: What that file says about its port.
        listens_on: The same for another port.
        prepare: Makes its configuration from the file's text, and gives the command.
        waits: Whether a webhook waits for a service that restarts.
        gone: The answer while nothing listens behind it.
    """

    file: str
    listens: str
    listens_on: str
    prepare: Callable[[Path, str], list[str]]
    waits: bool
    gone: int


KINDS = {
    "nginx": Kind("nginx.conf", "listen 443", "listen 127.0.0.1:{port}", _nginx, waits=False, gone=502),
    "caddy": Kind("Caddyfile", f"{HOST} {{", f"{HOST}:{{port}} {{{{", _caddy, waits=False, gone=502),
    "haproxy": Kind("haproxy.cfg", "bind :443", "bind 127.0.0.1:{port}", _haproxy, waits=True, gone=503),
}


@contextmanager
def running(name: str, service: int, folder: Path, *, text: str = "") -> Iterator[Proxy]:
    """Run one of KINDS in front of a port of 127.0.0.1, with this text in the place of its file's."""
    kind, port = KINDS[name], free_port()
    authority = Authority()
    certificate = authority.issue(HOST)
    (folder / f"{HOST}.pem").write_bytes(certificate.chain + certificate.key)  # HAProxy has the key here, too
    (folder / f"{HOST}.key").write_bytes(certificate.key)
    text = text or (FILES / kind.file).read_text()
    assert kind.listens in text
    assert "127.0.0.1:8080" in text
    text = text.replace("127.0.0.1:8080", f"127.0.0.1:{service}").replace("/etc/ssl/", f"{folder}/")
    text = text.replace(kind.listens, kind.listens_on.format(port=port))
    home = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with Process(kind.prepare(folder, text), home) as process:
        wait_until(lambda: not process.is_running or _listens(port), f"{name} listens")
        assert process.is_running, process.output
        yield Proxy(port, authority.write(folder), process)


def is_missing(name: str) -> bool:
    return shutil.which(name) is None


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
