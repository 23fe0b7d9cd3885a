"""A configuration in which each secret is a canary: a string that stands nowhere else, and so tells where it was said.

It has a canary for each setting that is secret by its type, which tests/plugin/settings/test_secret_settings.py checks.
"""

import base64
import html
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from statsig_otel.config.configuration import Configuration
from statsig_otel.config.grammar import check
from statsig_otel.config.model import Composed, Settings
from statsig_otel.config.opaque import Opaque
from statsig_otel.plugin.settings.catalog import COMPONENTS
from statsig_otel.plugin.settings.environment import read_document
from tests.peers.audit_log import KEY, PATH
from tests.peers.certs import Authority, Certificate

SECRETS = {
    name: f"s3cr3t-{name}-0123456789abcdef"
    for name in (
        *("environment", "file", "inline", "hash", "bearer", "header", "listed", "unused", "page", "wrong", "changed"),
        *("audit", "audit-failing", "audit-untrusted", "audit-away", "audit-proxied"),
        *("kafka-away", "kafka-refused", "kafka-untrusted"),
        *("metrics-grpc", "metrics-http", "traces-grpc", "traces-http"),
    )
}
SECRETS["audit-working"] = KEY
SPECIAL = 's3cr3t "with" <signs> & +/='
"""A text that is written otherwise in JSON, in HTML and in a URL."""

QUERY = "s3cr3t-query-0123456789abcdef"
"""Stands in a URL: `https://host/v1/logs?key=...`."""

PROXY = "s3cr3t-proxy@0123456789abcdef"
"""The password of a proxy. In the URL it is percent-encoded."""

ENV = {
    "STATSIG_SIGNING_SECRET": SECRETS["environment"],
    "OTEL_EXPORTER_OTLP_HEADERS": f"api-key={SECRETS['unused']}",
    "OTEL_LOG_LEVEL": "debug",
}
SIGNING = [SECRETS["environment"], SECRETS["file"], SECRETS["inline"]]
FILES = {"secret": "file", "api_key": "audit", "password": "kafka-away", "header": "header"}
"""Files with a secret, each with the name of its secret."""

SINKS = ("blocked", "retried", "elsewhere", "rejected", "query", "partly", "warning")
"""Backends over HTTP, each with an answer of its own."""

PUSHES = ("metrics-grpc", "metrics-http", "traces-grpc", "traces-http")
"""Backends of the service's own metrics and spans."""


def proxies(port: int) -> dict[str, str]:
    """The variables of a proxy with a password. Whatever else the environment has, they count."""
    url = f"http://user:{quote(PROXY, safe='')}@127.0.0.1:{port}"
    names = {
        "http_proxy": url,
        "https_proxy": url,
        "no_proxy": "localhost,127.0.0.1",
        "grpc_proxy": url,
        "no_grpc_proxy": "localhost,127.0.0.1",
    }
    return {**names, **{name.upper(): value for name, value in names.items() if "grpc" not in name}}


@cache
def identity(place: str) -> Certificate:
    """The certificate and the key that stand at one place of the configuration."""
    return Authority().issue(place)


@cache
def authority(place: str) -> bytes:
    """The certificate of an authority that stands at one place of the configuration. It has signed no server's."""
    return Authority().pem


def inline_tls(place: str) -> dict[str, str]:
    """`tls` with each PEM in the configuration itself."""
    one = identity(place)
    return {"ca_pem": authority(place).decode(), "cert_pem": one.chain.decode(), "key_pem": one.key.decode()}


@dataclass(frozen=True)
class Canaries:
    """The configuration, as files in a folder.

    Attributes:
        folder: Where its files are.
        at: Where each peer listens, as `host:port`.
    """

    folder: Path
    at: Mapping[str, str]

    @property
    def config(self) -> Path:
        """The configuration's file."""
        return self.folder / "config.yaml"

    @property
    def sources(self) -> set[Path]:
        """The files that the user has written, secrets included."""
        return {self.config, *(self.folder / name for name in (*FILES, "server.pem", "server.key", "not.pem"))}

    def write(self, *, wrong: bool = False, pem: str = "") -> None:
        """Write all files.

        Args:
            wrong: Whether the configuration has errors, next to secrets and with secrets where they can't be.
            pem: What the files of an exporter's certificate and key contain; empty for no such files.
        """
        for name, secret in FILES.items():
            (self.folder / name).write_text(SECRETS[secret] + "\n")
        identity("server").write(self.folder, "server")
        (self.folder / "not.pem").write_text(pem)
        document = self._document()
        if pem:
            files = {"cert_file": "not.pem", "key_file": "not.pem"}
            document["exporters"]["otlp_http/untrusted"]["tls"] = files
        if wrong:
            _spoil(document)
        self.config.write_text(json.dumps(document, indent=2))

    def read(self) -> Configuration:
        """The configuration, as the service understands it."""
        return check(read_document([self.config], ENV), COMPONENTS)

    def _document(self) -> dict[str, Any]:
        receivers, exporters = self._receivers(), self._exporters()
        return {
            "receivers": receivers,
            "exporters": exporters,
            "extensions": {
                "file_storage": {"directory": str(self.folder / "queue"), "min_free_bytes": 0},
                "health_check": {"endpoint": "127.0.0.1:0"},
                "zpages": {"endpoint": "127.0.0.1:0", "token": SECRETS["page"]},
            },
            "service": {
                "telemetry": {
                    "logs": {"level": "debug"},
                    "metrics": {"readers": self._readers()},
                    "traces": {"processors": self._processors()},
                },
                "extensions": ["file_storage", "health_check", "zpages"],
                "pipelines": {"logs": {"receivers": list(receivers), "exporters": list(exporters)}},
            },
        }

    def _receivers(self) -> dict[str, dict[str, object]]:
        """One that webhooks come to, some whose audit logs fail in different ways, and one with TLS."""
        secrets = ["${env:STATSIG_SIGNING_SECRET}", "${file:secret}", SECRETS["inline"]]
        main = {"signing_secrets": secrets, "user": "hash", "hash_key": SECRETS["hash"]}
        logs: dict[str, dict[str, object]] = {
            "statsig": {"api_key": "${file:api_key}", "endpoint": f"http://{self.at['audit']}/log"},
            "statsig/working": {"endpoint": f"http://{self.at['audit']}{PATH}"},
            "statsig/failing": {"endpoint": f"http://{self.at['audit-failing']}/log"},
            "statsig/untrusted": {
                "endpoint": f"https://{self.at['audit-untrusted']}/log",
                "tls": inline_tls("audit-untrusted"),
            },
            "statsig/away": {"endpoint": f"http://{self.at['nobody']}/log"},
            "statsig/proxied": {"endpoint": "https://audit.example/log"},
        }
        found: dict[str, dict[str, object]] = {
            name: {
                "endpoint": "127.0.0.1:0",
                **(main if name == "statsig" else {"signing_secrets": [], "path": f"/{name}"}),
                "audit_log": {"api_key": SECRETS.get(name.replace("statsig/", "audit-"), ""), **log},
            }
            for name, log in logs.items()
        }
        tls = {"cert_file": "server.pem", "key_file": "server.key"}
        found["statsig/tls"] = {"endpoint": "localhost:0", "signing_secrets": [], "tls": tls}
        return found

    def _exporters(self) -> dict[str, dict[str, object]]:
        headers = {"authorization": f"Bearer {SECRETS['bearer']}", "api-key": "${file:header}", "special": SPECIAL}
        common = {"headers": headers, "retry_on_failure": {"initial_interval": "50ms", "max_interval": "100ms"}}
        listed: dict[str, object] = {
            **common,
            "headers": [{"name": "api-key", "value": SECRETS["listed"]}, {"name": "s", "value": SPECIAL}],
        }
        url = {name: f"http://{self.at[name]}" for name in SINKS}
        return {
            **{f"otlp_http/{name}": {"endpoint": url[name], **common} for name in SINKS},
            "otlp_http/query": {"logs_endpoint": f"{url['query']}/v1/logs?key={QUERY}"},
            "otlp_http/untrusted": {"endpoint": f"https://{self.at['tls-http']}", "tls": inline_tls("http"), **common},
            "otlp_http/proxied": {"endpoint": "http://backend.example", **common},
            "otlp_http/tunneled": {"endpoint": "https://backend.example", **common},
            "otlp_grpc/blocked": {"endpoint": self.at["grpc"], "tls": {"insecure": True}, **listed},
            "otlp_grpc/untrusted": {"endpoint": self.at["tls-grpc"], "tls": inline_tls("grpc"), **listed},
            "otlp_grpc/proxied": {"endpoint": "backend.example:4317", **listed},
            "kafka/away": self._kafka("nobody", "${file:password}"),
            "kafka/refused": self._kafka("kafka", SECRETS["kafka-refused"]),
            "kafka/untrusted": {
                **self._kafka("tls-http", SECRETS["kafka-untrusted"]),
                "tls": inline_tls("kafka"),
            },
            "file": {"path": str(self.folder / "changes.jsonl")},
            "debug": {"verbosity": "detailed"},
        }

    def _kafka(self, peer: str, password: str) -> dict[str, object]:
        sasl = {"mechanism": "PLAIN", "username": "writer", "password": password}
        return {"brokers": [self.at[peer]], "timeout": "1s", "auth": {"sasl": sasl}}

    def _push(self, name: str) -> dict[str, object]:
        protocol = "grpc" if name.endswith("grpc") else "http/protobuf"
        headers = {"key": SECRETS[name]}
        return {"otlp": {"protocol": protocol, "endpoint": f"http://{self.at[name]}", "headers": headers}}

    def _readers(self) -> list[object]:
        pushes = [{"interval": "1s", "exporter": self._push(name)} for name in ("metrics-grpc", "metrics-http")]
        prometheus = {"host": "127.0.0.1", "port": 0}
        return [{"pull": {"exporter": {"prometheus": prometheus}}}, *({"periodic": one} for one in pushes)]

    def _processors(self) -> list[object]:
        pushes = [{"schedule_delay": "1s", "exporter": self._push(name)} for name in ("traces-grpc", "traces-http")]
        return [{"batch": one} for one in pushes]


def _spoil(document: dict[str, Any]) -> None:
    """Write errors into a configuration, next to secrets, and with secrets where they can't be."""
    wrong, receivers, exporters = SECRETS["wrong"], document["receivers"], document["exporters"]
    receivers["statsig"]["signing_secrets"] = ["", f" {SECRETS['inline']}"]
    receivers["statsig"]["hash_kye"] = wrong
    receivers["statsig"]["audit_log"] = {"api_key": f"{wrong} ", "endpoint": f"https://user:{wrong}@h/?key={wrong}"}
    receivers["statsig/failing"]["audit_log"] = {"api_key": [wrong], "apikey": wrong}
    exporters["otlp_http/a"] = {
        "endpoint": f"http://user:{wrong}@localhost:1",
        "headers": {"api-key": f"{SECRETS['header']}\n", "nested": [SECRETS["header"]]},
        "hedaers": {"api-key": SECRETS["header"]},
    }
    exporters["otlp_grpc/a"] = {
        "endpoint": "localhost:1",
        "headers": [{"name": "x", "valeu": wrong}, {"name": "y", "value": [wrong]}],
        "tls": {"key_pem": identity("grpc").key.decode()},
    }
    exporters["kafka/a"] = {
        "brokers": [f"user:{wrong}@localhost:1", f"kafka://user:{wrong}@localhost:1"],
        "auth": {"sasl": {"mechanism": wrong, "username": "writer", "password": [wrong], "pasword": wrong}},
        "tls": {"key_pem": [identity("kafka").key.decode()]},
    }
    exporters["kafka/b"] = {"brokers": f"user:{wrong}@localhost:1"}
    document["extensions"]["zpages"] |= {"token": {"value": wrong}, "hosts": [f"https://user:{wrong}@page.example"]}
    otlp = {"protocol": "grpc", "endpoint": f"http://user:{wrong}@h", "headers": {"a": f"{wrong}\n"}, "tls": wrong}
    document["service"]["telemetry"] |= {
        "metrics": {"readers": [{"periodic": {"exporter": {"otlp": otlp}}}]},
        "traces": {"processors": [{"batch": {"exporter": otlp}}]},
    }


def values_in(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """A configuration, or a part of it, and all that is in it, each with its path. `[]` is an element, `*` any name."""
    yield path, value
    for step, item in _items(value):
        yield from values_in(item, path + step)


def _items(value: object) -> Iterator[tuple[str, object]]:
    """What is directly in a value, each with the step that leads to it."""
    match value:
        case Configuration():
            for section in ("receivers", "exporters", "extensions"):
                for name, settings in getattr(value, section).items():
                    yield f"{section}::{name.partition('/')[0]}", settings
            yield "telemetry", value.telemetry
        case Settings():
            for name, item in value:
                yield "" if isinstance(value, Composed) and name == "settings" else f"::{name}", item
        case Mapping():
            yield from (("::*", item) for item in value.values())
        case list() | tuple():
            yield from (("[]", item) for item in value)


def secrets_in(value: object) -> list[tuple[str, str]]:
    """The secrets in a configuration or a part of it, each with its path."""
    return [(path, one.reveal()) for path, one in values_in(value) if isinstance(one, Opaque)]


def spellings(secret: str) -> set[str]:
    """How a program may write it. In base64 it depends on where it begins, as in `Bearer KEY`."""
    encoded = secret.encode()
    inside = {base64.b64encode(bytes(before) + encoded).decode()[4:-4] for before in range(3)}
    as_text = {secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], html.escape(secret)}
    return {*as_text, encoded.hex(), quote(secret), quote(secret, safe=""), *inside}


def lines_of(pem: str) -> set[str]:
    """The lines of a PEM that no other PEM has. The last one may be short."""
    return {line for line in pem.splitlines() if len(line) > 20 and not line.startswith("-----")}


def parts_of(secret: str) -> set[str]:
    """What must be said nowhere: lines of a PEM; of `Bearer KEY` the key."""
    if secret.startswith("-----BEGIN"):
        return lines_of(secret)
    return spellings(secret.removeprefix("Bearer "))


def hidden(canaries: Canaries) -> dict[str, set[str]]:
    """All that must be said nowhere, by what it is: the secrets of the configuration, and those of no setting."""
    found: dict[str, set[str]] = {}
    for path, secret in secrets_in(canaries.read()):
        found.setdefault(path, set()).update(parts_of(secret))
    return {
        **found,
        **{name: spellings(SECRETS[name]) for name in ("unused", "wrong", "changed")},
        "a query": {QUERY},
        "the proxy's password": spellings(PROXY),
        "a file with a key": lines_of(identity("server").key.decode()),
    }
