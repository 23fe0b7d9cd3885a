"""Checks the hosts and ports that exporters connect to."""

import re
from ipaddress import IPv4Address, IPv6Address
from typing import Final

_NAME: Final = re.compile(r"(?=.{1,254}\Z)(?:[A-Za-z0-9_][A-Za-z0-9_-]{0,62}\.)*[A-Za-z0-9_][A-Za-z0-9_-]{0,62}\.?")
_DOTTED: Final = re.compile(r"(?:[0-9]+\.){3,}[0-9]+")
_PORT: Final = re.compile(r"[0-9]{1,5}")
MAX_PORT: Final = 65535


def host_and_port(value: str) -> tuple[str, str]:
    """An address in two parts: the port is empty if there is none, and `:` if nothing follows the colon."""
    if value.startswith("[") or value.count(":") == 1:
        host, colon, port = value.rpartition(":")
        return (host, port or ":") if colon and not port.endswith("]") else (value, "")
    return value, ""


def is_host(value: str) -> bool:
    """Whether this is a name (RFC 1035, section 2.3.4), an IPv4 address, or an IPv6 address in brackets."""
    try:
        if value[:1] == "[" and value[-1:] == "]" and "%" not in value:
            return bool(IPv6Address(value[1:-1]))
        if _DOTTED.fullmatch(value):
            return bool(IPv4Address(value))
    except ValueError:
        return False
    return _NAME.fullmatch(value) is not None


def is_port(value: str) -> bool:
    """Whether this is a port that a client can connect to."""
    return bool(_PORT.fullmatch(value)) and 0 < int(value) <= MAX_PORT
