"""Makes the SDK's OTLP exporters of metrics and spans, and describes the service to a backend."""

import contextlib
import importlib
import logging
import uuid
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final, Literal

from opentelemetry.sdk.resources import Resource

from statsig_otel import __version__
from statsig_otel.config.files import read_pem
from statsig_otel.config.opaque import reveal
from statsig_otel.exporters.network.answers import one_line
from statsig_otel.exporters.network.proxy import proxy_secrets
from statsig_otel.plugin.settings.metrics import OtlpPushSettings

_SERVICE: Final = "statsig-otel"
_INSTANCE: Final = str(uuid.uuid4())


def make_exporter(settings: OtlpPushSettings, signal: Literal["metric", "trace"]) -> Any:
    """The SDK's exporter of a signal over the protocol of the settings.

    Raises:
        OSError: A file can't be read.
    """
    protocol, arguments = ("grpc", _over_grpc) if settings.protocol == "grpc" else ("http", _over_http)
    # Loaded where it is used: gRPC and requests take long.
    module = importlib.import_module(f"opentelemetry.exporter.otlp.proto.{protocol}.{signal}_exporter")
    make = module.OTLPMetricExporter if signal == "metric" else module.OTLPSpanExporter
    _hiding.secrets.update(map(reveal, settings.headers.values()), proxy_secrets())
    for name in (module.__name__, "opentelemetry.exporter.otlp.proto.grpc.exporter"):
        logging.getLogger(name).addFilter(_hiding)  # the second time changes nothing
    return make(**arguments(settings))


class _Hiding(logging.Filter):
    """Hides secrets in what the SDK logs: it quotes what backends and proxies answer, and some of these quote them.

    Attributes:
        secrets: Those of all exporters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.secrets: Final = set[str]()

    def filter(self, record: logging.LogRecord) -> bool:
        """Let each line pass, without secrets."""
        record.msg, record.args = one_line(record.getMessage(), self.secrets), ()
        return True


_hiding: Final = _Hiding()


def _over_grpc(settings: OtlpPushSettings) -> dict[str, Any]:
    import grpc  # noqa: PLC0415 - loaded where it is used

    files = [settings.certificate, settings.client_key, settings.client_certificate]
    certificate, key, chain = (None if file is None else read_pem(file) for file in files)
    return {
        "endpoint": settings.endpoint,
        "insecure": not settings.uses_tls,
        "credentials": grpc.ssl_channel_credentials(certificate, key, chain) if settings.uses_tls else None,
        "headers": _headers(settings),
        "timeout": settings.timeout,
        "compression": grpc.Compression.Gzip if settings.compression == "gzip" else grpc.Compression.NoCompression,
    }


def _over_http(settings: OtlpPushSettings) -> dict[str, Any]:
    import requests  # noqa: PLC0415 - loaded where it is used
    from opentelemetry.exporter.otlp.proto.http import Compression  # noqa: PLC0415 - likewise

    files = [file for file in (settings.certificate, settings.client_key, settings.client_certificate) if file]
    for file in files:
        read_pem(file)
    trusted = _path(settings.certificate)

    class Session(requests.Session):
        """Trusts the certificates of the settings, where requests would prefer those of REQUESTS_CA_BUNDLE.

        requests opens the files again by their paths. So it looks first whether they are still files, since a pipe
        would block the thread that sends, for ever.
        """

        def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
            for file in files:
                try:
                    read_pem(file)
                except OSError as error:
                    raise requests.RequestException(f"{file}: {error.strerror}") from error
            return super().merge_environment_settings(url, proxies, stream, trusted or verify, cert)

    return {
        "session": Session(),
        "endpoint": settings.url,
        "certificate_file": trusted,
        "client_key_file": _path(settings.client_key),
        "client_certificate_file": _path(settings.client_certificate),
        "headers": _headers(settings),
        "timeout": settings.timeout,
        "compression": Compression.Gzip if settings.compression == "gzip" else Compression.NoCompression,
    }


def own_resource() -> Resource:
    """The service, as the Collector describes itself."""
    attributes: Mapping[str, str] = {
        "service.name": _SERVICE,
        "service.version": __version__,
        "service.instance.id": _INSTANCE,
    }
    return Resource(attributes)


@contextlib.contextmanager
def without_variables(environ: MutableMapping[str, str]) -> Iterator[None]:
    """Hide OTEL_* variables for a moment, in which the SDK would take from them what it is not given."""
    hidden = {name: environ.pop(name) for name in [*environ] if name.startswith("OTEL_")}
    try:
        yield
    finally:
        environ.update(hidden)


def _headers(settings: OtlpPushSettings) -> dict[str, str]:
    return {key: reveal(value) for key, value in settings.headers.items()}


def _path(file: Path | None) -> str | None:
    return None if file is None else str(file)
