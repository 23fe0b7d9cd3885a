"""Which proxy of the environment a request goes through: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY."""

import os
import re
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies_environment

_PORTS: Final = {"http": 80, "https": 443}
# An entry of NO_PROXY.
_ENTRY: Final = re.compile(r"(?:\[(?P<bracketed>[^\[\]]+)\]|(?P<name>[^:]+|.*:.*:.*))(?::(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy.

    Attributes:
        host: Its host.
        port: Its port.
        authorization: The header Proxy-Authorization, which is a secret; empty for none.
        password: The password in it.
        credentials: The user and the password, as the URL has them.
    """

    host: str
    port: int
    authorization: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    credentials: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def url(self) -> str:
        """Its URL, which is a secret if it has credentials."""
        return f"http://{self.credentials}@{self}" if self.credentials else f"http://{self}"

    @property
    def headers(self) -> dict[str, str]:
        """The headers for the proxy, in addition to those of the request."""
        return {"Proxy-Authorization": self.authorization} if self.authorization else {}


def proxy_for(url: SplitResult) -> Proxy | None:
    """The proxy for a URL by the environment, in lower or upper case; None for none. Loopback needs none, as in Go.

    Raises:
        ValueError: The variable is not the URL of an HTTP proxy. Its value, which may contain a password, is not told.
    """
    proxies = getproxies_environment()
    key = url.scheme if proxies.get(url.scheme) else "all"
    name = f"{key}_proxy"
    name = name if os.environ.get(name) else name.upper()
    return _proxy(name, proxies.get(key, ""), url, proxies.get("no", ""))


def grpc_proxy_for(target: str) -> Proxy | None:
    """The proxy for a gRPC target; None for none. Only targets with names and ports (`dns:`) have one, as in grpcio.

    The first variable that is set counts, be it empty. These are grpcio's, and in upper case too those that a Collector
    reads.

    Raises:
        ValueError: As in `proxy_for`.
    """
    if not target.startswith("dns:"):
        return None
    name, given = _first_set("grpc_proxy", "https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY")
    _, no_proxy = _first_set("no_grpc_proxy", "no_proxy", "NO_PROXY")
    return _proxy(name, given, urlsplit(f"https://{target.rpartition('/')[2]}"), no_proxy)


def proxy_secrets() -> Iterator[str]:
    """The passwords that the environment has for proxies, in each form in which a library may quote them."""
    for given in getproxies_environment().values():
        with suppress(ValueError):
            proxy = _proxy("", given, urlsplit("https://any.invalid"), "")
            if proxy is not None:
                yield from (proxy.password, proxy.credentials, proxy.authorization.removeprefix("Basic "))


def _first_set(*names: str) -> tuple[str, str]:
    """The name and the value of the first environment variable that is set; empty strings for none."""
    return next(((name, os.environ[name]) for name in names if name in os.environ), ("", ""))


def _proxy(name: str, given: str, url: SplitResult, no_proxy: str) -> Proxy | None:
    """The proxy that a variable names, if this URL needs one."""
    host = (url.hostname or "").rstrip(".")
    if not given or _is_loopback(host) or _bypasses(host, url.port or _PORTS[url.scheme], no_proxy):
        return None
    hint = f"such as http://proxy:3128; or write {host} into NO_PROXY, to send without a proxy"
    try:
        parts = urlsplit(given if "://" in given else f"http://{given}")
        port = parts.port or _PORTS["http"]
    except ValueError:
        raise ValueError(f"the environment variable {name} is not a URL: write one, {hint}") from None
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"the environment variable {name} must be the URL of an HTTP proxy, {hint}")
    credentials, at, _ = parts.netloc.rpartition("@")
    if not at:
        return Proxy(parts.hostname, port)
    password = unquote(parts.password or "")
    basic = b64encode(f"{unquote(parts.username or '')}:{password}".encode()).decode()
    return Proxy(parts.hostname, port, f"Basic {basic}", password, credentials)


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _bypasses(host: str, port: int, no_proxy: str) -> bool:
    """Whether NO_PROXY names the host.

    An entry is a name, which also stands for all names below it (`example.com`, `.example.com` or `*.example.com`), an
    address, a network in CIDR notation, or `*`. A name or an address may have a port.
    """
    address = _address(host)
    for entry in no_proxy.lower().replace(",", " ").split():
        found = _ENTRY.fullmatch(entry)
        if found is None or (found["port"] and int(found["port"]) != port):
            continue
        name = found["bracketed"] or found["name"]
        bare = name.removeprefix("*").strip(".")
        if name == "*" or (bare and (host == bare or host.endswith(f".{bare}"))):
            return True
        with suppress(ValueError):  # it is neither an address nor a network
            if address is not None and address in ip_network(name, strict=False):
                return True
    return False


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
