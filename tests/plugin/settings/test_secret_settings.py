"""The settings that hold a secret are known, and no error of any settings shows one.

A new setting fails here until the canaries of tests/e2e/canaries.py have it, or until it is listed as public below.
"""

import json
import re
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin

from statsig_otel.config import Opaque, Settings
from statsig_otel.config.values import OrList, ReadApart, ReadAs, is_path
from statsig_otel.exporters.kafka.settings import KafkaSaslSettings
from statsig_otel.plugin import verify
from statsig_otel.plugin.settings.catalog import BUILT_IN
from statsig_otel.plugin.webhook.signature import Verifier, sign
from tests.e2e.canaries import SPECIAL, Canaries, parts_of, secrets_in, spellings, values_in

PAGE: Final = Path(__file__).parents[3] / "docs" / "security.md"
CANARY: Final = "s3cr3t-0123456789abcdef"

ADDRESSES: Final = {
    "AuditLogSettings.endpoint", "HealthCheckSettings.endpoint", "KafkaSettings.brokers",
    "MetricsPushSettings.endpoint", "OtlpGrpcSettings.authority", "OtlpGrpcSettings.endpoint",
    "OtlpHttpSettings.endpoint", "OtlpHttpSettings.logs_endpoint", "PrometheusReaderSettings.host",
    "SpanPushSettings.endpoint", "StatsigReceiverSettings.endpoint", "ZpagesSettings.endpoint", "ZpagesSettings.hosts",
    *(f"{kind}TlsSettings.server_name_override" for kind in ("Client", "Grpc", "Kafka")),
}  # fmt: skip
"""Text where somebody may write a URL with a password or a key in it. No error says these."""

PUBLIC: Final = {
    # What records say, and which there are.
    *(f"ChangeMatchSettings.{name}" for name in ("actions", "actors", "environments", "names", "projects")),
    *(f"ChangeMatchSettings.{name}" for name in ("tags", "target_apps", "types")),
    *(f"LookupSettings.{name}" for name in ("default", "lookup", "table")),
    *(f"MappingSettings.{name}" for name in ("attributes", "body", "drop", "event_name", "rename")),
    *(f"MappingSettings.{name}" for name in ("severity_number", "severity_text")),
    *("AuditLogSettings.ignore", "ImpactedServicesSettings.namespace", "StatsigReceiverSettings.resource"),
    *("ServiceRuleSettings.name", "ServiceRuleSettings.namespace"),
    # Names.
    *("HeaderSettings.name", "KafkaLogsSettings.topic", "KafkaSaslSettings.username", "KafkaSettings.client_id"),
    "SendingQueueSettings.storage",
    # What anybody who asks is answered, and where.
    *("HealthCheckSettings.path", "ResponseBodySettings.healthy", "ResponseBodySettings.unhealthy"),
    *("StatsigReceiverSettings.health_path", "StatsigReceiverSettings.path"),
}
"""All other text that is not secret by its type. Paths of files are not listed: they are never secret."""


@dataclass(frozen=True)
class Leaf:
    """A value that a setting consists of.

    Attributes:
        path: Where it stands in a configuration. `[]` is an element, and `*` any name.
        setting: The model and the field, as in `KafkaSaslSettings.password`.
        kind: `Opaque`, `str`, `Path`, a number, or `Literal` for words.
    """

    path: str
    setting: str
    kind: Any


def leaves(annotation: Any, path: str, setting: str = "") -> Iterator[Leaf]:
    """What a value of a type may consist of, at every depth."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _of_annotated(arguments[0], arguments[1:], path, setting)
    elif isinstance(annotation, type) and issubclass(annotation, Settings):
        for name, info in annotation.model_fields.items():
            yield from leaves(info.rebuild_annotation(), f"{path}::{name}", f"{annotation.__name__}.{name}")
    elif origin is Literal or not arguments:
        yield Leaf(path, setting, origin or annotation)
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        yield from leaves(arguments[1], f"{path}::*", setting)
    else:
        inside = f"{path}[]" if isinstance(origin, type) and issubclass(origin, Sequence) else path
        for one in arguments:
            yield from leaves(one, inside, setting)


def _of_annotated(annotation: Any, marks: Sequence[object], path: str, setting: str) -> Iterator[Leaf]:
    if is_path(None, marks):
        yield Leaf(path, setting, Path)
    elif not any(isinstance(mark, ReadApart) for mark in marks):
        read_as = next((mark.type for mark in marks if isinstance(mark, ReadAs)), annotation)
        for one in (read_as, *(mark.items for mark in marks if isinstance(mark, OrList))):
            yield from leaves(one, path, setting)


def every_leaf() -> list[Leaf]:
    """Of all that a configuration can have, without what other distributions add."""
    sections = {
        f"{kind}::{type_}": BUILT_IN.models(kind, type_)
        for kind in ("receivers", "exporters", "extensions")
        for type_ in BUILT_IN.of(kind) or ()
    }
    sections["telemetry"] = (BUILT_IN.telemetry,)
    return [leaf for path, models in sections.items() for model in models for leaf in leaves(model, path)]


def secret_paths() -> set[str]:
    """Where secrets stand in a configuration. A list of headers becomes a mapping."""
    return {leaf.path.replace("headers[]::value", "headers::*") for leaf in every_leaf() if leaf.kind is Opaque}


def canaries(folder: Path) -> Canaries:
    found = Canaries(folder, defaultdict(lambda: "127.0.0.1:9"))
    found.write()
    return found


def test_every_secret_setting_has_canaries_of_its_own(tmp_path: Path) -> None:
    """If this fails for a new setting, give it one in tests/e2e/canaries.py."""
    given = list(secrets_in(canaries(tmp_path).read()))
    assert {path for path, _ in given} == secret_paths()
    places: dict[str, set[str]] = {}
    for path, secret in given:
        places.setdefault(secret, set()).add(path)
    assert {secret for secret, paths in places.items() if len(paths) > 1} == {SPECIAL}


def test_every_other_text_is_listed_as_public_or_as_an_address() -> None:
    """If this fails for a new setting: is it a secret? Then its type is `Secret`."""
    assert {leaf.setting for leaf in every_leaf() if leaf.kind is str} == ADDRESSES | PUBLIC
    assert not ADDRESSES & PUBLIC


def test_the_page_names_every_secret_setting() -> None:
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    told = page.partition("secret by their type: ")[2].partition(". ")[0]
    names = {path.removesuffix("[]").removesuffix("::*").rpartition("::")[2] for path in secret_paths()}
    assert set(re.findall("`([a-z_]+)`", told)) == names


def every_right_one(folder: Path) -> list[Settings]:
    """All settings that the configuration of canaries consists of."""
    return [one for _, one in values_in(canaries(folder).read()) if isinstance(one, Settings)]


def every_model() -> dict[str, type[Settings]]:
    """All settings of this distribution, by name."""
    left, found = [Settings], dict[str, type[Settings]]()
    while left:
        model = left.pop()
        left += model.__subclasses__()
        if model.__module__.startswith("statsig_otel."):
            found[model.__name__] = model
    return found


FORMS: Final[Sequence[Callable[[str], object]]] = (
    lambda one: one,
    lambda one: [one],
    lambda one: {"a": one},
    lambda one: [{"name": "a", "valeu": one}],
)
"""What may be written by mistake where a number, a word, a list or a mapping belongs."""

OF_SECRETS: Final[Sequence[Callable[[str], object]]] = (
    *FORMS,
    *(lambda one: f" {one}", lambda one: f"{one}\n", lambda one: f'"{one}"', lambda one: f"{one}\u00e9"),
    *(lambda one: "${env:" + one + "}", lambda one: one.encode(), lambda one: Opaque(f"{one} ")),
    *(lambda one: [[one], f"{one}\n"], lambda one: {"a": [one], "b": f"{one}\n"}, lambda one: {f"a:{one}": None}),
    *(lambda one: [{"name": "a", "value": f"{one}\n"}], lambda one: [{"name": "a", "value": [one]}]),
    lambda one: f"-----BEGIN PRIVATE KEY-----\n{one}\n-----END PRIVATE KEY-----",
)
"""The same for a secret."""


OF_ADDRESSES: Final[Sequence[Callable[[str], object]]] = (
    *(lambda one: f"https://user:{one}@host:4317/x", lambda one: f"user:{one}@host:9092"),
    *(lambda one: f"https://host/v1/logs?key={one}", lambda one: f"kafka://user:{one}@[host"),
    *(lambda one: [f"https://user:{one}@host:4317/x"], lambda one: [f"user:{one}@host", f"h?key={one}"]),
)
"""The same for an address."""


def said_of(make: Callable[..., object], *args: object, **kwargs: object) -> str:
    """The traceback of what is wrong, with the errors behind it, which Python prints too; empty if nothing is wrong."""
    try:
        make(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - whatever it is, Python would print it
        return "".join(traceback.format_exception(error, limit=0)) + repr(error)  # the lines of code take long
    return ""


def forms_of(setting: str, kinds: set[Any]) -> Sequence[Callable[[str], object]]:
    """The mistakes that are made with a setting which is of these kinds, with a secret in them."""
    if setting in PUBLIC or Path in kinds:
        return ()
    if setting in ADDRESSES:
        return OF_ADDRESSES
    return OF_SECRETS if Opaque in kinds else FORMS


def wrong_values(model: type[Settings]) -> Iterator[tuple[str, object]]:
    """Values for each field of a model, and for one that it has not."""
    kinds: dict[str, set[Any]] = {}
    for leaf in leaves(model, ""):
        kinds.setdefault(leaf.setting, set()).add(leaf.kind)
    for name in (*model.model_fields, "unknown"):
        setting = f"{model.__name__}.{name}"
        yield from ((name, form(CANARY)) for form in forms_of(setting, kinds.get(setting, set())))


def test_no_traceback_of_what_is_wrong_in_code_contains_a_secret(tmp_path: Path) -> None:
    """All settings there are, with the canaries in them where they have any, and a mistake in each of their fields."""
    right = {type(one).__name__: one for one in every_right_one(tmp_path)}
    refused, leaks = set[str](), dict[str, list[str]]()
    for name, model in every_model().items():
        one = right.get(name)
        values = {key: getattr(one, key) for key in one.model_fields_set} if one else {}
        hidden = spellings(CANARY).union(*(parts_of(secret) for _, secret in secrets_in(one)))
        for field, value in wrong_values(model):
            if said := said_of(model, **{**values, field: value}):
                refused.add(name)
                if lines := [line for line in said.splitlines() if any(part in line for part in hidden)]:
                    leaks[f"{name}.{field}"] = lines
    assert leaks == {}
    assert refused == every_model().keys()


def test_no_traceback_of_a_wrong_copy_or_of_wrong_json_contains_a_secret() -> None:
    sasl = KafkaSaslSettings(mechanism="PLAIN", username="writer", password=CANARY)
    calls: Sequence[Callable[[object], object]] = (
        lambda one: sasl.model_copy(update={"mechanism": one}),
        lambda one: sasl.model_copy(update={"password": [one]}),
        lambda one: KafkaSaslSettings.model_validate({"password": [one]}),
        lambda one: KafkaSaslSettings.model_validate_json(json.dumps({"password": [one]})),
        lambda one: KafkaSaslSettings.model_validate_json(f'{{"password": "{one}'),
        lambda one: KafkaSaslSettings.model_validate_strings({"mechanism": one, "password": one}),
    )
    for call in calls:
        said = said_of(call, CANARY)
        assert said
        assert CANARY not in said


def test_settings_print_no_secret(tmp_path: Path) -> None:
    for one in every_right_one(tmp_path):
        hidden = {part for _, secret in secrets_in(one) for part in parts_of(secret)}
        printed = f"{one} {one!r} {one.model_dump()} {one.model_dump_json()}"
        assert not [part for part in hidden if part in printed], one


def test_what_takes_a_signing_secret_says_none() -> None:
    """In code secrets are also given to functions."""
    calls: Sequence[Callable[[Any], object]] = (
        Verifier,
        lambda one: sign(b"{}", secret=one, timestamp_ms=0),
        lambda one: verify(b"", signature="", timestamp="", secrets=one, now_ms=0),
        Opaque,
    )
    for call in calls:
        said = "".join(said_of(call, form(CANARY)) for form in OF_SECRETS)
        assert said
        assert CANARY not in said
