"""Services in a process of their own, for what a test's process can't show. Each prints what happened.

python -m tests.plugin.service._service_child forks GRPC_SINK DIRECTORY
python -m tests.plugin.service._service_child manners GRPC_SINK DIRECTORY
python -m tests.plugin.service._service_child atexit GRPC_SINK DIRECTORY
python -m tests.plugin.service._service_child lives GRPC_SINK DIRECTORY
"""

import atexit
import gc
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from statsig_otel.plugin import Service

_BETWEEN = (__name__, "os", "collections.abc", "_collections_abc")
"""Modules that ask for somebody else."""


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")


class Watched(Mapping[str, str]):
    """Environment variables in the place of `os.environ`: keeps who asked for which."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = dict(variables)
        self.asked: list[tuple[str, str]] = []

    def __getitem__(self, name: str) -> str:
        self._ask(name)
        return self._variables[name]

    def __iter__(self) -> Iterator[str]:
        self._ask("*")
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)

    def _ask(self, name: str) -> None:
        frame = sys._getframe(2)
        while frame.f_back is not None and frame.f_globals["__name__"] in _BETWEEN:
            frame = frame.f_back
        self.asked.append((str(frame.f_globals["__name__"]), name))


def manners(sink: str, directory: Path) -> None:
    """Import, build, start, take a webhook and shut down; then say what became of the process."""
    import logging

    def state() -> dict[str, object]:
        return {
            "signals": [repr(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
            "wakeup": signal.set_wakeup_fd(-1),
            "handlers": [repr(handler) for handler in logging.root.handlers],
            "level": logging.root.level,
            "hooks": [repr(sys.excepthook), repr(threading.excepthook), repr(sys.unraisablehook)],
        }

    before = state()
    watched = Watched(os.environ)
    os.environ = watched  # type: ignore[assignment] # noqa: B003 - what is tested
    os.getenv = watched.get  # type: ignore[assignment] # likewise

    from tests.plugin.services import post_change

    with grpc_service(sink, directory) as running:
        during = state()
        threads = sorted(one.name for one in threading.enumerate() if not one.daemon)
        assert post_change(running, "a").status == 200
    own = {name for name in logging.Logger.manager.loggerDict if name.startswith("statsig_otel")}
    loggers = [logging.getLogger(name) for name in own]
    said = {
        "as before": before == during == state(),
        "our handlers": sum(len(one.handlers) for one in loggers),
        "our levels": sorted({one.level for one in loggers}),
        "asked": sorted({(module, name) for module, name in watched.asked if not module.startswith("tests.")}),
        "threads": threads,
    }
    sys.stdout.write(json.dumps(said))


def grpc_service(sink: str, directory: Path, **options: Any) -> "Service":
    from statsig_otel.exporters import OtlpGrpcSettings
    from statsig_otel.exporters.network.tls import GrpcTlsSettings
    from tests.plugin.services import service

    settings = OtlpGrpcSettings(endpoint=sink, tls=GrpcTlsSettings(insecure=True))
    return service(directory, {"otlp_grpc": settings}, **options)


def forks(sink: str, directory: Path) -> None:
    """A service made here and started in a child; and one started here, that a child inherits."""
    from statsig_otel.exporters import Batch, DirectoryInUseError
    from tests.plugin.services import address_of, post_change

    made = grpc_service(sink, directory)

    def start_it() -> None:
        made.start()
        say("child took", post_change(made, "in the child").status)
        say("child drained", made.shutdown(), made.ended.done())

    in_child(start_it)

    running = grpc_service(sink, directory)
    running.start()

    def use_it() -> None:
        say("consumer", running.consumer.consume(Batch("statsig")).exception())
        for call in (running.start, lambda: say("shutdown", running.shutdown())):
            try:
                call()
            except RuntimeError as error:
                say("start", error)
        try:
            grpc_service(sink, directory).start()
        except DirectoryInUseError as error:
            say("second", error)

    in_child(use_it)
    say("parent took", post_change(running, "in the parent").status)
    with a_child_that_stays():
        address = address_of(running)
        say("parent drained", running.shutdown())
        again = grpc_service(sink, directory, receiver={"endpoint": "{}:{}".format(*address)})
        again.start()
        say("the same port took", post_change(again, "again").status)
        again.shutdown()
    say("parent", os.getpid())


@contextmanager
def a_child_that_stays() -> Iterator[None]:
    """A fork that does nothing, and has a copy of all that is open."""
    child = os.fork()
    if not child:
        signal.pause()
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def in_child(work: Callable[[], object]) -> None:
    """Do something in a fork, and end as the fork's interpreter ends: with its exit handlers."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        say("child ended", os.waitstatus_to_exitcode(status))
        return
    work()
    sys.exit(0)


def at_exit(sink: str, directory: Path) -> None:
    """Shut down in an exit handler, when no new thread pool can be used any more; and before, in a daemon thread."""
    from tests.plugin.services import Keeper, post_change, service

    keeper = Keeper(hold=True)
    running = service(directory, {"mine": keeper})
    running.start()
    for number in range(600):  # more than a batch
        assert post_change(running, f"flag {number}").status == 200

    def end() -> None:
        keeper.go_on.set()
        say("drained", running.shutdown(), len(keeper.names))

    atexit.register(end)
    other = grpc_service(sink, directory / "other")
    other.start()
    assert post_change(other, "other").status == 200
    ended = threading.Event()

    def end_other() -> None:
        say("other drained", other.shutdown())
        ended.set()

    threading.Thread(target=end_other, daemon=True).start()
    ended.wait(30)


class Mistaken:
    """An exporter that makes one mistake, and ends it at its shutdown."""

    def __init__(self, mistake: str) -> None:
        self._mistake = mistake
        self._ended = threading.Event()

    def start(self) -> None:
        if self._mistake == "start":
            raise KeyError("a mistake")

    def send(self, payload: bytes, count: int, timeout: float) -> Any:
        match self._mistake:
            case "exit":
                sys.exit(3)
            case "interrupt":
                raise KeyboardInterrupt
            case "nonsense":
                return {"delivered": True}
        return self._ended.wait(60)

    def shutdown(self) -> None:
        self._ended.set()
        if self._mistake == "shutdown":
            sys.exit(3)


def lives(sink: str, directory: Path) -> None:
    """Start and shut down services, with forks in between and a mistaken exporter in each; say what stays open."""
    from statsig_otel.exporters import OtlpGrpcSettings
    from statsig_otel.exporters.network.tls import GrpcTlsSettings
    from tests.plugin.services import post_change, service

    def one_life(number: int) -> None:
        mistake = ("start", "exit", "interrupt", "nonsense", "hang", "shutdown")[number % 6]
        settings = OtlpGrpcSettings(endpoint=sink, tls=GrpcTlsSettings(insecure=True))
        running = service(directory / str(number % 3), {"otlp_grpc": settings, "mistaken": Mistaken(mistake)})
        try:
            running.start()
        except ValueError:  # what a start raises
            assert running.shutdown() is True
            return
        assert post_change(running, f"flag {number}").status == 200
        if number % 5 == 0:
            in_child(lambda: say("in the child", running.shutdown()))
        assert running.shutdown(timeout=10, drain=0.2) is False  # what waits for the mistaken one

    sizes: list[tuple[int, int, int]] = []
    for number in range(60):
        one_life(number)
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        sizes.append(
            (
                threading.active_count(),
                sum(1 for _ in Path("/proc/self/fd").iterdir()),
                pages * os.sysconf("SC_PAGE_SIZE"),
            )
        )
    threads, descriptors, memory = zip(*sizes[12:], strict=True)
    say("threads", set(threads), "descriptors", len(set(descriptors)), "more MiB", (memory[-1] - memory[0]) >> 20)


if __name__ == "__main__":
    which = {"forks": forks, "manners": manners, "atexit": at_exit, "lives": lives}[sys.argv[1]]
    which(sys.argv[2], Path(sys.argv[3]))
