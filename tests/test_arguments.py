"""Each public callable refuses arguments of a wrong type with a sentence that names the argument."""

import inspect
import math
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from statsig_otel._arguments import why_not_callable
from statsig_otel.config import ConfigError, Opaque, Settings
from statsig_otel.exporters import (
    Arrival,
    Batch,
    Blocked,
    Change,
    DebugSettings,
    Delivered,
    ExporterType,
    Invalid,
    LoggerProviderConsumer,
    PartiallyRejected,
    Receipt,
    RefusedError,
    Rejected,
    RetryLater,
    log_records,
)
from statsig_otel.plugin import (
    ChangeEvent,
    Intake,
    Limits,
    LogRecordEncoder,
    Mapper,
    Request,
    Service,
    StatsigReceiver,
    StatsigReceiverSettings,
    StatsigWsgiReceiver,
    Verifier,
    create_app,
    create_wsgi_app,
    parse,
    parse_url_verification,
    sign,
    verify,
)
from tests.looped import looped
from tests.plugin.adapters import CHANGE, SECRET, body_of
from tests.test_api import API

BODY: Final = body_of(CHANGE)
BATCH: Final = Batch("statsig", (Change("0" * 32, (b"record",)),))
SETTINGS: Final = StatsigReceiverSettings(signing_secrets=[SECRET])
CONSUMER: Final = LoggerProviderConsumer()


def intake() -> Intake:
    return Intake(verifier=Verifier([SECRET]))


def begun() -> Request:
    return intake().begin([], 0)


def service(**arguments: Any) -> Service:
    given = {"receivers": {"statsig": SETTINGS}, "exporters": {"debug": DebugSettings()}, "directory": "queue"}
    return Service(**{**given, **arguments})


def from_file(*, locations: Any = "yaml:", **arguments: Any) -> Service:
    return Service.from_file(locations, **{"environ": {}, **arguments})


def receiver(**arguments: Any) -> StatsigReceiver:
    return StatsigReceiver(**{"intake": intake(), "consumer": CONSUMER, **arguments})


def wsgi_receiver(**arguments: Any) -> StatsigWsgiReceiver:
    return StatsigWsgiReceiver(**{"intake": intake(), "consumer": CONSUMER, **arguments})


def verified(**arguments: Any) -> None:
    given = {"body": b"", "signature": "v0=", "timestamp": "1", "secrets": [SECRET], "now_ms": 1}
    verify(**{**given, **arguments})


def some(call: Callable[..., object], **good: object) -> Callable[..., object]:
    """The callable with good arguments, unless another one is given."""
    return lambda **arguments: call(**{**good, **arguments})


CALLS: Final[dict[str, Callable[..., object]]] = {
    "config.Opaque": Opaque,
    "exporters.Arrival": some(Arrival, uid="0" * 32, second=1, name="gate"),
    "exporters.Batch": some(Batch, receiver="statsig"),
    "exporters.Blocked": some(Blocked, reason="no"),
    "exporters.Change": some(Change, uid="0" * 32, records=(b"record",)),
    "exporters.Delivered": Delivered,
    "exporters.ExporterType": some(ExporterType, settings=DebugSettings, create=print),
    "exporters.Invalid": some(Invalid, text=b"", reason=""),
    "exporters.LoggerProviderConsumer": LoggerProviderConsumer,
    "exporters.LoggerProviderConsumer.consume": CONSUMER.consume,
    "exporters.PartiallyRejected": some(PartiallyRejected, count=1, reason="no"),
    "exporters.Receipt": some(Receipt, accepted=1),
    "exporters.RefusedError": some(RefusedError, message="full", reason="full"),
    "exporters.Rejected": Rejected,
    "exporters.RetryLater": some(RetryLater, reason="later"),
    "exporters.log_records": log_records,
    "plugin.ChangeEvent.from_item": ChangeEvent.from_item,
    "plugin.Intake": some(Intake, verifier=Verifier([SECRET])),
    "plugin.Intake.begin": some(lambda **given: intake().begin(**given), headers=[], now_ns=0),
    "plugin.Intake.report": intake().report,
    "plugin.Limits": Limits,
    "plugin.LogRecordEncoder": LogRecordEncoder,
    "plugin.Mapper": Mapper,
    "plugin.Mapper.concerned": Mapper().concerned,
    "plugin.Mapper.map": some(Mapper().map, parsed=parse(BODY), observed_ns=1),
    "plugin.Request.feed": lambda chunk: begun().feed(chunk),
    "plugin.Request.refused": lambda error: begun().refused(error),
    "plugin.Request.taken": lambda receipt: begun().taken(receipt),
    "plugin.Service": service,
    "plugin.Service.ashutdown": lambda **given: service().ashutdown(**given).send(None),
    "plugin.Service.from_file": from_file,
    "plugin.Service.receiver": lambda name: service().receiver(name),
    "plugin.Service.rotate_secrets": some(
        lambda **given: service().rotate_secrets(**given), receiver="statsig", secrets=[SECRET]
    ),
    "plugin.Service.shutdown": lambda **given: service().shutdown(**given),
    "plugin.Service.wsgi_receiver": lambda name: service().wsgi_receiver(name),
    "plugin.StatsigReceiver": receiver,
    "plugin.StatsigReceiverSettings.intake": SETTINGS.intake,
    "plugin.StatsigReceiverSettings.mapper": SETTINGS.mapper,
    "plugin.StatsigWsgiReceiver": wsgi_receiver,
    "plugin.Verifier": some(Verifier, secrets=[SECRET]),
    "plugin.create_app": create_app,
    "plugin.create_wsgi_app": create_wsgi_app,
    "plugin.parse": parse,
    "plugin.parse_url_verification": parse_url_verification,
    "plugin.sign": some(sign, body=b"", secret=SECRET, timestamp_ms=1),
    "plugin.verify": verified,
}
"""The public callables, with arguments that are right but for those that the test passes."""

UNCHECKED: Final = {
    r"config\.(ConfigError|Problem|SettingError|Settings\..*)": "for settings, and what they raise",
    r"exporters\.(Consumer|Exporter)(\..*)?": "protocols",
    r"plugin\.RecordHook(\..*)?": "a protocol",
    r"exporters\.(DirectoryInUseError|QueueError)": "raised here",
    r"exporters\..*TlsSettings\.context": "for the exporters here",
    r"plugin\.Destination": "checked by Service, with its place",
    r"plugin\.(Answer|AnsweredError|Mapped|ParsedBody|RecordFields|Request|.*BodyError|UnauthorizedError)": "made here",
    r"plugin\.ChangeEvent": "its fields: test_change_event.py",
    r"plugin\.(LogRecordEncoder\..*|Verifier\.begin)": "steps of Mapper and Intake, once for each change",
    r"plugin\.Intake\.(count|reserve|verified|wait_until_idle|warn)": "for the receivers here",
    r"plugin\.Request\.finish": "takes a flag",
    r"plugin\.ServiceRuleSettings\.rule": "for ImpactedServicesSettings",
    r"plugin\.StatsigW?s?g?i?Receiver\.(close|on_.*)": "called by Falcon and by Service",
    r"plugin\.Service\.lifespan": "its argument is not used",
}
"""Those that check nothing, with the reason."""

OTHERWISE: Final = {
    "chunk": "body",
    "locations": r"locations\[0\]",
    "name": "(receiver|name)",
}
"""How a message calls an argument, if not by its name."""


def parameters(path: str, call: Any) -> list[str]:
    """The parameters of a public callable, without flags and words, and without a message, which may be anything."""
    has_signature = inspect.isroutine(call) or (inspect.isclass(call) and call.__init__ is not Exception.__init__)
    found = inspect.signature(call).parameters.values() if has_signature else ()
    is_flag = re.compile(r"<class 'bool'>|(typing\.Union\[bool, |bool \| )?typing\.Literal")
    return [
        one.name
        for one in found
        if one.name not in ("self", "message")
        if path.startswith("plugin.Service") or not is_flag.match(str(one.annotation))
    ]


def public() -> Iterator[tuple[str, list[str]]]:
    """All public functions, constructors and methods that take arguments. Settings are checked by their models."""
    for name, value in API.items():
        if not (inspect.isclass(value) and issubclass(value, Settings)):
            yield name, parameters(name, value)
        for member, method in inspect.getmembers(value, inspect.isroutine) if inspect.isclass(value) else ():
            if method.__qualname__ == f"{name.rpartition('.')[2]}.{member}" and not member.startswith("_"):
                yield f"{name}.{member}", parameters(name, method)


PUBLIC: Final = {path: taken for path, taken in public() if taken and not re.fullmatch("|".join(UNCHECKED), path)}


def test_every_public_callable_is_here() -> None:
    assert set(PUBLIC) == set(CALLS)


@looped("path", CALLS)
def test_an_argument_of_a_wrong_type_is_named(path: str) -> None:
    for parameter in PUBLIC[path]:
        with pytest.raises((TypeError, ConfigError)) as caught:
            CALLS[path](**{parameter: object()})
        said = OTHERWISE.get(parameter, parameter)
        assert re.match(rf"{said}:? must be ", str(caught.value)), parameter


def test_a_mistake_that_is_likely_says_what_to_do(tmp_path: Path) -> None:
    wrong: list[tuple[Callable[[], object], str]] = [
        (lambda: Mapper().map(BODY, 1), "parsed must be a ParsedBody, not bytes: parse(body) makes one"),  # type: ignore[arg-type]
        (lambda: parse("{}"), "body must be bytes, not str: pass the raw body of the request, as it was sent"),  # type: ignore[arg-type]
        (lambda: verified(signature=b"v0="), "signature must be a str, not bytes: pass the value of the header"),
        (lambda: intake().begin([("a", "b")], 0), "headers must be pairs of a name and a value in bytes, such as"),  # type: ignore[list-item]
        (lambda: intake().begin([], time.time()), "now_ns must be an int, not float"),  # type: ignore[arg-type]
        (lambda: Verifier(SECRET), "secrets must be a list of strings, not str"),
        (lambda: SETTINGS.intake("x", {"a": object()}), "resource['a'] must be a string, a number, a boolean"),  # type: ignore[dict-item]
        (lambda: SETTINGS.mapper({"a": ["b", None]}), "resource['a'] must be a string, a number, a boolean"),  # type: ignore[dict-item]
        (lambda: setattr(intake(), "verifier", SECRET), "verifier must be a Verifier, not str"),
        (lambda: setattr(intake(), "mapper", SECRET), "mapper must be a Mapper, not str"),
        (lambda: ExporterType(dict, print), "settings must be a subclass of statsig_otel.config.Settings, not dict"),  # type: ignore[arg-type,type-var]
        (lambda: ChangeEvent.from_item([]), "item must be a mapping, not list: decode its JSON first"),  # type: ignore[arg-type]
        (lambda: service().shutdown(-1), "timeout must be a number of seconds, 0 or more, not -1"),
        (lambda: service().shutdown(math.nan), "timeout must be a number of seconds, 0 or more, not nan"),
        (lambda: service().shutdown(drain=True), "drain must be a number of seconds, not bool"),
        (lambda: RefusedError("full", reason="full", retry_after=True), "retry_after must be an int, not bool"),
        (lambda: Opaque(None), "text must be a str, not None"),  # type: ignore[arg-type]
        (lambda: Delivered(only=[]), "only must not be empty: return the failure instead"),
        (lambda: Delivered(only=[-1]), "only must contain positions from 0 on, in rising order"),
        (lambda: Delivered(only=[1, 1]), "only must contain positions from 0 on, in rising order"),
        (lambda: Delivered(only=1), "only must be a sequence of positions, not int"),  # type: ignore[arg-type]
        (lambda: Delivered(only="1"), "only must be a sequence of positions, not str"),  # type: ignore[arg-type]
        (lambda: Delivered(only=[True]), "only[0] must be an int, not bool"),
        (lambda: PartiallyRejected(0, "none"), "count must be at least 1, not 0"),
        (lambda: RetryLater("later", after="5"), "after must be a number of seconds or None, not str"),  # type: ignore[arg-type]
        (lambda: RetryLater("later", after=True), "after must be a number of seconds or None, not bool"),
        (lambda: RetryLater("later", after=math.nan), "after must be a finite number of seconds, not nan"),
        (lambda: RetryLater("later", may_be_data=1), "may_be_data must be True or False, not int"),  # type: ignore[arg-type]
        (lambda: Receipt("1"), "accepted must be an int, not str"),  # type: ignore[arg-type]
        (lambda: Change("abc-1", (b"record",)), "uid must be 32 hex digits"),
        (lambda: Change("z" * 32, (b"record",)), "uid must be 32 hex digits"),
        (lambda: Change("0" * 32, ()), "records must have at least one record"),
        (lambda: Change("0" * 32, (b"record", b"")), "records must have at least one record, and none that is empty"),
        (lambda: Change("0" * 32, ("a",)), "records[0] must be bytes, not str"),  # type: ignore[arg-type]
        (lambda: Batch("statsig", (1,)), "changes[0] must be a Change, not int"),  # type: ignore[arg-type]
        (lambda: Batch("statsig", invalid=(BODY,)), "invalid[0] must be an Invalid, not bytes"),  # type: ignore[arg-type]
        (lambda: Receipt(True), "accepted must be an int, not bool"),
        (lambda: Receipt(1, -1), "duplicates must not be negative"),
        (lambda: service().consumer.consume({}), "batch must be a Batch, not dict"),  # type: ignore[arg-type]
        (lambda: service(listen="false"), "listen: must be True or False"),
        (
            lambda: from_file(locations=["a.yaml", "b.yaml"]),
            "locations[0]: must be a path or a string\n  hint: give each",
        ),
        (lambda: from_file(locations="a.yaml", environ=None), "environ: must be a mapping\n  hint: give os.environ"),
    ]
    for call, said in wrong:
        with pytest.raises((TypeError, ValueError)) as caught:
            call()
        assert str(caught.value).startswith(said)


def test_the_limits_and_the_name_of_an_intake_stay() -> None:
    for name in ("limits", "name"):
        with pytest.raises(AttributeError):
            setattr(intake(), name, getattr(intake(), name))


class AsyncCall:
    async def __call__(self, batch: Batch) -> Receipt:
        return Receipt(len(batch.changes))


class InItsPlace:
    send = consume = AsyncCall()


def test_an_object_that_is_called_is_looked_at_as_a_method_is() -> None:
    assert why_not_callable(InItsPlace(), "send", "payload") == "has an async send(), and it is called in a thread"
    assert why_not_callable(InItsPlace(), "consume", "batch", may_be_async=True) is None


class Yielding:
    def send(self, payload: bytes) -> Iterator[int]:
        yield 1

    async def consume(self, batch: Batch) -> Any:
        yield batch


def test_a_generator_is_not_a_method_that_answers() -> None:
    for name in ("send", "consume"):
        why = f"has a {name}() with yield, which answers with a generator: use return"
        assert why_not_callable(Yielding(), name, "payload", may_be_async=True) == why
