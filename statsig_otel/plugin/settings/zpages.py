"""The settings of the `zpages` extension, with the Collector's names where it has them."""

import ipaddress
import re
from collections.abc import Mapping
from typing import ClassVar, Final

from pydantic import Field, field_validator, model_validator

from statsig_otel.config.errors import SettingError
from statsig_otel.config.model import Settings
from statsig_otel.config.opaque import Opaque, reveal
from statsig_otel.config.values import Secret, without_credentials
from statsig_otel.plugin.server.tls import ServerTlsSettings
from statsig_otel.plugin.settings.addresses import ListenEndpoint, address_of

_SHORTEST: Final = 16
_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")


class ZpagesSettings(Settings):
    """The `zpages` extension: a live page that shows what arrives, what is sent, and what is wrong."""

    unsupported: ClassVar[Mapping[str, str]] = {
        "auth": "write token, or tls with client_ca_file",
        "cors": "leave it out: no other page may read this one",
        "expvar": "leave it out: docs/metrics.md has the service's own metrics",
        "response_headers": "leave it out: the page's own headers are strict",
    }
    implied: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "auth": ({},),
        "cors": ({},),
        "expvar": ({"enabled": False},),
        "response_headers": ({},),
    }

    endpoint: ListenEndpoint = Field(
        default="localhost:55679",
        description="Where to listen, as host:port. An address that other machines reach needs `token` or "
        "`tls::client_ca_file`.",
    )
    token: Secret | None = Field(
        default=None,
        description="What a reader has to present: as a bearer token, or in a browser as the password, with any name. "
        f"At least {_SHORTEST} ASCII characters.",
    )
    hosts: list[str] = Field(
        default_factory=list,
        description="Other host names by which the page is reached, such as that of a proxy in front of it. Addresses, "
        "localhost and the endpoint's own name need no entry.",
    )
    tls: ServerTlsSettings | None = Field(default=None, description="To serve HTTPS.")

    @field_validator("token")
    @classmethod
    def _check_token(cls, token: str | Opaque | None) -> str | Opaque | None:
        if token is not None and (len(reveal(token)) < _SHORTEST or not reveal(token).isascii()):
            raise SettingError(f"must have at least {_SHORTEST} ASCII characters", "openssl rand -hex 32 makes one")
        return token

    @field_validator("hosts")
    @classmethod
    def _check_hosts(cls, hosts: list[str]) -> list[str]:
        for host in hosts:
            if not _HOST.fullmatch(host):
                raise SettingError(
                    f"{without_credentials(host)!r} is not a host name", "no scheme, no port and no path"
                )
        return hosts

    @model_validator(mode="after")
    def _check_reach(self) -> "ZpagesSettings":
        has_client_ca = self.tls is not None and self.tls.client_ca_file is not None
        if not is_loopback(self.address[0]) and self.token is None and not has_client_ca:
            raise SettingError(
                f"other machines reach {self.endpoint}, and the page shows flags and people and changes the queue",
                "listen on localhost, or set token, or tls with client_ca_file",
            )
        return self

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the endpoint."""
        return address_of(self.endpoint)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host name or an address to listen on. Names are not looked up."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
