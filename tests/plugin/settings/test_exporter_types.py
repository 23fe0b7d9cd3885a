"""Exporters that installed distributions add: real distributions in a folder on sys.path, and the commands."""

import json
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner, Result

from statsig_otel.config.configuration import Configuration
from statsig_otel.config.errors import ConfigError
from statsig_otel.config.grammar import check
from statsig_otel.config.source import parse
from statsig_otel.exporters import (
    Batch,
    Change,
    DebugSettings,
    Delivered,
    FileSettings,
    KafkaSettings,
    OtlpGrpcSettings,
    OtlpHttpSettings,
    Outcome,
    Receipt,
    RefusedError,
    RetryLater,
)
from statsig_otel.plugin.cli.components import list_components
from statsig_otel.plugin.cli.main import main
from statsig_otel.plugin.service.dispatch import ServiceConsumer
from statsig_otel.plugin.service.outbound import Outbound
from statsig_otel.plugin.settings.catalog import COMPONENTS, EXPORTERS, create_exporter, destination
from statsig_otel.plugin.settings.reading import exporter_settings
from tests.exporters.delivery.helpers import encoded
from tests.waiting import wait_until

COMMITTED: Final = Path(__file__).parents[3].joinpath("docs", "configuration.schema.json").read_text(encoding="utf-8")
"""The schema of what is built in."""

MODULE: Final = '''
from statsig_otel.config import Duration, Opaque, Settings
from statsig_otel.exporters import Delivered, ExporterType


class TapeSettings(Settings):
    """Writes to a tape.

    Attributes:
        key: Opens the drive.
        reel: Which one.
        timeout: For a batch.
    """

    key: Opaque
    reel: int = 1
    timeout: Duration = 7.0


class TapeExporter:
    made = []
    lives = []

    def __init__(self, name, settings):
        if settings.reel == 13:
            raise ValueError(f"no reel 13 for\\n{settings.key.reveal()}")
        if settings.reel == 14:
            raise LookupError(settings.key.reveal())
        self.name, self.settings, self.log, self.answer = name, settings, [], Delivered()
        self.made.append(self)

    def start(self):
        self.log.append("start")
        self.lives.append(f"start {self.settings.reel}")

    def send(self, payload, count, timeout):
        self.log.append((payload, count, timeout))
        return self.answer

    def shutdown(self):
        self.log.append("shutdown")
        self.lives.append(f"shutdown {self.settings.reel}")


EXPORTER = ExporterType(TapeSettings, TapeExporter)
'''
KEY: Final = "the-drive's-key"

_numbers = count()


class Site:
    """A folder on sys.path into which distributions are put, as pip does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: list[str] = []

    def module(self, code: str = MODULE) -> str:
        """A new module of this code; its name."""
        name = f"installed_{next(_numbers)}"
        (self.folder / f"{name}.py").write_text(code)
        self.modules.append(name)
        return name

    def install(self, points: dict[str, str], distribution: str = "tape-drive", version: str = "2.5") -> None:
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        lines = "".join(f"{name} = {value}\n" for name, value in points.items())
        (info / "entry_points.txt").write_text(f"[statsig_otel.exporters]\n{lines}")
        EXPORTERS.refresh()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    made = Site(folder)
    yield made
    monkeypatch.undo()
    for name in made.modules:
        sys.modules.pop(name, None)
    EXPORTERS.refresh()


@pytest.fixture
def tape(site: Site) -> str:
    """The exporter type `tape` is installed; its module."""
    name = site.module()
    site.install({"tape": f"{name}:EXPORTER"})
    return name


def text(exporters: str, names: str = "tape") -> str:
    return (
        'receivers:\n  statsig: {endpoint: "127.0.0.1:0", signing_secrets: [webhook-abc]}\n'
        f"exporters:\n  {exporters}\n"
        "extensions: {file_storage: {directory: q, min_free_bytes: 0}}\n"
        "service:\n  extensions: [file_storage]\n"
        f"  pipelines: {{logs: {{receivers: [statsig], exporters: [{names}]}}}}\n"
    )


def call(command: str, exporters: str, names: str = "tape") -> Result:
    Path("config.yaml").write_text(text(exporters, names))
    return CliRunner().invoke(main, [command, "--config", "config.yaml"])


def errors(exporters: str, names: str = "tape") -> str:
    result = call("validate", exporters, names)
    assert result.exit_code == 1, result.output
    assert KEY not in result.output
    first, _, rest = result.output.partition("\n")
    assert first == "Error: the configuration has errors"
    return rest.removesuffix("\n")


def configured(exporters: str, names: str = "tape") -> Configuration:
    return check(parse(text(exporters, names).encode(), file="f", directory=Path(), environ={}), COMPONENTS)


def test_an_installed_exporter_is_configured_as_those_that_are_built_in(tape: str) -> None:
    result = call("validate", f'tape/backup: {{key: "{KEY}"}}', "tape/backup")
    assert (result.exit_code, "exporters  tape/backup\n" in result.output) == (0, True)
    printed = call("print-config", f'tape: {{key: "{KEY}", reel: 3, sending_queue: {{queue_size: 5}}}}').output
    written: Any = parse(printed.encode(), file="printed", directory=Path(), environ={}).values["exporters"]
    assert (written["tape"]["key"], written["tape"]["reel"], written["tape"]["timeout"]) == ("[REDACTED]", 3, "7s")
    assert written["tape"]["sending_queue"]["queue_size"] == 5
    assert written["tape"]["retry_on_failure"]["enabled"] is True
    assert KEY not in printed


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "exporters::tape::key: is required (config.yaml:4)"),
        (
            "{key: a, rel: 2}",
            (
                "exporters::tape::rel: unknown key (config.yaml:4)\n"
                "  hint: did you mean reel? there are: key, reel, retry_on_failure, sending_queue, timeout"
            ),
        ),
        ("{key: a, reel: two}", "exporters::tape::reel: must be a whole number (config.yaml:4)"),
        (
            "{key: a, sending_queue: {enable: true}}",
            (
                "exporters::tape::sending_queue::enable: unknown key (config.yaml:4)\n  hint: did you mean enabled? "
                "there are: batch, enabled, num_consumers, queue_size, sizer, start_at, storage"
            ),
        ),
        (f'{{key: "{KEY}", reel: 13}}', "exporters::tape: no reel 13 for [REDACTED]"),
        (f'{{key: "{KEY}", reel: 14}}', "exporters::tape: LookupError: [REDACTED]"),
    ],
)
def test_what_is_wrong_with_its_settings_is_told_with_its_line(
    tape: str, body: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    if "[REDACTED]" in said:
        where, _, reason = said.partition(": ")
        said = f"{where}: tape-drive 2.5 can't create an exporter from this: {reason} (config.yaml:4)"
    assert errors(f"tape: {body}") == said
    assert KEY not in caplog.text


def test_only_what_a_configuration_names_is_imported(site: Site) -> None:
    used, unused = site.module(), site.module()
    site.install({"tape": f"{used}:EXPORTER", "other": f"{unused}:EXPORTER"})
    assert call("validate", "debug:", "debug").exit_code == 0
    assert not {used, unused} & set(sys.modules)
    assert call("validate", "tape: {key: a}").exit_code == 0
    assert errors("tapee: {key: a}", "tapee") == (
        "exporters::tapee: there is no exporter of the type 'tapee' (config.yaml:4)\n"
        "  hint: did you mean tape? there are: debug, file, kafka, other, otlp_grpc, otlp_http, tape"
    )
    assert {used, unused} & set(sys.modules) == {used}


BROKEN: Final = {
    "raise RuntimeError('at\\n  home')": "can't be imported: RuntimeError: at home",
    "raise SystemExit(3)": "can't be imported: SystemExit: 3",
    "import no_such_library": "can't be imported: ModuleNotFoundError: No module named 'no_such_library'",
    "": "can't be imported: AttributeError: module 'MODULE' has no attribute 'EXPORTER'",
    "EXPORTER = print": (
        "can't be used: it is of the type builtin_function_or_method, and has to be a "
        "statsig_otel.exporters.ExporterType"
    ),
    f"{MODULE}\nEXPORTER = ExporterType({{}}, TapeExporter)": (
        "can't be imported: TypeError: settings must be a subclass of statsig_otel.config.Settings, not a dict"
    ),
    f"{MODULE}\nEXPORTER = ExporterType(TapeSettings, 'x')": (
        "can't be imported: TypeError: create must be a function of an id and settings, not str"
    ),
    MODULE.replace("reel: int = 1", "sending_queue: int = 1"): (
        "can't be used: its settings have a key sending_queue, which every exporter already has"
    ),
    MODULE.replace("timeout: Duration = 7.0", "timeout: str = '7s'"): (
        "can't be used: its settings have a key timeout that is not a statsig_otel.config.Duration"
    ),
}


@pytest.mark.parametrize("code", BROKEN)
def test_one_that_is_broken_says_why(site: Site, code: str) -> None:
    module = site.module(code)
    site.install({"tape": f"{module}:EXPORTER"})
    why = f"the entry point tape of tape-drive 2.5 {BROKEN[code].replace('MODULE', module)}"
    assert errors("tape: {key: a}").startswith(f"exporters::tape: {why} (config.yaml:4)\n  hint: ")
    listed = list_components()["exporters"][-1]
    assert (listed["name"], listed["module"], listed["problem"]) == ("tape", "tape-drive 2.5", why)
    assert "fix, upgrade or uninstall tape-drive 2.5" in str(listed["hint"])


def test_a_broken_one_that_no_configuration_names_disturbs_nobody(site: Site) -> None:
    code = "import no_such_library"
    site.install({"tape": f"{site.module(code)}:EXPORTER"})
    why = f"the entry point tape of tape-drive 2.5 {BROKEN[code]}"
    assert call("validate", "debug:", "debug").exit_code == 0
    printed = CliRunner().invoke(main, ["schema"])
    assert (printed.stdout, printed.stderr) == (COMMITTED, f"warning: left out: {why}\n")


def test_what_is_built_in_can_not_be_replaced(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    module = site.module()
    site.install({"debug": f"{module}:EXPORTER", "otlp": f"{module}:EXPORTER"})
    assert call("validate", "debug:", "debug").exit_code == 0
    message = "tape-drive 2.5 adds an exporter type debug, which is built in: the built-in one is used"
    assert [record.getMessage() for record in caplog.records] == [message]
    assert [entry["problem"] for entry in list_components()["exporters"][-2:]] == [
        message,
        message.replace("debug", "otlp"),
    ]
    assert module not in sys.modules


def test_two_of_one_name_are_an_error_that_names_both(site: Site) -> None:
    module = site.module()
    site.install({"tape": f"{module}:EXPORTER"})
    site.install({"tape": f"{module}:EXPORTER"}, "other-drive", "0.1")
    why = "other-drive 0.1 and tape-drive 2.5 both add an exporter type tape"
    assert errors("tape: {key: a}") == f"exporters::tape: {why} (config.yaml:4)\n  hint: uninstall one of them"
    entries = list_components()["exporters"][-2:]
    assert [(entry["module"], entry["problem"]) for entry in entries] == [
        ("other-drive 0.1", why),
        ("tape-drive 2.5", why),
    ]
    assert module not in sys.modules


def test_a_name_that_no_type_can_have_is_told(site: Site) -> None:
    site.install({"tape-drive": "anything:EXPORTER"})
    assert list_components()["exporters"][-1]["problem"] == (
        "tape-drive 2.5 adds 'tape-drive', which is not a type: letters, digits and _, first a letter"
    )
    assert "tape-drive" not in list(EXPORTERS)


def test_components_lists_it_with_its_distribution(tape: str) -> None:
    assert list_components()["exporters"][-1] == {
        "name": "tape",
        "module": "tape-drive 2.5",
        "built_in": False,
        "entry_point": f"{tape}:EXPORTER",
    }


def test_the_schema_knows_it_and_the_committed_one_does_not(tape: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    printed = CliRunner().invoke(main, ["schema"])
    found = json.loads(printed.stdout)
    jsonschema.Draft202012Validator.check_schema(found)
    reference = found["properties"]["exporters"]["properties"]["tape"]["$ref"].rpartition("/")[2]
    model = found["$defs"][reference]
    assert model["description"] == "Writes to a tape."
    assert model["properties"]["reel"]["description"] == "Which one."
    assert {"sending_queue", "retry_on_failure", "key", "timeout"} <= set(model["properties"])
    assert printed.stderr == ""
    assert '"tape"' not in COMMITTED


def test_a_model_without_a_schema_is_left_out_of_it_only(site: Site) -> None:
    module = site.module(
        MODULE.replace("reel: int = 1", "reel: object = print\n    run: __import__('typing').Callable")
    )
    site.install({"tape": f"{module}:EXPORTER"})
    printed = CliRunner().invoke(main, ["schema"])
    assert (printed.exit_code, printed.stdout) == (0, COMMITTED)
    assert printed.stderr.startswith("warning: left out: the exporter type tape of tape-drive 2.5 has no schema: ")


def test_a_factory_that_makes_no_exporter_is_an_error(site: Site) -> None:
    module = site.module(f"{MODULE}\nEXPORTER = ExporterType(TapeSettings, lambda name, settings: name)")
    site.install({"tape": f"{module}:EXPORTER"})
    with pytest.raises(ConfigError, match=r"tape-drive 2\.5 made a str instead of an exporter: it has no start\(\)"):
        create_exporter("tape/a", exporter_settings(configured("tape/a: {key: a}", "tape/a"))["tape/a"])


def test_a_reload_finds_types_that_were_installed_or_corrected_meanwhile(site: Site) -> None:
    module = site.module("raise RuntimeError")
    site.install({"tape": f"{module}:EXPORTER"})
    with pytest.raises(ConfigError, match="can't be imported"):
        configured("tape: {key: a}")
    (site.folder / f"{module}.py").write_text(f"{MODULE}\n# mended, and of another length\n")
    EXPORTERS.refresh()
    before = configured("tape: {key: a}")
    EXPORTERS.refresh()
    assert before == configured("tape: {key: a}"), "what was imported stays the same, so that it goes on running"


def batch(name: str) -> Batch:
    return Batch("statsig", (Change(name.ljust(32, "0"), (encoded(name),)),))


def made_by(module: str) -> list[Any]:
    made: list[Any] = sys.modules[module].TapeExporter.made
    return made


def consumer_of(outbound: Outbound) -> ServiceConsumer:
    consumer = ServiceConsumer()
    outbound.open(consumer)
    return consumer


def sent(exporter: Any) -> list[bytes]:
    return [entry[0] for entry in exporter.log if isinstance(entry, tuple)]


def test_behind_the_queue_it_delivers_and_a_reload_replaces_it_only_if_it_changed(tape: str, tmp_path: Path) -> None:
    before, after = configured("tape: {key: a}"), configured("tape: {key: b}")
    delivery = Outbound(before, tmp_path / "q")
    (first,) = made_by(tape)
    assert first.log == []
    delivery.start()
    try:
        consumer_of(delivery).consume(batch("a")).result(30)
        wait_until(lambda: sent(first) == [encoded("a")])
        assert first.log[:2] == ["start", (encoded("a"), 1, 7.0)]
        delivery.reconfigure(before, configured("tape: {key: a}"))
        assert made_by(tape) == [first]
        assert delivery.reconfigure(before, after).changes == ["exporters::tape: has changed"]
        _, second = made_by(tape)
        assert first.log[-1] == "shutdown"
        consumer_of(delivery).consume(batch("b")).result(30)
        wait_until(lambda: sent(second) == [encoded("b")])
        assert sent(first) == [encoded("a")]
    finally:
        delivery.shutdown()
    assert second.log[-1] == "shutdown"


@pytest.mark.parametrize("outcome", [Delivered(), None])
def test_without_a_queue_the_webhook_waits_for_it(tape: str, tmp_path: Path, outcome: Outcome) -> None:
    delivery = Outbound(configured("tape: {key: a, sending_queue: {enabled: false}}"), tmp_path / "q")
    (exporter,) = made_by(tape)
    exporter.answer = outcome
    delivery.start()
    try:
        future = consumer_of(delivery).consume(batch("a"))
        if outcome == Delivered():
            assert future.result(30) == Receipt(1)
        else:
            assert isinstance(future.exception(30), RefusedError)
        assert sent(exporter) == [encoded("a")]
    finally:
        delivery.shutdown()


def test_what_it_refuses_is_a_dead_letter_where_retries_are_off(tape: str, tmp_path: Path) -> None:
    configuration = configured("tape: {key: a, retry_on_failure: {enabled: false}}")
    delivery = Outbound(configuration, tmp_path / "q")
    (exporter,) = made_by(tape)
    exporter.answer = RetryLater("torn")
    delivery.start()
    try:
        consumer_of(delivery).consume(batch("a")).result(30)
        wait_until(lambda: sent(exporter))
    finally:
        delivery.shutdown()
    listed = CliRunner().invoke(main, ["dead-letters", "list", "--directory", str(tmp_path / "q")])
    assert "tape" in listed.output
    assert "torn" in listed.output


def test_one_ends_before_the_next_one_starts(tape: str, tmp_path: Path) -> None:
    """There are never two with the same settings at a time, such as two writers of a file."""
    before = configured("tape: {key: a}")
    delivery = Outbound(before, tmp_path / "q")
    delivery.start()
    try:
        delivery.reconfigure(before, configured("tape: {key: a, reel: 2}"))
        assert sys.modules[tape].TapeExporter.lives == ["start 1", "shutdown 1", "start 2"]
    finally:
        delivery.shutdown()


def test_without_a_queue_another_secret_needs_an_exporter_that_can_renew_it(tape: str, tmp_path: Path) -> None:
    before = configured("tape: {key: a, sending_queue: {enabled: false}}")
    backend = Outbound(before, tmp_path / "q")
    changed = configured("tape: {key: b, sending_queue: {enabled: false}}")
    assert list(backend.needing_restart(before, changed)) == [
        "exporters::tape::key: has changed, and the exporter has no sending queue"
    ]


def test_where_an_exporter_sends_to_is_told_without_anything_secret() -> None:
    for settings, told in (
        (OtlpHttpSettings(logs_endpoint="https://ingest.example.com/a-token?key=b"), "ingest.example.com"),
        (OtlpHttpSettings(logs_endpoint="http://[::1]:4318/v1/logs"), "[::1]:4318"),
        (OtlpGrpcSettings(endpoint="https://collector:4317"), "collector:4317"),
        (OtlpGrpcSettings(endpoint="unix:///run/otel.sock"), "unix:///run/otel.sock"),
        (KafkaSettings(brokers=["one:9092", "two:9092"]), "one:9092, two:9092"),
        (FileSettings(path=Path("/var/log/changes.jsonl")), "/var/log/changes.jsonl"),
        (DebugSettings(), ""),
    ):
        assert destination(settings) == told
