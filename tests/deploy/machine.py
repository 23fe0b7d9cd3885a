"""A machine of its own with systemd as its first process, over the files of this one.

It is a container of systemd-nspawn. What it writes is in memory and is gone with it. Its network is its own.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import pytest

from tests.e2e.otelcol import UnavailableError
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
PYTHON = "/opt/python"
"""Where the machine has the Python of these tests: users other than root may not see where it is here."""

_MOUNT = """
set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/written" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/written,workdir=$1/work" "$1/root"
echo mounted
exec sleep infinity
"""


def missing() -> str:
    """Why there can't be a machine here, or an empty string."""
    if os.geteuid() != 0:
        return "LOUD: only root can start a machine with systemd"
    if shutil.which("systemd-nspawn") is None:
        return "LOUD: systemd-nspawn is missing (Debian: systemd-container)"
    return ""


@contextmanager
def skipped_if_unavailable() -> Iterator[None]:
    """The rest of a test that needs what a machine may not allow, even to root."""
    try:
        yield
    except UnavailableError as error:
        pytest.skip(f"LOUD: {error}")


class Machine:
    """A machine: `install` runs commands before it starts, `boot` starts it, `run` runs commands in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._leader = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            words = ["unshare", "--mount", "sh", "-c", _MOUNT, "sh", str(self._folder)]
            self._mounts = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
            stack.callback(self._end, self._mounts)
            assert self._mounts.stdout is not None
            stack.callback(self._mounts.stdout.close)
            if self._mounts.stdout.readline() != "mounted\n":
                raise UnavailableError("an overlay can't be mounted here")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @staticmethod
    def _end(process: subprocess.Popen[str]) -> None:
        process.kill()
        process.wait()

    @property
    def _container(self) -> list[str]:
        binds = [f"--bind-ro={ROOT}:/source", f"--bind-ro={sys.base_prefix}:{PYTHON}"]
        options = ["--quiet", "--register=no", "--keep-unit", f"--directory={self._folder}/root"]
        return ["nsenter", f"--target={self._mounts.pid}", "--mount", "systemd-nspawn", *options, *binds]

    def install(self, script: str) -> None:
        """Run a shell's commands in it, with the network of this machine, as what an installation needs."""
        settings = [
            f"--setenv={name}={value}" for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))
        ]
        words = [*self._container, "--chdir=/source", f"--setenv=PATH={_path()}", *settings]
        # Users other than root don't reach the place where a Python with a shared library looks for it.
        script = f"echo {PYTHON}/lib > /etc/ld.so.conf.d/0-python.conf; ldconfig\n{script}"
        done = subprocess.run([*words, "sh", "-exc", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    @contextmanager
    def boot(self) -> Iterator[None]:
        """Start it; leaving the block stops it.

        Raises:
            UnavailableError: systemd does not get as far as to its own basic units, before any other.
        """
        words = [*self._container, "--private-network", "/lib/systemd/systemd", "--unit=basic.target"]
        with (self._folder.parent / "console").open("w") as console:
            nspawn = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=console, stderr=console, text=True)
            try:
                try:
                    wait_until(lambda: self._find_leader(nspawn.pid), "systemd has started", within=60)
                    wait_until(
                        lambda: self.run("systemctl is-active basic.target", check=False).returncode == 0, within=90
                    )
                except AssertionError as error:
                    said = Path(console.name).read_text(errors="replace")[-500:]
                    raise UnavailableError(f"systemd does not start in a container here: {error}; {said!r}") from error
                yield
            finally:
                nspawn.terminate()  # nspawn halts the machine
                try:
                    nspawn.wait(60)
                finally:
                    nspawn.kill()
                    nspawn.wait()

    def _find_leader(self, pid: int) -> int:
        """The first process of the machine: the child of nspawn's child that is the first of its own namespace."""
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            status = Path(f"/proc/{child}/status").read_text()
            (ids,) = [line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")]
            if ids[-1] == "1" and len(ids) > 1 and "Name:\tsystemd\n" in status:
                self._leader = int(child)
        return self._leader

    def run(
        self, script: str, *, check: bool = True, variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell's commands in it as root, in the folder of the sources."""
        done = subprocess.run(
            self.words("sh", "-ec", script, variables=variables), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr + self.journal()
        return done

    def words(self, *program: str, variables: Mapping[str, str] | None = None) -> list[str]:
        """The command that runs a program in the machine."""
        settings = [f"{name}={value}" for name, value in (variables or {}).items()]
        enter = ["nsenter", f"--target={self._leader}", "--mount", "--uts", "--ipc", "--net", "--pid"]
        return [*enter, "--wdns=/source", "env", "-i", f"PATH={_path()}", "HOME=/root", *settings, *program]

    def journal(self, unit: str = "statsig-otel.service") -> str:
        words = self.words("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout


def _path() -> str:
    return f"{PYTHON}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
