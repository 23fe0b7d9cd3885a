"""`statsig-otel explain`: each step's verdict on a payload, for people and as JSON."""

import hmac
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from statsig_otel.plugin.cli import explanation
from statsig_otel.plugin.cli.main import main
from statsig_otel.plugin.record.record import uid
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings
from statsig_otel.plugin.webhook.body import ParsedBody, parse, parse_url_verification
from statsig_otel.plugin.webhook.errors import MalformedBodyError
from statsig_otel.plugin.webhook.signature import sign
from tests.looped import looped
from tests.plugin.strategies import arrays, config_changes, json_texts

ROOT: Final = Path(__file__).parents[3]
DATA: Final = ROOT / "tests" / "data"
PAGE: Final = (ROOT / "docs" / "mapping.md").read_text(encoding="utf-8")
SAMPLE: Final[dict[str, Any]] = json.loads(re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)[0])
EXPOSURE: Final = {"eventName": "statsig::gate_exposure"}
SECRET: Final = "webhook-s3cr3t"
AT_MS: Final = 1739400185400
CONFIG: Final = """
receivers: {{statsig: {{signing_secrets: [old, webhook-s3cr3t], {keys}}}}}
exporters: {{debug: {{}}}}
service: {{pipelines: {{logs: {{receivers: [statsig], exporters: [debug]}}}}}}
"""


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of the machine configures anything here."""
    for name in [name for name in os.environ if name.startswith(("OTEL_", "STATSIG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def written(body: object) -> Path:
    path = Path("payload.json")
    path.write_bytes(body if isinstance(body, bytes) else json.dumps(body).encode())
    return path


def explain(body: object, *args: str, keys: str = "") -> Result:
    Path("config.yaml").write_text(CONFIG.format(keys=keys))
    return CliRunner().invoke(main, ["explain", str(written(body)), "--config", "config.yaml", *args])


def as_json(body: object, *args: str, keys: str = "", exit_code: int = 0) -> Any:
    result = explain(body, "--json", *args, keys=keys)
    assert result.exit_code == exit_code, result.output
    return json.loads(result.output)


def change(**metadata: object) -> dict[str, Any]:
    return {**SAMPLE, "metadata": {**SAMPLE["metadata"], **metadata}}


def record(item: Mapping[str, Any]) -> dict[str, Any]:
    """The one log record of an explained item."""
    (request,) = item["records"]
    found: dict[str, Any] = request["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]
    return found


def texts(item: Mapping[str, Any]) -> dict[str, str]:
    return {one["key"]: one["value"].get("stringValue") for one in record(item)["attributes"]}


def test_the_page_shows_what_is_printed() -> None:
    """Line for line and in this order; lines between them are left out there."""
    shown = re.findall(r"```text\n(Receiver:.*?)```", PAGE, re.DOTALL)[0].splitlines()
    result = explain([EXPOSURE, change(name="tmp_1"), SAMPLE], keys='filter: {exclude: {names: ["tmp_*"]}}')
    assert result.exit_code == 0
    printed = iter(result.output.splitlines())
    assert [line for line in shown if line not in printed] == []


def test_an_item_that_is_nested_too_deeply_is_explained_beside_the_others() -> None:
    deep = json.dumps(SAMPLE).replace('"metadata"', f'"x": {"[" * 100_000 + "]" * 100_000}, "metadata"', 1)
    exposure = json.dumps(EXPOSURE).replace("{", f'{{"x": {"[" * 100_000 + "]" * 100_000}, ', 1)
    explained = as_json(f'{{"data": [{deep}, 1, {exposure}, {json.dumps(SAMPLE)}]}}'.encode())
    assert [(item["outcome"], item["reason"]) for item in explained["items"]] == [
        ("invalid", "is nested too deeply"),
        ("ignored", "is a number, not an event"),
        ("ignored", "is statsig::gate_exposure, not a config change"),
        ("change", None),
    ]


def test_a_timestamp_in_seconds_is_told() -> None:
    seconds = {**SAMPLE, "timestamp": SAMPLE["timestamp"] // 1000}
    assert "the timestamp has ten digits, and is read as seconds" in explain([seconds]).output
    assert [item["in_seconds"] for item in as_json([seconds, SAMPLE])["items"]] == [True, False]


def test_each_item_has_its_outcome() -> None:
    broken = {"eventName": "statsig::config_change", "timestamp": "soon", "metadata": {"type": "Gate", "name": "g"}}
    kept, dropped = change(tags={"a": 1}), change(action="created")
    items = [EXPOSURE, 7, dropped, broken, {}, kept, {"eventName": 1}, []]
    explained = as_json({"data": items}, "--at", str(AT_MS), keys="filter: {include: {actions: [updated]}}")
    assert [(item["outcome"], item["reason"]) for item in explained["items"]] == [
        ("ignored", "is statsig::gate_exposure, not a config change"),
        ("ignored", "is a number, not an event"),
        ("filtered", "no include matches"),
        ("invalid", "timestamp: must be an integer of milliseconds, is a string"),
        ("ignored", "has no event name"),
        ("change", None),
        ("ignored", "has no event name"),
        ("ignored", "is an array, not an event"),
    ]
    assert [item["index"] for item in explained["items"]] == list(range(8))
    found = explained["items"][5]
    assert (found["uid"], found["left_out"]) == (uid(kept), ["metadata.tags"])
    assert record(found)["observedTimeUnixNano"] == f"{AT_MS}000000"
    assert [len(item["records"]) for item in explained["items"]] == [0, 0, 0, 0, 0, 1, 0, 0]
    assert (explained["receiver"], explained["shape"]) == ("statsig", "batch")


@looped(
    ("body", "shape", "outcomes"),
    [
        ([SAMPLE, EXPOSURE], "batch", ["change", "ignored"]),
        ({"data": [SAMPLE]}, "batch", ["change"]),
        ({"data": SAMPLE}, "event", ["change"]),
        (SAMPLE, "event", ["change"]),
        ({**SAMPLE, "data": [EXPOSURE, 1]}, "event", ["change"]),
        ({"data": EXPOSURE}, "event", ["ignored"]),
        ({**EXPOSURE, "data": {"a": 1}}, "event", ["ignored"]),
        ({"data": []}, "batch", []),
        (b'[NaN, %s, "\\ud800"]' % json.dumps(SAMPLE).encode(), "batch", ["ignored", "change", "ignored"]),
        (b"[%s]" % (b"9" * 5000), "batch", ["ignored"]),
    ],
)
def test_the_shapes_of_a_body(body: object, shape: str, outcomes: list[str]) -> None:
    explained = as_json(body)
    assert (explained["shape"], [item["outcome"] for item in explained["items"]]) == (shape, outcomes)
    assert explained["size"] == Path("payload.json").stat().st_size


def test_every_recorded_event_is_explained() -> None:
    changes = [one["event"] for one in json.loads((DATA / "config_changes.json").read_bytes())["events"]]
    others = [one["event"] for one in json.loads((DATA / "exposures.json").read_bytes())["events"]]
    items = as_json(changes + others)["items"]
    assert [item["uid"] for item in items] == [*map(uid, changes), *[None] * len(others)]
    assert {item["outcome"] for item in items[len(changes) :]} == {"ignored"}


RULES: Final = StatsigReceiverSettings.model_validate(
    {"signing_secrets": [], "filter": {"include": {"types": ["gate"]}, "exclude": {"names": ["?"]}}}
)
ITEMS: Final = arrays(config_changes(hostile=True) | json_texts(hostile=True))
BODIES: Final = st.one_of(
    ITEMS,
    ITEMS.map('{{"data":{}}}'.format),
    config_changes(hostile=True).map('{{"data":{}}}'.format),
    json_texts(hostile=True),
)


@given(BODIES)
def test_an_explanation_says_what_the_receiver_does(text: str) -> None:
    """Whatever comes: the same changes, the same reasons, and as many items ignored."""
    body = text.encode()
    explained = explanation.explain(body, RULES, resource={}, headers=None, at_ns=1)
    assert explained.verification_code == parse_url_verification(body)
    if explained.verification_code is not None:
        assert (explained.shape, explained.problem, explained.items) == ("url_verification", None, ())
        return
    payload: ParsedBody | None = None
    problem: str | None = None
    try:
        payload = parse(body)
    except MalformedBodyError as error:
        problem = str(error)
    assert (explained.problem, explained.shape is None) == (problem, payload is None)
    if payload is None:
        assert explained.items == ()
        return
    mapped = RULES.mapper().map(payload, 1)
    items = explained.items
    assert [(item.uid, item.records) for item in items if item.uid] == [
        (one.uid, one.records) for one in mapped.changes
    ]
    assert [item.reason for item in items if item.outcome == "invalid"] == [one.reason for one in mapped.invalid]
    assert len(items) == payload.count
    assert len([item for item in items if item.outcome in ("filtered", "ignored")]) == mapped.ignored


def test_a_url_verification_is_answered_whatever_its_signature_is() -> None:
    body = json.loads((DATA / "url_verification.json").read_bytes())["request"]
    explained = as_json(body)
    assert (explained["shape"], explained["verification_code"], explained["items"]) == (
        "url_verification", "abc123", [],
    )  # fmt: skip
    result = explain(body, "--signature", "v0=1")
    assert "Signature: not needed" in result.output
    assert "the receiver answers with its code, abc123" in result.output


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"{", "the body is not JSON"),
        (b"\xff", "the body is not UTF-8 at byte 0"),
        (b"{}", "the body is neither a batch of events nor one event"),
    ],
)
def test_a_malformed_body_is_exit_code_1(body: bytes, problem: str) -> None:
    explained = as_json(body, exit_code=1)
    assert explained["problem"].startswith(problem)
    assert (explained["shape"], explained["items"]) == (None, [])
    result = explain(body)
    assert result.exit_code == 1
    assert f"malformed: {problem}" in result.output


def test_nothing_but_invalid_items_is_exit_code_1() -> None:
    broken = {**SAMPLE, "metadata": None}
    as_json([broken, broken], exit_code=1)
    as_json([broken, SAMPLE])
    as_json([broken, EXPOSURE])


@pytest.mark.parametrize(
    ("secret", "late_ms", "reason"),
    [
        (SECRET, None, None),
        ("old", None, None),
        ("other", None, "signature_wrong"),
        (SECRET, 300_000, None),
        (SECRET, 300_001, "timestamp_outside_tolerance"),
    ],
)
def test_a_signature_is_checked_at_its_time_or_at_another(secret: str, late_ms: int | None, reason: str | None) -> None:
    """With every secret of the receiver, over the bytes of the file."""
    body = json.dumps([SAMPLE], indent=1).encode()
    signature = hmac.new(secret.encode(), b"v0:%d:%s" % (AT_MS, body), sha256).hexdigest()
    at = [] if late_ms is None else ["--at", str(AT_MS + late_ms)]
    explained = as_json(body, "--signature", f"v0={signature}", "--timestamp", str(AT_MS), *at)
    assert explained["signature"] == {"checked": True, "right": reason is None, "reason": reason}
    assert explained["items"][0]["outcome"] == "change"


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["--signature", "v0=" + 64 * "0"], "timestamp_missing"),
        (["--timestamp", str(AT_MS)], "signature_missing"),
        (["--signature", "v0=\x1b", "--timestamp", str(AT_MS)], "signature_malformed"),
        (["--signature", "v0=" + 64 * "0", "--timestamp", "soon"], "timestamp_malformed"),
    ],
)
def test_a_header_that_is_missing_or_malformed(args: list[str], reason: str) -> None:
    assert as_json([SAMPLE], *args)["signature"]["reason"] == reason
    result = explain([SAMPLE], *args)
    assert f"Signature: {reason}: the receiver answers 401" in result.output
    assert result.exit_code == 0


def test_without_headers_the_signature_is_not_checked() -> None:
    assert as_json([SAMPLE])["signature"] == {"checked": False, "right": None, "reason": None}


def test_a_time_is_milliseconds_or_a_moment_with_its_offset() -> None:
    for at in (str(AT_MS), "2025-02-12T22:43:05.400Z", "2025-02-12T23:43:05.400+01:00"):
        assert record(as_json([SAMPLE], "--at", at)["items"][0])["observedTimeUnixNano"] == f"{AT_MS}000000"
    for at in ("", "soon", "2025-02-12T22:43:05", "1969-12-31T23:59:59Z", "2600-01-01T00:00:00Z", "1739400185"):
        assert explain([SAMPLE], "--at", at).exit_code == 2, at


@pytest.mark.parametrize("keys", ["user: hash, hash_key: k3y", "user: drop"])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_users_that_the_receiver_hides_are_not_shown(keys: str, form: list[str]) -> None:
    """Not in the record, and not where an item is invalid or filtered by its actor."""
    broken = {**SAMPLE, "timestamp": None}
    actor = {**SAMPLE, "user": {**SAMPLE["user"], "email": "bot@example.com"}}
    rule = "filter: {exclude: {actors: [bot@*]}}"
    result = explain([SAMPLE, broken, actor], *form, keys=f"{keys}, {rule}")
    assert "exclude[0] matches" in result.output
    for value in ("Test User", "test.user", "user_1", "bot@", "k3y", SECRET):
        assert value not in result.output
    hashed = hmac.new(b"k3y", b"Test User", sha256).hexdigest()
    assert (hashed in result.output) == ("hash" in keys)


def test_the_record_is_the_mapped_one_with_the_resource() -> None:
    keys = "mapping: {body: '{name}!', event_name: mine, drop: ['change_event.*']}, resource: {team: flags}"
    explained = as_json([SAMPLE], keys=keys)
    found = record(explained["items"][0])
    assert (found["eventName"], found["body"]) == ("mine", {"stringValue": "checkout_v2!"})
    assert not [key for key in texts(explained["items"][0]) if key.startswith("change_event.")]
    resource = explained["items"][0]["records"][0]["resourceLogs"][0]["resource"]["attributes"]
    assert {"key": "team", "value": {"stringValue": "flags"}} in resource


SERVICES: Final = (
    "impacted_services: {split: %s, rules: [{name: ['{tags}', x], match: {names: [checkout_v2]}}, "
    "{name: payments, namespace: shop, match: {tags: [core]}}, {name: core}]}"
)


def test_the_services_of_a_change_are_told_with_their_rules() -> None:
    explained = as_json([SAMPLE, change(name="cart")], keys=SERVICES % "true")
    first, second = explained["items"]
    assert first["services"] == [
        {"name": "core", "namespace": None, "rules": [0, 2]},
        {"name": "payments", "namespace": None, "rules": [0]},
        {"name": "x", "namespace": None, "rules": [0]},
        {"name": "payments", "namespace": "shop", "rules": [1]},
    ]
    resources = [one["resourceLogs"][0]["resource"]["attributes"][0] for one in first["records"]]
    assert [one["value"]["stringValue"] for one in resources] == ["core", "payments", "x", "payments"]
    assert [one["rules"] for one in second["services"]] == [[1], [2]]
    assert as_json([SAMPLE, EXPOSURE])["items"][0]["services"] is None


def test_each_record_stands_below_its_service() -> None:
    lines = explain([SAMPLE, change(name="cart", tags=[])], keys=SERVICES % "true").output.splitlines()
    found = [
        line.strip() for line in lines if line.startswith(("Item", "  for", "  concerns")) or "service.name" in line
    ]
    assert [re.sub(r"[0-9a-f]{32}", "UID", re.sub(" +", " ", line)) for line in found] == [
        "Item 0: change: UID",
        "for the service core, by rules[0], rules[2] of impacted_services", "-> service.name core",
        "for the service payments, by rules[0] of impacted_services", "-> service.name payments",
        "for the service x, by rules[0] of impacted_services", "-> service.name x",
        "for the service shop/payments, by rules[1] of impacted_services",
        "-> service.name payments", "-> service.namespace shop",
        "Item 1: change: UID",
        "for the service core, by rules[2] of impacted_services", "-> service.name core",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (SERVICES % "false", "concerns the service shop/payments, by rules[1] of impacted_services"),
        ("impacted_services: {rules: {name: a, match: {names: [b]}}}", "concerns no service: no rule of "),
        (
            "impacted_services: {rules: {name: '{metadata.many}'}}",
            "concerns 101 services, too many for one record each",
        ),
    ],
)
def test_one_record_of_several_services_or_of_none_is_told(keys: str, told: str) -> None:
    body = [change(many=[f"a{index}" for index in range(101)])]
    output = explain(body, keys=keys).output
    assert f"\n  {told}" in output
    assert "\n  for " not in output
    assert len(as_json(body, keys=keys)["items"][0]["records"]) == 1


def test_nothing_of_a_payload_acts_on_the_terminal() -> None:
    evil = "\x1b[2J\u202e\u009b\ud800"
    items = [{"eventName": evil}, change(name=evil, description=f"a\n{evil}")]
    shown = explain(items).output
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert "is \\x1b[2J\\u202e\\x9b\\ud800, not a config change" in shown
    assert explain(items, "--json").output.isascii()
    assert as_json(items)["items"][1]["outcome"] == "change"


def test_items_in_a_row_with_one_outcome_take_one_line() -> None:
    output = explain([EXPOSURE, EXPOSURE, EXPOSURE, SAMPLE, SAMPLE, EXPOSURE]).output
    assert re.findall(r"^Items? .*?: \w+", output, re.MULTILINE) == [
        "Items 0 to 2: ignored", "Item 3: change", "Item 4: change", "Item 5: ignored",
    ]  # fmt: skip


def test_a_body_that_is_too_large_is_told() -> None:
    keys = "max_request_body_size: 10B"
    assert as_json([SAMPLE], keys=keys)["too_large"] is True
    assert "the receiver answers 413" in explain([SAMPLE], keys=keys).output
    assert as_json([SAMPLE])["too_large"] is False


def test_one_of_several_receivers_has_to_be_named() -> None:
    more = ("--config", "yaml:receivers::statsig/b: {signing_secrets: [], path: /b, mapping: {body: b}}", "--config",
            "yaml:service::pipelines::logs::receivers: [statsig, statsig/b]")  # fmt: skip
    result = explain([SAMPLE], *more)
    assert result.exit_code == 2
    assert "There are: statsig, statsig/b." in result.output
    assert explain([SAMPLE], *more, "--receiver", "statsig/c").exit_code == 2
    explained = as_json([SAMPLE], *more, "--receiver", "statsig/b", "--timestamp", "1")
    assert (explained["receiver"], explained["signature"]["reason"]) == ("statsig/b", "no_secret")
    assert record(explained["items"][0])["body"] == {"stringValue": "b"}
    assert record(as_json([SAMPLE], *more, "--receiver", "statsig")["items"][0])["body"] != {"stringValue": "b"}


def test_errors_of_the_configuration_and_of_the_call() -> None:
    result = explain([SAMPLE], keys="mapping: {body: '{nane}'}")
    assert result.exit_code == 1
    assert "{nane}, which is not a field of a change" in result.output
    assert explain([SAMPLE], "--nothing").exit_code == 2
    missing = CliRunner().invoke(main, ["explain", "nowhere.json"])
    assert missing.exit_code == 2
    assert "The file can't be read" in missing.output


def test_a_process_explains_its_standard_input_with_the_environment_as_configuration() -> None:
    body = json.dumps([SAMPLE]).encode()
    headers = sign(body, secret=SECRET, timestamp_ms=AT_MS)
    command = [sys.executable, "-m", "statsig_otel", "explain", "-", "--json"]
    command += ["--signature", headers["X-Statsig-Signature"]]
    command += ["--timestamp", headers["X-Statsig-Request-Timestamp"]]
    environment = {**os.environ, "STATSIG_SIGNING_SECRET": SECRET, "OTEL_RESOURCE_ATTRIBUTES": "team=flags"}
    done = subprocess.run(command, input=body, env=environment, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    explained = json.loads(done.stdout)
    assert explained["signature"]["right"] is True
    assert explained["items"][0]["uid"] == uid(SAMPLE)
    assert b'"flags"' in done.stdout
