"""Long inputs that lead readers astray. A step that costs the square of the length would not end within the timeout."""

import json
from collections.abc import Callable
from typing import Final

import pytest

from statsig_otel.exporters.network import answers
from statsig_otel.exporters.otlp import status
from statsig_otel.exporters.otlp.settings import OtlpGrpcSettings
from statsig_otel.exporters.terminal import printable, shorten
from statsig_otel.plugin.record.filter import ChangeFilter
from statsig_otel.plugin.record.mapper import Mapper
from statsig_otel.plugin.record.record import LogRecordEncoder
from statsig_otel.plugin.webhook.body import CONFIG_CHANGE, parse
from statsig_otel.plugin.webhook.errors import MalformedBodyError

pytestmark = pytest.mark.slow

LENGTH: Final = 1_000_000
"""Characters: a step for each pair of them takes an hour or more."""


def times(piece: str) -> str:
    return piece * (LENGTH // len(piece))


def change(**metadata: object) -> str:
    return json.dumps(
        {"eventName": CONFIG_CHANGE, "timestamp": 1, "metadata": {"type": "Gate", "name": "a", **metadata}}
    )


BODIES: Final[dict[str, Callable[[], str]]] = {
    "the end of a rollout again and again": lambda: change(
        description=f"updated rule {times(' rollout from 1 to 1')}x"
    ),
    "the beginning of a rule again and again": lambda: change(description=times("updated rule ")),
    "recognised lines": lambda: change(description=times("Updated rule a pass percentage from 1 to 2\n")),
    "bullets": lambda: change(description=times("- ")),
    "names of groups": lambda: change(description=f"groups added: {','.join(map(str, range(LENGTH // 8)))}"),
    "environments": lambda: change(environments=",".join(map(str, range(LENGTH // 8)))),
    "tags": lambda: change(tags=list(map(str, range(LENGTH // 10)))),
    "a name for a pattern with stars": lambda: change(name=times("a")),
    "a type of separators": lambda: change(type=times("a _")),
    "unknown members": lambda: json.dumps(json.loads(change()) | {f"k{i}": i for i in range(LENGTH // 16)}),
    "changes without an end": lambda: "[" + times('{"eventName":"statsig::config_change",'),
    "small changes": lambda: (
        f"[{times(chr(123) + chr(34) + 'eventName' + chr(34) + ':' + json.dumps(CONFIG_CHANGE) + '},')}1]"
    ),
    "the name of changes in a string": lambda: f'[{{"a":"{times(CONFIG_CHANGE)}"}}]',
    "braces in a string": lambda: f'[{{"a":"{times("{")}","eventName":"{CONFIG_CHANGE}"}}]',
    "brackets": lambda: times("["),
    "objects beside what is not JSON": lambda: f"[NaN,{times(chr(123) + chr(34) + 'a' + chr(34) + ':1},')}1]",
    "values beside what is not JSON": lambda: f"[NaN,{times('1,')}1]",
    "backslashes": lambda: f'[NaN,"{times(chr(92) * 2)}"]',
    "beginnings of escapes": lambda: f'["{times(chr(92) + "u00")}"]',
    "an envelope again and again": lambda: "{" + times('"data":[],') + '"x":1}',
    "digits": lambda: f"[{times('9')}]",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_body(body: Callable[[], str]) -> None:
    stars = {"names": ["*a*a*a*a*a*a*b"], "types": ["*[!x]*[!x]*[!x]*y"], "environments": ["*1*2*3*4*5"]}
    mappers = [
        Mapper(LogRecordEncoder(include_original=True, include_change_details=True)),
        Mapper(change_filter=ChangeFilter(include=[{field: patterns} for field, patterns in stars.items()])),
    ]
    try:
        payload = parse(body().encode())
    except MalformedBodyError:
        return
    for mapper in mappers:
        mapper.map(payload, 1)


@pytest.mark.parametrize("text", ["s3cr3t-0123 ", "[", "x", "\x1b", "&quot;", "%41", "\u4e2d"])
def test_what_a_backend_answers(text: str) -> None:
    for content_type in ("text/plain", "application/json", answers.PROTOBUF):
        answers.http_failure(
            400,
            times(text).encode(),
            content_type=content_type,
            retry_after="9" * 60_000,
            hide=["Bearer s3cr3t-0123456"],
        )
    settings = OtlpGrpcSettings(endpoint="localhost:4317")
    status.grpc_failure(16, times(text), times(text).encode(), settings=settings)
    shorten(printable(times(text)), 40)
