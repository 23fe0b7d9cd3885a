"""Checks addresses to listen on and paths to serve, for the settings of several components."""

import re
from typing import Annotated, Final, TypeAlias

from pydantic import AfterValidator

from statsig_otel.config.errors import SettingError
from statsig_otel.exporters.hosts import MAX_PORT
from statsig_otel.plugin.receiver.handover import PLAIN_PATH, RULE_OF_PATHS

_ENDPOINT: Final = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.%]+)\]|(?P<host>[^\s:/\[\]]*)):(?P<port>[0-9]{1,5})")


def check_endpoint(endpoint: str) -> str:
    """An endpoint that is `host:port`.

    Raises:
        SettingError: It is not.
        ValueError: The port is too large.
    """
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None:
        raise SettingError("must be host:port, such as localhost:8080 or 0.0.0.0:8080", "no scheme and no path")
    if int(match["port"]) > MAX_PORT:
        raise ValueError(f"the port must be at most {MAX_PORT}")
    return endpoint


ListenEndpoint: TypeAlias = Annotated[str, AfterValidator(check_endpoint)]
"""Where a server listens, as `host:port`."""


def address_of(endpoint: str) -> tuple[str, int]:
    """Host and port of an endpoint that was checked."""
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None:
        raise ValueError("the endpoint was not checked")
    return match["v6"] or match["host"], int(match["port"])


def check_path(path: str, default: str) -> str:
    """A path that a request has letter by letter.

    Raises:
        SettingError: It has another form.
    """
    if not PLAIN_PATH.fullmatch(path):
        raise SettingError(f"must {RULE_OF_PATHS}", f"the default is {default}")
    return path
