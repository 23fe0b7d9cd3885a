"""Which proxy of the environment an HTTP request goes through: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY."""

from base64 import b64encode
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies_environment


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy.

    Attributes:
        host: Its host.
        port: Its port.
        authorization: The header Proxy-Authorization, which is a secret; empty for none.
        password: The password in it.
    """

    host: str
    port: int
    authorization: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        """The headers for the proxy, beside those of the request."""
        return {"Proxy-Authorization": self.authorization} if self.authorization else {}


def proxy_for(url: SplitResult) -> Proxy | None:
    """The proxy for a URL by the environment, in lower or upper case; None for none. Loopback needs none, as in Go.

    Raises:
        ValueError: The variable is not the URL of an HTTP proxy. Its value, which may contain a password, is not told.
    """
    proxies = getproxies_environment()
    given = proxies.get(url.scheme) or proxies.get("all")
    host = (url.hostname or "").rstrip(".")
    if not given or _is_loopback(host) or _bypasses(host, url.port, proxies.get("no", "")):
        return None
    name = f"{url.scheme if proxies.get(url.scheme) else 'all'}_proxy"
    try:
        parts = urlsplit(given if "://" in given else f"http://{given}")
        port = parts.port or 80
    except ValueError:
        raise ValueError(f"the environment variable {name} is not a URL, such as http://proxy:3128") from None
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"the environment variable {name} must be the URL of an HTTP proxy, such as http://proxy:3128")
    if parts.username is None:
        return Proxy(parts.hostname, port)
    password = unquote(parts.password or "")
    credentials = f"{unquote(parts.username)}:{password}"
    return Proxy(parts.hostname, port, f"Basic {b64encode(credentials.encode()).decode()}", password)


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _bypasses(host: str, port: int | None, no_proxy: str) -> bool:
    """Whether NO_PROXY names the host: by its name, a domain above it, its address, or a network in CIDR notation."""
    address = _address(host)
    for entry in filter(None, (entry.strip().lower() for entry in no_proxy.split(","))):
        name = entry.lstrip(".").removesuffix(f":{port}")
        if entry == "*" or host == name or host.endswith(f".{name}"):
            return True
        with suppress(ValueError):  # it is not a network
            if address is not None and address in ip_network(entry, strict=False):
                return True
    return False


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
