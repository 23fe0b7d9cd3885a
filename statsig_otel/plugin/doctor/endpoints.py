"""Checks whether the exporters' endpoints answer: name, connection, TLS. Sends no record and no configured header."""

import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import Final

from statsig_otel.config.model import Settings
from statsig_otel.exporters.hosts import MAX_PORT
from statsig_otel.exporters.kafka.settings import KafkaSettings
from statsig_otel.exporters.network.answers import is_client_certificate_alert, server_time
from statsig_otel.exporters.network.proxy import Proxy, grpc_proxy_for, proxy_for
from statsig_otel.exporters.network.tls import ClientTlsSettings
from statsig_otel.exporters.otlp.protocols import SEE_ITS_LOG, Spoken, spoken, spoken_by_error, wrong_port
from statsig_otel.exporters.otlp.settings import OtlpGrpcSettings, OtlpHttpSettings
from statsig_otel.plugin.doctor.brokers import BrokersProbe
from statsig_otel.plugin.doctor.finding import Finding, Status

TIMEOUT: Final = 5.0
"""Seconds for a connection, and as many for TLS."""

_ALL_OF_IT: Final = 3 * TIMEOUT
"""Seconds for one endpoint, since looking up a name has no limit of its own."""

# RFC 9113, section 3.4: the preface of a client, and an empty SETTINGS frame.
_HTTP2_BEGINNING: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_FRAME_HEAD: Final = 9
_TLS_PORT: Final = 443


@dataclass(frozen=True, slots=True)
class _Address:
    """Where an exporter connects to: a host and a port, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""
    tls: ClientTlsSettings | None = None
    protocol: str = "h2"

    def __str__(self) -> str:
        return self.path or f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def check_backends(exporters: Mapping[str, Settings]) -> tuple[list[Finding], list[tuple[str, float]]]:
    """Check all endpoints at the same time.

    Returns:
        The findings; and for each server that tells its time, its exporter and by how many seconds it is ahead of us.
    """
    otlp = (OtlpGrpcSettings, OtlpHttpSettings)
    probes: list[_Probe | BrokersProbe] = [
        _Probe(name, settings) for name, settings in exporters.items() if isinstance(settings, otlp)
    ]
    probes += [BrokersProbe(name, one, TIMEOUT) for name, one in exporters.items() if isinstance(one, KafkaSettings)]
    for probe in probes:
        probe.start()
    deadline = time.monotonic() + _ALL_OF_IT
    for probe in probes:
        probe.join(max(deadline - time.monotonic(), 0))
    offsets = [(probe.exporter, probe.ahead) for probe in probes if probe.ahead is not None]
    return [probe.finding for probe in probes], offsets


def _address(settings: OtlpGrpcSettings | OtlpHttpSettings) -> _Address | None:
    """The address to connect to; None for a name that only grpcio can look up."""
    tls = settings.tls if settings.uses_tls else None
    if isinstance(settings, OtlpHttpSettings):
        url = settings.url
        return _Address(url.hostname or "", url.port or (_TLS_PORT if tls else 80), tls=tls, protocol="http/1.1")
    scheme, _, rest = settings.target.partition(":")
    if scheme == "unix":
        return _Address(path=rest.removeprefix("//"), tls=tls)
    if scheme not in ("dns", "ipv4", "ipv6"):
        return None
    first = rest.rpartition("/")[2].partition(",")[0]
    host, colon, number = first.rpartition(":")
    if not colon or number.endswith("]") or (":" in host and not host.startswith("[")):
        host, number = first, str(_TLS_PORT)
    if not number.isascii() or not number.isdigit() or int(number) > MAX_PORT:
        return None
    return _Address(host.strip("[]"), int(number), tls=tls)


class _Probe(threading.Thread):
    """Checks one endpoint, in a thread that is abandoned if nothing comes back."""

    def __init__(self, exporter: str, settings: OtlpGrpcSettings | OtlpHttpSettings) -> None:
        super().__init__(name=f"probe {exporter}", daemon=True)
        self.exporter = f"exporters::{exporter}"
        self._address = _address(settings)
        self._settings = settings
        self._url = settings.url if isinstance(settings, OtlpHttpSettings) else None
        self._target = settings.target if isinstance(settings, OtlpGrpcSettings) else ""
        self.ahead: float | None = None
        self.finding = self._found("failed", f"no answer within {_ALL_OF_IT:g} s", "check the name service")

    def run(self) -> None:
        try:
            proxy = proxy_for(self._url) if self._url else grpc_proxy_for(self._target)
        except ValueError as error:
            self.finding = self._found("failed", f"can't be reached: {error}")
            return
        if proxy is not None:
            self.finding = self._behind(proxy)
            return
        if self._address is None:
            self.finding = self._found(
                "unknown", "can't be checked: only gRPC's library can resolve this kind of target"
            )
            return
        try:
            with self._connect(self._address) as connection:
                self.finding = self._answered(self._address, connection)
        except socket.gaierror as error:
            self.finding = self._found("failed", f"the name is not known: {error.strerror}", "check the endpoint")
        except OSError as error:
            reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
            hint = "check whether the backend listens there, and the firewalls"
            self.finding = self._found("failed", f"no connection: {reason}", hint)

    def _behind(self, proxy: Proxy) -> Finding:
        """Check the proxy alone, since the exporter connects to nothing else."""
        try:
            socket.create_connection((proxy.host, proxy.port), TIMEOUT).close()
        except OSError as error:
            reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
            hint = "start the proxy, or correct the variable that names it (HTTPS_PROXY, HTTP_PROXY, ...) or NO_PROXY"
            return self._found("failed", f"is reached through the proxy {proxy}, which does not answer: {reason}", hint)
        return self._found("unknown", f"is not checked: it is reached through the proxy {proxy}, which answers")

    def _connect(self, address: _Address) -> socket.socket:
        if not address.path:
            return socket.create_connection((address.host, address.port), TIMEOUT)
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(TIMEOUT)
        try:
            connection.connect(address.path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _answered(self, address: _Address, connection: socket.socket) -> Finding:
        if address.tls is None:
            return self._asked(address, connection, "answers, without TLS")
        try:
            context = address.tls.context(address.tls.read())
        except (OSError, ValueError):
            return self._found("unknown", "answers; TLS can't be tried, since its files can't be used")
        context.set_alpn_protocols([address.protocol])
        name = address.tls.server_name_override or address.host
        try:
            with context.wrap_socket(connection, server_hostname=name or None) as secure:
                if address.protocol == "h2" and secure.selected_alpn_protocol() != "h2":
                    return self._wrong(Spoken.NO_COMMON) or self.finding
                return self._asked(address, secure, f"answers with {secure.version()}")
        except ssl.SSLCertVerificationError as error:
            hint = "name its CA in tls::ca_file, its name in tls::server_name_override"
            return self._found("failed", f"its certificate is not trusted: {error.verify_message}", hint)
        except (ssl.SSLError, ConnectionResetError) as error:
            if is_client_certificate_alert(str(error)):  # with TLS 1.3 it comes after the handshake
                return self._found("failed", "refuses the client certificate", "see tls::cert_file")
            problem = self._wrong(spoken_by_error(error))
            what = "ends the TLS handshake" if "ALERT" in str(error) else "no TLS"
            return problem or self._found("failed", f"{what}: {error}", SEE_ITS_LOG)

    def _asked(self, address: _Address, connection: socket.socket, answers: str) -> Finding:
        """Find out whether the server speaks the exporter's protocol, and what time it has."""
        ask = self._ask_for_settings if address.protocol == "h2" else self._ask_for_the_time
        found: Spoken | None
        try:
            found = ask(address, connection)
        except TimeoutError:
            return self._found("warning", f"{answers}, and says nothing for {TIMEOUT:g} s", "check which port it is")
        except (OSError, HTTPException) as error:
            if isinstance(error, ssl.SSLError) and is_client_certificate_alert(str(error)):
                raise
            found = spoken_by_error(error)
        return self._wrong(found) or self._found("ok", answers)

    def _wrong(self, found: Spoken | None) -> Finding | None:
        fault = wrong_port(found, self._settings)
        if fault is None:
            return None
        may_be_well = found is Spoken.BAD_REQUEST or (found is Spoken.NOTHING and not self._settings.uses_tls)
        return self._found("warning" if may_be_well else "failed", *fault)

    def _ask_for_settings(self, _address: _Address, connection: socket.socket) -> Spoken:
        """Begin a connection of HTTP/2, which the server answers with its settings; of HTTP/1.1, with an error."""
        connection.sendall(_HTTP2_BEGINNING)
        return spoken(connection.recv(_FRAME_HEAD).decode("latin-1"))

    def _ask_for_the_time(self, address: _Address, connection: socket.socket) -> Spoken:
        """Send `GET /`. The answer's Date is in whole seconds, so only a difference of more than one second counts.

        A HEAD would be shorter, and VictoriaLogs answers it with 400.
        """
        client = HTTPConnection(address.host, address.port)
        client.sock = connection
        asked = time.time()
        client.request("GET", "/", headers={"Connection": "close"})
        with client.getresponse() as response:
            date = server_time(response.headers.get("Date", ""))
            refuses = response.status == HTTPStatus.BAD_REQUEST and address.tls is None
        answered = time.time()
        if date is not None:
            self.ahead = max(date - answered, 0.0) + min(date + 1 - asked, 0.0)
        return Spoken.BAD_REQUEST if refuses else Spoken.HTTP1

    def _found(self, status: Status, detail: str, hint: str | None = None) -> Finding:
        where = f"{self._address} " if self._address else ""
        return Finding(self.exporter, status, f"{where}{detail}", hint)
