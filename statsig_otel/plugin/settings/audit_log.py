"""The settings of `audit_log` of a receiver: how Statsig's audit log is read, and how long arrivals are remembered."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from statsig_otel.config.errors import SettingError
from statsig_otel.config.model import Settings
from statsig_otel.config.opaque import Opaque
from statsig_otel.config.units import Duration
from statsig_otel.config.values import Secret
from statsig_otel.exporters.network.tls import ClientTlsSettings
from statsig_otel.plugin.audit_log import URL
from statsig_otel.plugin.settings.zpages import is_loopback
from statsig_otel.plugin.webhook.secret import NO_QUOTES, is_in_quotes

_KEY: Final = "write a console key that may only read, such as ${env:STATSIG_CONSOLE_KEY}"
_OTHER_KEYS: Final = {
    "webhook-": "a webhook's signing secret",
    "secret-": "a server secret key",
    "client-": "a client key",
}


def check_key(key: Opaque) -> Opaque:
    """Check a console key.

    Raises:
        SettingError: No key looks like this.
    """
    text = key.reveal()
    if not text:
        raise SettingError("is empty", _KEY)
    if is_in_quotes(text):
        raise SettingError("begins or ends with a quotation mark", NO_QUOTES)
    if not text.isascii() or not text.isprintable() or " " in text:
        raise SettingError("contains a space, a control character or one outside ASCII", "write the key alone")
    for prefix, kind in _OTHER_KEYS.items():
        if text.startswith(prefix):
            raise SettingError(f"is {kind}, which can't read the audit log", _KEY)
    return key


class AuditLogSettings(Settings):
    """`audit_log` of a receiver."""

    needed: ClassVar[Mapping[str, str]] = {"api_key": _KEY}
    meant: ClassVar[Mapping[str, str]] = {"key": "api_key", "retention": "keep", "url": "endpoint"}

    api_key: Annotated[Secret, AfterValidator(check_key)] = Field(
        description="A console key of the project, of a role that may only read."
    )
    keep: Duration = Field(
        default=30 * 86_400.0, gt=0, description="For how long what came is remembered; longer than `grace`."
    )
    tolerance: Duration = Field(
        default=2.0,
        ge=0,
        le=3600,
        description="How far the times of a change in the log, in whole seconds, and in its webhook may be apart.",
    )
    interval: Duration = Field(
        default=300.0,
        ge=0,
        description="How often the running service compares the log with what came; 0 is never, and then only "
        "`statsig-otel reconcile` does.",
    )
    grace: Duration = Field(
        default=900.0, ge=0, description="How old a change has to be to be missed: the log and the webhook may be late."
    )
    ignore: list[str] = Field(
        default_factory=list,
        description="Types of the log's entries, such as config_add_tag, for which your project sends no webhook. They "
        "are never called missed.",
    )
    backfill: bool = Field(
        default=False,
        description="Make records of missed changes from the log, once they are older than `grace`. Their "
        "statsig.origin is audit_log, and the log says less than a webhook.",
    )
    enrich: bool = Field(
        default=False,
        description="Send the old and new values of changes that came, in events of their own "
        "(statsig.config_change.details).",
    )
    endpoint: str = Field(default=URL, description="The URL of the log.")
    timeout: Duration = Field(default=30.0, gt=0, description="The time for one request.")
    tls: ClientTlsSettings = Field(default_factory=ClientTlsSettings, description="The client's side of TLS.")

    @model_validator(mode="after")
    def _check_times(self) -> "AuditLogSettings":
        for key in ("backfill", "enrich"):
            if getattr(self, key) and not self.interval:
                raise SettingError(f"{key} needs the running service to read the log", "leave interval out")
        if self.keep <= self.grace + self.tolerance:
            raise SettingError("nothing that is remembered would ever be compared", "make keep longer than grace")
        return self

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, url: str) -> str:
        hint = f"write the whole URL, such as {URL}"
        try:
            parts = urlsplit(url)
            is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            raise SettingError("is not a URL", hint) from None
        if not is_url or not url.isascii() or not url.isprintable() or " " in url:
            raise SettingError("is not a URL", hint)
        if "@" in parts.netloc or "?" in url or "#" in url:
            raise SettingError("must have no credentials, no query and no fragment", hint)
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            raise SettingError("would send the key without encryption", "write https://")
        return url
