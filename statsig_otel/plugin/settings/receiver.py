"""The settings of a `statsig` receiver."""

import math
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType
from typing import Annotated, ClassVar, Final

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from statsig_otel import _attributes
from statsig_otel._arguments import check_type
from statsig_otel.config.errors import ConfigError, Fault, SettingError
from statsig_otel.config.model import Settings, replaced, resolved
from statsig_otel.config.opaque import Opaque, reveal
from statsig_otel.config.units import Duration, Size
from statsig_otel.config.values import ReadAs, Secret
from statsig_otel.exporters.routing import DEFAULT_WINDOW
from statsig_otel.plugin.audit_log.records import LogRecords, OnlyAttributes
from statsig_otel.plugin.receiver.bodies import Limits
from statsig_otel.plugin.receiver.intake import Intake
from statsig_otel.plugin.record.mapper import Mapper
from statsig_otel.plugin.record.mapping import SERVICE_FIELDS, parse_template
from statsig_otel.plugin.record.record import (
    DEFAULT_RESOURCE,
    MAX_RECORD_BYTES,
    EncoderOfSettings,
    IncludeOriginal,
    RecordHook,
    UserMode,
)
from statsig_otel.plugin.record.serializer import AttributeValue
from statsig_otel.plugin.server.tls import ServerTlsSettings
from statsig_otel.plugin.settings.addresses import ListenEndpoint, address_of, check_path
from statsig_otel.plugin.settings.audit_log import AuditLogSettings
from statsig_otel.plugin.settings.filter import FilterSettings, blocks_of
from statsig_otel.plugin.settings.mapping import MappingSettings, check_integer
from statsig_otel.plugin.settings.resource import (
    misshapen_variables,
    references_in_variables,
    resource_from_environment,
)
from statsig_otel.plugin.settings.services import ImpactedServicesSettings
from statsig_otel.plugin.webhook import DEFAULT_PATH
from statsig_otel.plugin.webhook.secret import NO_QUOTES, fault_of_secret, is_in_quotes
from statsig_otel.plugin.webhook.signature import Verifier

_ORIGINAL: Final = (_attributes.ORIGINAL, _attributes.ORIGINAL_SIZE, _attributes.ORIGINAL_HASH)


_TEMPLATE_KEYS: Final = {"event_name", "body", "severity_number", "severity_text", "attributes"}
"""The keys of a mapping that have templates."""


def _fault_of_field(name: str, receiver: "StatsigReceiverSettings") -> Fault | None:
    """The fault of a template with a field that no change of a receiver has, and the key to set; None if one may."""
    what = f"has {{{name}}}, which no change has"
    if name in _attributes.DETAILS and not receiver.include_change_details:
        return Fault(f"{what} without include_change_details", "set include_change_details: true")
    log = receiver.audit_log
    if name in _attributes.FROM_LOG and not (log and (log.backfill or log.enrich)):
        return Fault(f"{what} without audit_log::backfill", "set backfill: true there")
    if name in _ORIGINAL and not receiver.include_original:
        return Fault(f"{what} without include_original", "set include_original: true")
    services = receiver.impacted_services
    if name in (*SERVICE_FIELDS, _attributes.CHANGE_UID, _attributes.IMPACTED_SERVICES) and services is None:
        return Fault(f"{what} without impacted_services", "add rules to impacted_services")
    if name in (*SERVICE_FIELDS, _attributes.CHANGE_UID) and not (services and services.split):
        return Fault(f"{what} with impacted_services::split: false", "set split: true there")
    return None


def _wrong_templates(receiver: "StatsigReceiverSettings") -> Iterator[InitErrorDetails]:
    """An error for each template with a field that no change can have, with the path of the template."""
    values = receiver.model_dump(include={"mapping": _TEMPLATE_KEYS, "impacted_services": True})
    for path, text in _strings(values, ()):
        if path[:2] == ("impacted_services", "rules") and "match" in path[2:4]:
            continue  # patterns
        for name in parse_template(text).names:
            if fault := _fault_of_field(name, receiver):
                error = SettingError(*fault)
                kind = PydanticCustomError("value_error", "Value error, {error}", {"error": error})
                yield InitErrorDetails(type=kind, loc=path, input=text)
                break


def _strings(value: object, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """The strings in a value at a path, each after its own path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping | list):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _strings(item, (*path, key))


_LOWEST_LIMIT: Final = 10_000
"""Bytes, for `max_record_bytes`. A lower limit would make dead letters of ordinary changes."""
_COPY: Final = "copy it from the Statsig console, from webhook- to its last letter"
ResourceValue = str | bool | int | float | list[str] | list[bool] | list[int] | list[float]


def check_secret(secret: Opaque) -> Opaque:
    """Check a signing secret: it looks like one, or is empty, since it is not known yet.

    Raises:
        SettingError: No secret looks like this.
    """
    if secret.reveal() and (fault := fault_of_secret(secret.reveal())):
        raise SettingError(*fault)
    return secret


def check_secrets(secrets: list[Opaque]) -> list[Opaque]:
    """A list of signing secrets, which are not all empty.

    Raises:
        ValidationError: All are; it has an error for each.
    """
    if any(secret.reveal() for secret in secrets):
        return secrets
    error = PydanticCustomError("value_error", "Value error, {error}", {"error": SettingError("is empty", _COPY)})
    wrong = [InitErrorDetails(type=error, loc=(index,), input="") for index in range(len(secrets))]
    if wrong:
        raise ValidationError.from_exception_data("signing_secrets", wrong)
    return secrets


_Secrets = Annotated[
    Sequence[Secret], ReadAs(list[Annotated[Opaque, AfterValidator(check_secret)]]), AfterValidator(check_secrets)
]


class DeduplicationSettings(Settings):
    """`deduplication` of a receiver."""

    window: Duration = Field(
        default=DEFAULT_WINDOW, ge=0, description="For how long a change that was seen is a duplicate; 0 is never."
    )


class StatsigReceiverSettings(Settings):
    """One receiver: an address, a path, its secrets, and how its records look.

    Example:
        >>> from statsig_otel.plugin import ParsedBody, StatsigReceiverSettings
        >>> settings = StatsigReceiverSettings.model_validate({"signing_secrets": ["webhook-..."], "user": "drop"})
        >>> (settings.endpoint, settings.signing_secrets)
        ('localhost:8080', [[REDACTED]])
        >>> intake = settings.intake()  # for an application of your own
        >>> len(settings.mapper().map(ParsedBody(0, ()), observed_ns=0).changes)  # for a replay of your own
        0
    """

    unsupported: ClassVar[Mapping[str, str]] = {
        "auth": "leave it out: every request is checked against signing_secrets",
        "compression_algorithms": "leave it out: Statsig does not compress, and what is compressed is refused with 415",
        "cors": "leave it out: webhooks come from servers, not from browsers",
        "idle_timeout": "use read_header_timeout, which closes idle connections too",
        "include_metadata": "leave it out: only the changes in a request are passed on",
        "include_tls_metadata": "leave it out: only the changes in a request are passed on",
        "keepalive": "use read_header_timeout, which closes idle connections too",
        "keep_alives_enabled": "leave it out: connections are kept, and read_header_timeout closes idle ones",
        "middlewares": "run a proxy in front of it",
        "response_headers": "let a proxy in front of it add them",
        "transport": "leave it out: it listens on TCP",
        "write_timeout": "leave it out: answers are tiny",
    }
    implied: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "auth": ({},),
        "compression_algorithms": ([],),
        "cors": ({},),
        "include_metadata": (False,),
        "keep_alives_enabled": (True,),
        "middlewares": ([],),
        "response_headers": ({}, []),
        "transport": ("tcp",),
    }

    meant: ClassVar[Mapping[str, str]] = {
        "dedup": "deduplication::window",
        "deduplication_window": "deduplication::window",
        "max_body_size": "max_request_body_size",
        "secret": "signing_secrets",
        "secrets": "signing_secrets",
        "timeout": "read_timeout",
        "tolerance": "timestamp_tolerance",
        "url": "endpoint",
    }
    # Not []: whoever leaves it there gets no change at all.
    needed: ClassVar[Mapping[str, str]] = {"signing_secrets": 'write ["${env:STATSIG_SIGNING_SECRET}"]'}

    endpoint: ListenEndpoint = Field(
        default="localhost:8080", description="Where to listen, as host:port.", examples=["0.0.0.0:8080"]
    )
    path: str = Field(default=DEFAULT_PATH, description="The path of the webhook's URL.")
    signing_secrets: _Secrets = Field(
        description="The signing secrets of the webhook, several while one is rotated; an empty one is a place for the "
        "next. [] is the set-up mode: it answers Statsig's URL verification and refuses all else.",
        examples=[["${env:STATSIG_SIGNING_SECRET}"], ["${file:/run/secrets/statsig}"], []],
    )
    timestamp_tolerance: Duration = Field(
        default=300.0, ge=0, description="How far a request's timestamp may be from the time now, both ways."
    )
    max_request_body_size: Size = Field(default=20 << 20, gt=0, description="The largest body.")
    max_in_flight_bytes: Size = Field(
        default=128 << 20,
        gt=0,
        description="The most that the bodies for all receivers of the endpoint may take in memory together.",
    )
    read_header_timeout: Duration = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="The time for a request's header; idle connections are closed after it.",
    )
    read_timeout: Duration = Field(default=30.0, gt=0, description="The time for a whole body.")
    max_connections: int = Field(default=1000, gt=0, description="Connections at a time.")
    tls: ServerTlsSettings | None = Field(default=None, description="Serve HTTPS.")
    health_path: str | None = Field(
        default=None,
        description="A path of the same server where GET and HEAD are answered with 200 while webhooks are taken, and "
        "with 503 while not, for load balancers. Without it there is none.",
    )
    resource: dict[str, ResourceValue] = Field(
        default_factory=dict,
        description="Attributes of the records' resource, over those of the environment.",
        examples=[{"deployment.environment.name": "production"}],
    )
    user: UserMode = Field(default="full", description="Who made a change: in full, hashed, or left out.")
    hash_key: Secret | None = Field(default=None, description="The key for user: hash.")
    deduplication: DeduplicationSettings = Field(
        default_factory=DeduplicationSettings,
        description="Redelivered changes, which are answered and not exported again.",
    )
    lowercase_environments: bool = Field(
        default=False, description="Write environments in lower case: Production and production are one then."
    )
    include_original: IncludeOriginal = Field(
        default=False,
        description="Add the item's own JSON text as log.record.original. redacted shows its user as `user` says.",
    )
    include_change_details: bool = Field(
        default=False, description="Add what the description says as statsig.change.* attributes: rules, rollouts, ..."
    )
    max_record_bytes: Size = Field(
        default=MAX_RECORD_BYTES,
        ge=_LOWEST_LIMIT,
        description="The largest record, encoded. A larger one loses log.record.original. If it is still too large, "
        "its change becomes a dead letter, which can be replayed under a higher limit.",
    )
    filter: FilterSettings | None = Field(
        default=None, description="Which changes are exported; without it, all. The others are answered as ignored."
    )
    mapping: MappingSettings | None = Field(
        default=None, description="How the records look; without it, as in the reference mapping."
    )
    impacted_services: ImpactedServicesSettings | None = Field(
        default=None, description="Which services a change concerns; without it, none."
    )

    audit_log: AuditLogSettings | None = Field(
        default=None,
        description="Experimental. Remember what comes, and find in Statsig's audit log what did not come. Without it "
        "nothing is remembered.",
    )

    @field_validator("path")
    @classmethod
    def _check_path(cls, path: str) -> str:
        return check_path(path, DEFAULT_PATH)

    @field_validator("health_path")
    @classmethod
    def _check_health_path(cls, path: str | None) -> str | None:
        return None if path is None else check_path(path, "none; /healthz would do")

    @field_validator("resource", mode="before")
    @classmethod
    def _check_resource(cls, resource: object) -> object:
        for key, value in resource.items() if isinstance(resource, dict) else ():
            if not key:
                raise ValueError("has an attribute without a name")
            for element in value if isinstance(value, list) else [value]:
                if isinstance(element, float) and not math.isfinite(element):
                    raise SettingError(f"{key} is not a finite number", "write it as a string")
                check_integer(element, f"{key} ")
        return resource

    @field_validator("hash_key")
    @classmethod
    def _check_hash_key(cls, key: str | Opaque | None) -> str | Opaque | None:
        """Refuse a slip of copying. It would only show where another program has to find the same hashes."""
        text = "" if key is None else reveal(key)
        if text != text.strip() or not text.isprintable():
            raise SettingError(
                "begins or ends with white space, or contains a control character", "write the key alone"
            )
        if is_in_quotes(text):
            raise SettingError("begins or ends with a quotation mark", NO_QUOTES)
        return key

    @model_validator(mode="after")
    def _check_sizes(self) -> "StatsigReceiverSettings":
        if self.max_in_flight_bytes < self.max_request_body_size:
            raise ValueError("max_in_flight_bytes must be at least max_request_body_size: no larger body could pass")
        return self

    @model_validator(mode="after")
    def _check_user(self) -> "StatsigReceiverSettings":
        if self.user == "hash" and (self.hash_key is None or not reveal(self.hash_key)):
            raise ValueError("user: hash needs a hash_key that is not empty")
        if self.user != "hash" and self.hash_key is not None:
            raise ValueError("hash_key is used with user: hash only")
        if self.user != "full" and self.include_original is True:
            raise SettingError(
                f"include_original: true would show the users that user: {self.user} hides",
                "write include_original: redacted",
            )
        if self.user == "full" and self.include_original == "redacted":
            raise SettingError(
                "include_original: redacted hides the users that user: full shows", "set user: hash, or user: drop"
            )
        return self

    @model_validator(mode="after")
    def _check_fields(self) -> "StatsigReceiverSettings":
        errors = list(_wrong_templates(self))
        if errors:
            raise ValidationError.from_exception_data("StatsigReceiverSettings", errors)
        return self

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the endpoint."""
        return address_of(self.endpoint)

    def verifier(self) -> Verifier:
        """The verifier of the requests' signatures."""
        return Verifier(
            [reveal(secret) for secret in self.signing_secrets],
            tolerance=self.timestamp_tolerance,
        )

    def mapper(
        self, resource: Mapping[str, AttributeValue] | None = None, *, environ: Mapping[str, str] | None = None
    ) -> Mapper:
        """The mapper that a running receiver has, with this filter, mapping and these services.

        Args:
            resource: Attributes of the records' resource. The settings' own `resource` takes precedence. `$${` in a
                value is `${`.
            environ: Where OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME are read, as by `Service`, such as
                `os.environ`; None for nowhere. `resource` overrides them.

        Raises:
            TypeError: The resource is not a mapping.
            ConfigError: An attribute of the resource is a reference such as `${env:NAME}`, or `environ` is not a
                mapping of strings.
        """
        check_type("resource", resource, (Mapping, NoneType), "a mapping or None")
        environ = {} if environ is None else environ
        problems = list(misshapen_variables(environ)) or list(references_in_variables(environ))
        resource = resolved(resource or {}, ("resource",), problems)
        if problems:
            raise ConfigError(problems)
        resource = {**resource_from_environment(environ), **resource}
        mapping = self.mapping.create() if self.mapping else None
        return Mapper(
            _encoder(self, resource, mapping, include_original=self.include_original),
            self.filter.create() if self.filter else None,
            self.impacted_services.create() if self.impacted_services else None,
            remembers=self.audit_log is not None,
        )

    def intake(
        self,
        name: str = "statsig",
        resource: Mapping[str, AttributeValue] | None = None,
        *,
        environ: Mapping[str, str] | None = None,
    ) -> Intake:
        """The intake with these secrets, limits and this mapper, for a framework or a consumer of your own.

        Args:
            name: The receiver's id, such as `statsig` or `statsig/eu`.
            resource: See `mapper`.
            environ: See `mapper`.

        Raises:
            TypeError: An argument has another type.
            ConfigError: See `mapper`.
        """
        limits = Limits(
            max_request_body_size=self.max_request_body_size,
            max_in_flight_bytes=self.max_in_flight_bytes,
            read_timeout=self.read_timeout,
        )
        return Intake(verifier=self.verifier(), mapper=self.mapper(resource, environ=environ), name=name, limits=limits)


def log_records(settings: StatsigReceiverSettings) -> LogRecords:
    """What makes records of the audit log for a receiver, whose settings have all of the resource.

    They have no original: there is no item.
    """
    mapping = settings.mapping.create() if settings.mapping else None
    change_filter = settings.filter
    return LogRecords(
        _encoder(settings, {}, mapping),
        _encoder(settings, {}, OnlyAttributes(mapping)),
        include=blocks_of(change_filter.include) if change_filter else (),
        exclude=blocks_of(change_filter.exclude) if change_filter else (),
        services=settings.impacted_services.create() if settings.impacted_services else None,
    )


def _encoder(
    settings: StatsigReceiverSettings,
    resource: Mapping[str, AttributeValue],
    mapping: RecordHook | None,
    *,
    include_original: IncludeOriginal = False,
) -> EncoderOfSettings:
    return EncoderOfSettings(
        resource={**DEFAULT_RESOURCE, **resource, **settings.resource},
        user=settings.user,
        hash_key=reveal(settings.hash_key) if settings.hash_key else None,
        include_original=include_original,
        lowercase_environments=settings.lowercase_environments,
        include_change_details=settings.include_change_details,
        mapping=mapping,
        max_record_bytes=settings.max_record_bytes,
    )


def with_resource(settings: StatsigReceiverSettings, resource: Mapping[str, AttributeValue]) -> StatsigReceiverSettings:
    """Settings with more attributes of a resource, from the environment or from a service, as they are."""
    return replaced(settings, resource={**resource, **settings.resource})
