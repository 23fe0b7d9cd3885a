"""The OTLP/gRPC exporter: sends stored bytes with grpcio, without parsing them."""

from typing import ClassVar, Final

import grpc

from statsig_otel import __version__
from statsig_otel.config.opaque import reveal
from statsig_otel.exporters.exporter import Outcome, RetryLater
from statsig_otel.exporters.network.proxy import Proxy, grpc_proxy_for
from statsig_otel.exporters.otlp.exporter import OtlpExporter
from statsig_otel.exporters.otlp.settings import OtlpGrpcSettings
from statsig_otel.exporters.otlp.status import MAX_RESPONSE_BYTES, grpc_failure

_METHOD: Final = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
_STATUS_DETAILS: Final = "grpc-status-details-bin"
_DEADLINES_UNTIL_RECONNECT: Final = 2
_OPTIONS: Final[tuple[tuple[str, str | int], ...]] = (
    ("grpc.primary_user_agent", f"statsig-otel/{__version__}"),
    ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
    # A backend that has recovered is found within seconds, however long the sender's backoff is.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5000),
    # Otherwise a reopened channel would share the connection of the old one.
    ("grpc.use_local_subchannel_pool", 1),
    # A batch of a backlog has about 1 MiB; with the library's default of 64 KiB it is sent in many small writes.
    ("grpc.http2.write_buffer_size", 1 << 20),
    # Only the sender decides about retries.
    ("grpc.enable_retries", 0),
)


class OtlpGrpcExporter(OtlpExporter[OtlpGrpcSettings]):
    """Sends log records to an OTLP/gRPC receiver. Implements `Exporter`.

    The channel connects when it is needed, and reconnects after a failure. It does not notice a connection that has
    silently died. So after two consecutive calls that exceed their deadline, the next call uses a new channel.
    """

    _protocol: ClassVar[str] = "gRPC"

    def __init__(self, name: str, settings: OtlpGrpcSettings) -> None:
        super().__init__(name, settings)
        self._metadata: tuple[tuple[str, str], ...] = ()
        self._compression = grpc.Compression.Gzip if settings.compression == "gzip" else grpc.Compression.NoCompression
        self._channel: grpc.Channel | None = None
        self._proxy: Proxy | None = None
        self._deadlines_exceeded = 0

    def start(self) -> None:
        """Read the TLS files and create the channel, which connects with the first call.

        Raises:
            OSError: A file of `tls` can't be read.
            ValueError: A file of `tls` does not contain what its key requires, or the environment names a proxy that
                can't be used.
        """
        self._read_material()
        self._proxy = grpc_proxy_for(self._settings.target)
        channel = self._open()
        with self._lock:
            self._channel = channel
        through = f" through the proxy {self._proxy}" if self._proxy else ""
        self._say_where(f"{self._settings.target} over gRPC{through}")

    def send(self, payload: bytes, count: int, timeout: float) -> Outcome:
        """Export one batch. For the parameters and outcomes see `Exporter.send`."""
        with self._lock:
            channel, renewed = self._channel, self._renewed
        if channel is not None and renewed:
            channel = self._reopen(channel)
        if channel is None:
            return RetryLater("the exporter is not running")
        try:
            return self._export(channel, payload, count, timeout)
        except Exception as error:  # noqa: BLE001 - the contract: send never raises
            with self._lock:
                if self._channel is not channel:  # grpcio raises ValueError for a call on a closed channel
                    return RetryLater("the exporter is shutting down")
            return self._unexpected(error)

    def shutdown(self) -> None:
        """Close the channel. A call in progress ends at once with CANCELLED."""
        with self._lock:
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def _open(self) -> grpc.Channel:
        """A new channel by the present settings, whose headers are sent from now on."""
        settings, material = self._settings, self._material
        self._metadata = tuple((key, reveal(value)) for key, value in settings.headers.items())
        self._hide = tuple(value for _, value in self._metadata)
        options = list(_OPTIONS)
        if self._proxy is not None:
            options.append(("grpc.http_proxy", self._proxy.url))
            self._hide += (self._proxy.authorization, self._proxy.password)
        else:
            # The library sends even what is for this machine through a proxy.
            options.append(("grpc.enable_http_proxy", 0))
        if settings.authority or settings.target.startswith("unix"):
            # gRPC would send the path of a Unix socket, which is not an authority (RFC 3986, section 3.2).
            options.append(("grpc.default_authority", settings.authority or "localhost"))
        if settings.tls.server_name_override:
            options.append(("grpc.ssl_target_name_override", settings.tls.server_name_override))
        if settings.keepalive is not None:
            options += [
                ("grpc.keepalive_time_ms", round(settings.keepalive.time * 1000)),
                ("grpc.keepalive_timeout_ms", round(settings.keepalive.timeout * 1000)),
                ("grpc.keepalive_permit_without_calls", int(settings.keepalive.permit_without_stream)),
            ]
        if not settings.uses_tls:
            return grpc.insecure_channel(settings.target, options)
        credentials = grpc.ssl_channel_credentials(material.ca, material.key, material.certificate)
        return grpc.secure_channel(settings.target, credentials, options)

    def _export(self, channel: grpc.Channel, payload: bytes, count: int, timeout: float) -> Outcome:
        # Without serialisers, gRPC takes and returns bytes.
        export: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_METHOD)
        try:
            response, _ = export.with_call(
                payload, timeout=timeout, metadata=self._metadata, compression=self._compression
            )
        except grpc.RpcError as error:
            return self._failure(channel, error)
        self._deadlines_exceeded = 0
        return self._success(response, count)

    def _failure(self, channel: grpc.Channel, error: grpc.RpcError) -> Outcome:
        code = error.code()
        self._deadlines_exceeded = self._deadlines_exceeded + 1 if code is grpc.StatusCode.DEADLINE_EXCEEDED else 0
        if self._deadlines_exceeded >= _DEADLINES_UNTIL_RECONNECT:
            self._reopen(channel)
        details = b""
        for item in error.trailing_metadata() or ():
            if item.key == _STATUS_DETAILS and isinstance(item.value, bytes):
                details = item.value
        return grpc_failure(code.value[0], error.details() or "", details, settings=self._settings, hide=self._hide)

    def _reopen(self, channel: grpc.Channel) -> grpc.Channel | None:
        """Replace a channel that no call uses by a new one; None if the exporter was shut down meanwhile."""
        self._deadlines_exceeded = 0
        with self._lock:
            if self._channel is not channel:
                return None
            self._channel = opened = self._open()
            self._renewed = False
        channel.close()
        return opened
