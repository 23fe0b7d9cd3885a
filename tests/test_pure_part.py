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
    "SIGNATURE_HEADER, TIMESTAMP_HEADER, Answer, AnsweredError, ChangeEvent, Intake, InvalidItemError, Limits, "
    "LogRecordEncoder, MalformedBodyError, Mapped, Mapper, Payload, UnauthorizedError, UrlVerification, Verifier, "
    "WebhookError, parse, parse_url_verification, sign, uid, verify"
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
    # Compiled modules of a package bring names of their compiler's.
    return {name for name in found if not name.startswith(("_cython", "cython"))} - {"opentelemetry."}


@pytest.mark.parametrize(
    ("statement", "packages"),
    [
        ("import statsig_otel.plugin, statsig_otel.exporters, statsig_otel.config", set()),
        ("from statsig_otel.plugin import verify, parse, sign, ChangeEvent", {"msgspec"}),
        (f"from statsig_otel.plugin import {PURE}", {"msgspec"} | API | METRICS | PROTO),
        ("from statsig_otel.exporters import Batch, Change, Consumer, Invalid, Receipt, RefusedError", set()),
        ("from statsig_otel.exporters import LoggerProviderConsumer", API | LOGS | PROTO),
        (
            "from statsig_otel.plugin import StatsigWsgiReceiver, create_wsgi_app",
            {"falcon", "msgspec"} | API | METRICS | PROTO,
        ),
    ],
)
def test_an_import_loads_these_packages_and_no_others(statement: str, packages: set[str]) -> None:
    """Above all neither falcon nor grpc nor the SDK, where they are not named."""
    assert loaded_by(statement) == packages


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
        "statsig_otel.exporters.logger_provider",
        "statsig_otel.plugin.receiver",
        "statsig_otel.plugin.wsgi_receiver",
    } <= set(modules())
