"""Reads the environment variables of OpenTelemetry's SDKs and of this service.

Without a configuration file they are the configuration: `STATSIG_SIGNING_SECRET`, `STATSIG_LISTEN`, and the
`OTEL_EXPORTER_OTLP_*` variables with their `_LOGS_` forms, which take precedence. They are read as opentelemetry-sdk
reads them: gRPC unless the protocol says otherwise, the timeout in seconds.

With a file they count only where it names them: `OTEL_EXPORTER_OTLP_HEADERS` contains the key of one backend, and no
exporter to another may send it. The SDKs do the same with a file of their own (the specification's "Declarative
configuration").
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Final

from statsig_otel.config.document import UNKNOWN, Document, Unknown
from statsig_otel.config.errors import ConfigError, Path, Problem
from statsig_otel.config.locations import read_all
from statsig_otel.config.merging import merge
from statsig_otel.plugin.settings import SECRET_VARIABLE
from statsig_otel.plugin.settings.resource import pairs
from statsig_otel.plugin.settings.telemetry import LogLevel, named_level
from statsig_otel.plugin.webhook.secret import NO_QUOTES

LISTEN_VARIABLE: Final = "STATSIG_LISTEN"

_logger: Final = logging.getLogger(__name__)
_EXPORTERS: Final = {"grpc": "otlp_grpc", "http/protobuf": "otlp_http", "http/json": "otlp_http"}

_TLS_FILES: Final = {"CERTIFICATE": "ca_file", "CLIENT_CERTIFICATE": "cert_file", "CLIENT_KEY": "key_file"}

_SECONDS: Final = re.compile(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+")

_LIKE_MILLISECONDS: Final = 1000
"""Seconds of a timeout that is probably meant in milliseconds, as in the specification and other languages' SDKs."""

_SETTINGS: Final = (
    "PROTOCOL", "ENDPOINT", "HEADERS", "TIMEOUT", "COMPRESSION", "CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY",
    "INSECURE",
)  # fmt: skip

_PATH_IN_GRPC: Final = (
    "%s has a path, which gRPC does not use: if it is for OTLP over HTTP, as most URLs with a path are, "
    "set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"
)


class Environment(Mapping[str, str]):
    """Environment variables, which remember which of them were asked for."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables
        self._asked_for: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self._asked_for.add(name)
        return self._variables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)

    def unused(self) -> list[str]:
        """The variables that would be a configuration without a file, are set, and were not asked for."""
        names = [SECRET_VARIABLE, LISTEN_VARIABLE, *(variable for name in _SETTINGS for variable in _variables(name))]
        return [name for name in names if self._variables.get(name) and name not in self._asked_for]


def check_enabled(environ: Mapping[str, str]) -> None:
    """Refuse to run if `OTEL_SDK_DISABLED` is true.

    An SDK does nothing then, and the application goes on. Delivering is all that this service does: to acknowledge
    webhooks and deliver nothing would lose them, and so would refusing them quietly.

    Raises:
        ConfigError: It is true.
    """
    name, value = "OTEL_SDK_DISABLED", environ.get("OTEL_SDK_DISABLED", "").strip()
    if value.lower() == "true":
        hint = "unset it for this service, or do not start the service"
        raise ConfigError([Problem((name,), "is true, and this service does nothing but export", hint)])
    if value.lower() not in ("", "false"):
        _logger.warning("%s is neither true nor false, and counts as false", name)


def log_level_from_environment(environ: Mapping[str, str]) -> LogLevel:
    """`OTEL_LOG_LEVEL`, in any case; info if it is unset or, with a warning, if there is no such level."""
    value = environ.get("OTEL_LOG_LEVEL", "")
    level = named_level(value)
    if value.strip() and level is None:
        _logger.warning("OTEL_LOG_LEVEL is not one of debug, info, warn and error, and counts as info")
    return level or "info"


def _variables(name: str) -> tuple[str, str]:
    """The variables of a setting; the first one takes precedence."""
    return f"OTEL_EXPORTER_OTLP_LOGS_{name}", f"OTEL_EXPORTER_OTLP_{name}"


def document_from_environment(environ: Mapping[str, str]) -> Document:
    """A document like a configuration file's, made from environment variables. It contains their problems.

    Without a signing secret it is the set-up mode; a secret that is set but empty is an error.
    """
    return _Reader(environ).document()


class _Reader:
    """Builds the document, and remembers which variable each value came from."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._origins: dict[Path, str] = {}
        self._problems: list[Problem] = []

    def document(self) -> Document:
        """The whole document."""
        secret = self._environ.get(SECRET_VARIABLE)
        if secret == "":
            hint = "set it to the signing secret, or unset it to set the webhook up before there is one"
            self._fault(SECRET_VARIABLE, "is empty", hint)
        self._origins["receivers", "statsig", "signing_secrets"] = SECRET_VARIABLE
        known = self._exporter_type()
        exporter = known or "otlp_grpc"
        settings = self._exporter(exporter)
        receiver: dict[str, object] = {"signing_secrets": [secret] if secret else []}
        if listen := self._read(LISTEN_VARIABLE):
            self._set(receiver, ("receivers", "statsig", "endpoint"), LISTEN_VARIABLE, listen)
        values: dict[str, object] = {
            "receivers": {"statsig": receiver},
            "exporters": {exporter: settings if known else UNKNOWN},
            "service": {"pipelines": {"logs": {"receivers": ["statsig"], "exporters": [exporter]}}},
        }
        document = Document.from_values(values, origin="environment", origins=self._origins)
        return replace(document, problems=tuple(self._problems))

    def _fault(self, variable: str, message: str, hint: str | None = None) -> Unknown:
        self._problems.append(Problem((variable,), message, hint))
        return UNKNOWN

    def _variable(self, name: str) -> tuple[str, str] | None:
        """The variable that is set for a setting, and its value; an empty one counts as unset (the specification)."""
        for variable in _variables(name):
            if value := self._read(variable):
                return variable, value
        return None

    def _read(self, variable: str) -> str:
        value = self._environ.get(variable, "").strip()
        if value[:1] not in ("'", '"') or not value.endswith(value[0]):
            return value
        self._fault(variable, "is in quotation marks", NO_QUOTES)
        return value.strip(value[0])

    def _exporter_type(self) -> str | None:
        """The exporter of the protocol; None if there is no such protocol."""
        found = self._variable("PROTOCOL")
        if found is None:
            return "otlp_grpc"
        variable, protocol = found
        if protocol not in _EXPORTERS:
            self._fault(variable, "is not a protocol of this service", "use grpc, http/protobuf or http/json")
        return _EXPORTERS.get(protocol)

    def _exporter(self, exporter: str) -> dict[str, object]:
        path = ("exporters", exporter)
        # The SDK does not compress unless it is told to, and waits for ten seconds.
        settings: dict[str, object] = {"compression": "none", "timeout": "10s"}
        tls: dict[str, object] = {}
        if (protocol := self._variable("PROTOCOL")) and protocol[1] == "http/json":
            settings["encoding"] = "json"
        if found := self._variable("COMPRESSION"):
            self._set(settings, (*path, "compression"), found[0], found[1].lower())
        if found := self._variable("TIMEOUT"):
            self._set(settings, (*path, "timeout"), found[0], self._seconds(*found))
        if found := self._variable("HEADERS"):
            self._set(settings, (*path, "headers"), found[0], self._headers(*found))
        for name, key in _TLS_FILES.items():
            if found := self._variable(name):
                self._set(tls, (*path, "tls", key), *found)
        if exporter == "otlp_grpc" and (found := self._variable("INSECURE")):
            self._set(tls, (*path, "tls", "insecure"), found[0], self._boolean(*found))
        key, endpoint = self._endpoint(exporter)
        settings[key] = endpoint
        if tls and not endpoint.startswith("http://"):  # which is plain text, whatever else is set
            self._check_pair(tls)
            settings["tls"] = tls
        return settings

    def _set(self, holder: dict[str, object], path: Path, variable: str, value: object) -> None:
        """Put the value of a variable where the last key of the path is."""
        *above, key = path
        holder[str(key)] = value
        self._origins[path] = variable
        if above[-1] == "tls":
            self._origins[tuple(above)] = variable

    def _boolean(self, variable: str, value: str) -> bool | Unknown:
        """Only `true` is true (the specification). Taking `1` for true would send in plain text."""
        if value.lower() not in ("true", "false"):
            return self._fault(variable, "must be true or false")
        return value.lower() == "true"

    def _seconds(self, variable: str, value: str) -> str | Unknown:
        """The duration of a number of seconds."""
        if not _SECONDS.fullmatch(value):
            return self._fault(variable, "must be a number of seconds, without a unit, such as 10")
        if float(value) >= _LIKE_MILLISECONDS:
            _logger.warning("%s counts seconds here, as in the SDK for Python: %s is a very long time", variable, value)
        return f"{value}s"

    def _headers(self, variable: str, value: str) -> dict[str, str] | Unknown:
        headers, broken = pairs(value)
        return self._fault(variable, "contains an entry that is not key=value") if broken else headers

    def _check_pair(self, tls: dict[str, object]) -> None:
        """A client's certificate and its key need each other."""
        for there, missing in (("CERTIFICATE", "KEY"), ("KEY", "CERTIFICATE")):
            found = self._variable(f"CLIENT_{there}")
            if found and not self._variable(f"CLIENT_{missing}"):
                message = f"a client's {there.lower()} needs its {missing.lower()}"
                hint = f"set {found[0].removesuffix(there)}{missing}"
                tls[_TLS_FILES[f"CLIENT_{missing}"]] = self._fault(found[0], message, hint)

    def _endpoint(self, exporter: str) -> tuple[str, str]:
        """The endpoint, after the key that has it."""
        key, default = "endpoint", "http://localhost:4318" if exporter == "otlp_http" else "http://localhost:4317"
        variable, value = self._variable("ENDPOINT") or ("", default)
        if exporter == "otlp_http":
            # The general endpoint gets the path appended, the one for logs does not (the specification).
            key = "logs_endpoint" if variable == _variables("ENDPOINT")[0] else "endpoint"
        elif value.startswith(("http://", "https://")):
            scheme, _, rest = value.partition("://")  # of a URL the scheme and the authority count, as in the SDK
            authority, _, path = rest.partition("/")
            value = f"{scheme}://{authority}"
            if path.partition("?")[0]:
                _logger.warning(_PATH_IN_GRPC, variable)
        if variable:
            self._origins["exporters", exporter, key] = variable
        return key, value


def read_document(
    locations: Sequence[FilePath | str],
    environ: Mapping[str, str],
    *,
    listen: str | None = None,
    directory: FilePath = FilePath(),
) -> Document:
    """The merged locations; without any, the configuration that the environment gives.

    `yaml:` locations that are not a whole configuration are merged over the environment's. `listen` takes the place of
    the receivers' endpoint, and `directory` that of the working directory.

    Raises:
        ConfigError: What can't be read; or the receivers have several endpoints, and `listen` is given.
    """
    document = read_all(locations, environ=environ, directory=directory)
    if all(str(location).startswith("yaml:") for location in locations) and not _is_whole(document):
        document = merge([document_from_environment(environ), document])
    return document if listen is None else _listening(document, listen)


def _is_whole(document: Document) -> bool:
    """Whether there are pipelines, and the document has each receiver and exporter that they name."""
    service = document.values.get("service")
    pipelines = service.get("pipelines") if isinstance(service, Mapping) else None
    return (
        isinstance(pipelines, Mapping)
        and bool(pipelines)
        and all(_has_all(document, kind, body) for body in pipelines.values() for kind in ("receivers", "exporters"))
    )


def _has_all(document: Document, kind: str, pipeline: object) -> bool:
    """Whether a pipeline names components of a kind, and the document has all of them."""
    named = pipeline.get(kind) if isinstance(pipeline, Mapping) else None
    known = document.values.get(kind)
    return isinstance(named, list) and isinstance(known, Mapping) and all(str(name) in known for name in named)


def _listening(document: Document, address: str) -> Document:
    receivers = document.values.get("receivers")
    bodies = receivers if isinstance(receivers, Mapping) else {}
    endpoints = {str(body.get("endpoint")) for body in bodies.values() if isinstance(body, Mapping)}
    if len(endpoints) > 1:
        message = f"--listen replaces one endpoint, and the receivers have {len(endpoints)}"
        raise ConfigError([Problem((), message, "change the endpoint of each receiver in the configuration")])
    values = {"receivers": {id_: {"endpoint": address} for id_ in bodies}}
    origins: dict[Path, str] = {("receivers", id_, "endpoint"): "--listen" for id_ in bodies}
    return merge([document, Document.from_values(values, "--listen", origins)]) if bodies else document
