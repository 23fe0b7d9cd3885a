"""What an import of each embeddable part loads, by the names of the modules; and the examples in the docstrings."""

import doctest
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import statsig_otel

PURE = (
    "DEFAULT_PATH, "
    "Answer, AnsweredError, ChangeEvent, Intake, Limits, LogRecordEncoder, MalformedBodyError, Mapper, ParsedBody, "
    "RecordFields, RecordHook, UnauthorizedError, Verifier, parse, parse_url_verification, sign, verify"
)
API = {"opentelemetry.context", "opentelemetry.environment_variables", "opentelemetry.util"}
"""What every part of opentelemetry-api loads; those below are of the API too, but for opentelemetry.proto."""

METRICS, PROTO = {"opentelemetry.metrics"}, {"opentelemetry.proto", "google"}
LOGS = {"opentelemetry._logs", "opentelemetry.trace", "opentelemetry.attributes"}


def loaded_by(statement: str) -> set[str]:
    """The packages that a fresh interpreter has loaded after a statement, those of the standard library left out."""
    script = f"import sys\nbefore = set(sys.modules)\n{statement}\nprint(*set(sys.modules) - before)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    found = set()
    for module in ran.stdout.split():
        top, _, rest = module.partition(".")
        if top not in sys.stdlib_module_names and top not in ("statsig_otel", "typing_extensions"):
            found.add(f"{top}.{rest.partition('.')[0]}" if top == "opentelemetry" else top)
    # Compiled modules of a package bring names of their compiler's, and opentelemetry-api before 1.42 the last two.
    found = {name for name in found if not name.startswith(("_cython", "cython"))}
    # Python 3.15 has a module that it does not list.
    return found - {"opentelemetry.", "importlib_metadata", "zipp", "_missing_stdlib_info"}


@pytest.mark.parametrize(
    ("statement", "packages"),
    [
        ("import statsig_otel, statsig_otel.plugin, statsig_otel.exporters, statsig_otel.config", set()),
        ("from statsig_otel.plugin import verify, parse, sign, ChangeEvent", {"msgspec"}),
        (f"from statsig_otel.plugin import {PURE}", {"msgspec"} | API | METRICS | PROTO),
        pytest.param(
            "from statsig_otel.exporters import Batch, Change, Consumer, Invalid, Receipt, RefusedError",
            set(),
            marks=pytest.mark.slow,
        ),
        ("from statsig_otel.exporters import LoggerProviderConsumer", API | LOGS | PROTO),
        pytest.param(
            "from statsig_otel.plugin import StatsigWsgiReceiver, create_wsgi_app",
            {"falcon", "msgspec"} | API | METRICS | PROTO,
            marks=pytest.mark.slow,
        ),
        ("from statsig_otel.plugin import StatsigReceiver", {"falcon", "msgspec"} | API | METRICS | PROTO),
        ("from statsig_otel.plugin.cli.main import main", {"click"}),
    ],
)
def test_an_import_loads_these_packages_and_no_others(statement: str, packages: set[str]) -> None:
    """Above all neither falcon nor grpc nor the SDK, where they are not named."""
    assert loaded_by(statement) == packages


SERVICE = """
from statsig_otel.config import Opaque
from statsig_otel.exporters import OtlpGrpcSettings
from statsig_otel.plugin import Service, StatsigReceiverSettings
import statsig_otel.plugin.cli.run
service = Service(
    receivers={"statsig": StatsigReceiverSettings(signing_secrets=[Opaque("webhook-1")])},
    exporters={"otlp_grpc": OtlpGrpcSettings(endpoint="http://127.0.0.1:4317")},
    directory="nothing-is-made-here",
)
print(*sys.modules, end=" ")
"""


@pytest.mark.slow
def test_a_service_loads_nothing_for_what_is_not_configured() -> None:
    """Each module stays in memory for as long as the service runs."""
    ran = subprocess.run([sys.executable, "-c", f"import sys\n{SERVICE}"], capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    assert {"grpc", "statsig_otel.exporters.otlp.grpc"} <= loaded
    assert not loaded & {
        "confluent_kafka", "difflib", "html", "opentelemetry.exporter", "opentelemetry.sdk", "requests", "urllib3",
        "prometheus_client", "statsig_otel.exporters.otlp.http", "statsig_otel.plugin.demo",
        "statsig_otel.plugin.doctor.checks", "statsig_otel.plugin.watch.readers",
    }  # fmt: skip


def test_garbage_is_collected_again_once_a_command_is_loaded() -> None:
    """Also where its module can't be loaded; what it has loaded is not looked at again."""
    script = """
import gc, click
from statsig_otel.plugin.cli import main
context = click.Context(main.main)
assert main.main.get_command(context, "no-such-command") is None
assert main.main.get_command(context, "schema") is not None
assert gc.isenabled() and gc.get_freeze_count() > 10_000
main._COMMANDS["broken"] = ""
try:
    main.main.get_command(context, "broken")
except ModuleNotFoundError:
    assert gc.isenabled()
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", script], check=True)


FALCON = "falcon msgspec opentelemetry.metrics opentelemetry.proto"
MODEL = "pydantic"
RECORD_MODEL = "pydantic opentelemetry.proto"
MAY_LOAD = {
    "config": {
        "": "ConfigError Problem SettingError",
        MODEL: "Duration Opaque Settings Size",
    },
    "exporters": {
        "": "Arrival Batch Blocked Change Consumer Delivered Exporter Invalid Outcome PartiallyRejected "
        "QueueError Receipt RefusedError Rejected RetryLater",
        MODEL: "ClientTlsSettings DirectoryInUseError ExporterType KafkaSettings OtlpGrpcSettings OtlpHttpSettings",
        "opentelemetry.proto": "log_records",
        "opentelemetry._logs opentelemetry.proto": "LoggerProviderConsumer",
        RECORD_MODEL: "DebugSettings FileSettings",
    },
    "plugin": {
        "": "ChangeEvent DEFAULT_PATH",
        MODEL: "ChangeMatchSettings FilterSettings ServerTlsSettings",
        "msgspec": "MalformedBodyError ParsedBody UnauthorizedError Verifier parse parse_url_verification sign verify",
        "opentelemetry.proto": "LogRecordEncoder RecordFields RecordHook",
        "msgspec opentelemetry.proto": "Mapped Mapper",
        "msgspec opentelemetry.metrics opentelemetry.proto": "Answer AnsweredError Intake Limits Request",
        f"{RECORD_MODEL} opentelemetry.metrics": "BatchSettings RetryOnFailureSettings SendingQueueSettings",
        f"{RECORD_MODEL} msgspec opentelemetry.metrics": "StatsigReceiverSettings",
        FALCON: "StatsigReceiver StatsigWsgiReceiver create_app create_wsgi_app",
        f"{FALCON} pydantic ruamel click httptools": "Destination RestartNeededError Service",
    },
}
"""For each public name the packages that its import may load. What is not here is not looked at."""

WATCHED = {package for table in MAY_LOAD.values() for packages in table for package in packages.split()} | {
    "confluent_kafka",
    "opentelemetry.exporter",
    "opentelemetry.sdk",
}
IMPORTS = """
import json, os, sys
from importlib import import_module
for line in sys.stdin:
    package, name = line.split()
    reading, writing = os.pipe()
    if not os.fork():
        getattr(import_module(package), name)
        os.write(writing, json.dumps(list(sys.modules)).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as answer:
        print(package, name, *json.loads(answer.read()))
    os.wait()
"""
"""Imports each name in a fork of its own, of a process that has imported nothing."""


@pytest.mark.slow
def test_each_public_name_loads_no_more_than_is_written_down() -> None:
    allowed = {
        (f"statsig_otel.{floor}", name): set(packages.split())
        for floor, table in MAY_LOAD.items()
        for packages, names in table.items()
        for name in names.split()
    }
    public = [
        (f"statsig_otel.{floor}", name) for floor in MAY_LOAD for name in dir(import_module(f"statsig_otel.{floor}"))
    ]
    assert sorted(allowed) == sorted(public)
    asked = "".join(f"{package} {name}\n" for package, name in public)
    ran = subprocess.run([sys.executable, "-c", IMPORTS], input=asked, capture_output=True, text=True, check=True)
    answers = ran.stdout.splitlines()
    assert len(answers) == len(public)
    for answer in answers:
        package, name, *modules = answer.split()
        loaded = {one for one in WATCHED if any(f"{module}.".startswith(f"{one}.") for module in modules)}
        assert loaded <= allowed[package, name], name


def modules() -> list[str]:
    """The modules whose docstrings hold examples."""
    root = Path(statsig_otel.__file__).parent
    names = [info.name for info in pkgutil.walk_packages([str(root)], "statsig_otel.") if "__main__" not in info.name]
    files = {name: root.parent.joinpath(*name.split(".")).with_suffix(".py") for name in names}
    return [name for name, file in files.items() if file.exists() and ">>>" in file.read_text()]


@pytest.mark.parametrize("name", modules())
def test_the_examples_in_docstrings_run(name: str) -> None:
    module: ModuleType = import_module(name)
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0


def test_there_are_examples_where_embedders_begin() -> None:
    assert {
        "statsig_otel.exporters.local.logger_provider",
        "statsig_otel.plugin.receiver.asgi",
        "statsig_otel.plugin.receiver.wsgi",
    } <= set(modules())
