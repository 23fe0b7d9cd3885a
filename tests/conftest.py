"""What all tests share: Hypothesis profiles, where files are, and the flag that rewrites the golden records.

The default profile of Hypothesis is for the quick suite. `make test-slow` searches ten times as long
(HYPOTHESIS_PROFILE=slow), and HYPOTHESIS_PROFILE=ci a hundred times.
"""

import faulthandler
import fcntl
import gc
import logging
import math
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from time import monotonic, sleep

import pytest
from hypothesis import HealthCheck, settings

# No deadline: how long one example takes says more about the machine than about the code.
settings.register_profile(
    "default",
    deadline=None,
    max_examples=20,
    # A build says the same of the same code; chance is for people and for the longer search.
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("slow", settings.get_profile("default"), max_examples=200)
settings.register_profile("ci", settings.get_profile("default"), max_examples=2000, derandomize=False, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


HAS_KAFKA = find_spec("confluent_kafka") is not None
_OF_KAFKA = ["test_kafka_chain.py", "test_kafka_consumers.py", "test_replicas.py"]
collect_ignore = (
    [] if HAS_KAFKA else ["exporters/kafka", "plugin/doctor/test_brokers.py", *(f"e2e/{name}" for name in _OF_KAFKA)]
)
"""What needs a library that is an extra of the product. `make test` installs it where there is one for this Python."""
needs_kafka = pytest.mark.skipif(not HAS_KAFKA, reason="LOUD: confluent-kafka is not installed")
needs_clone = pytest.mark.skipif(
    shutil.which("git") is None or not Path(__file__).parents[1].joinpath(".git").exists(),
    reason="LOUD: git is missing, or the source is not a clone: nothing checks which files git ignores",
)

MEMORY = Path("/dev/shm")
OPEN_FILES = 10_240  # the most that macOS allows
GRACE = 30.0
"""Seconds between a test's timeout and the end of its process, if it still hangs."""
WATCHDOG = pytest.StashKey["Watchdog"]()


def pytest_report_header() -> str | None:
    """Say loudly what does not run."""
    return (
        None
        if HAS_KAFKA
        else "!! THERE IS NO confluent-kafka IN THIS ENVIRONMENT: THE TESTS OF THE KAFKA EXPORTER DO NOT RUN"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Quick tests keep their files in memory where it has room: half of their time was bringing files to a disk.

    The slow tests go to a real disk.
    """
    config.stash[WATCHDOG] = watchdog = Watchdog()
    watchdog.start()
    # As `statsig-otel run` does for itself: a shell allows 1,024 open files by default, and a service calls that few.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, OPEN_FILES)), hard))
    # A shell ignores Ctrl-C for what it runs in the background, and nohup the end of a terminal. Every process that a
    # test starts and ends with that signal would ignore it, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if config.option.markexpr != "not slow" or "TMPDIR" in os.environ:
        return
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 1 << 30:
        os.environ["TMPDIR"] = str(MEMORY)
        tempfile.tempdir = None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test that pytest-timeout can't end, since it hangs in its teardown or in a `finally`, ends with its process."""
    marker = item.get_closest_marker("timeout")
    limit = marker.args[0] if marker else item.config.getoption("timeout") or item.config.getini("timeout")
    watchdog = item.config.stash[WATCHDOG]
    watchdog.deadline = monotonic() + float(limit) + GRACE
    try:
        return (yield)
    finally:
        watchdog.deadline = math.inf


class Watchdog(Thread):
    """Ends the process once its deadline has passed, and first writes to standard error what each thread does.

    One thread for all tests: faulthandler's own timer starts and joins one for each, which took half a millisecond.
    """

    def __init__(self) -> None:
        super().__init__(name="watchdog of the tests", daemon=True)
        self.deadline = math.inf
        self._stderr = os.dup(2)

    def run(self) -> None:
        while monotonic() < self.deadline:
            sleep(1)
        faulthandler.dump_traceback(self._stderr)
        os._exit(1)


def import_in_turn(config: pytest.Config) -> None:
    """Import the test modules, in each worker from another one on.

    Each worker needs all of them. Where there is no bytecode yet, as on a clean clone, all would rewrite the assertions
    of the same module at the same time. So each rewrites its share, and finds the bytecode of the others.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    folders = [path for path in map(Path, config.args) if path.is_dir()]
    if not worker or not folders:
        return
    files = sorted(file.resolve() for folder in folders for file in folder.rglob("test_*.py"))
    first = len(files) * int(worker) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    for file in (*files[first:], *files[:first]):
        parts = file.relative_to(config.rootpath).with_suffix("").parts
        with suppress(Exception, pytest.skip.Exception):  # the collection says it
            import_module(".".join(parts))


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """What the collection makes stays: the garbage collector need not look at it, neither now nor later."""
    gc.disable()
    try:
        import_in_turn(session.config)
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write the golden records anew from what the product makes now"
    )


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """A command that configures the log of its process leaves the tests behind it theirs."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture
def documented_ports() -> Iterator[None]:
    """Such tests run one after another, in whichever process: they listen on the ports that the documents name."""
    with Path(tempfile.gettempdir(), "statsig-otel-documented-ports.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written instead of compared."""
    return bool(request.config.getoption("--update-golden"))
