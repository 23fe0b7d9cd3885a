"""README.md on a machine that has nothing but Debian and the packages that it names, for a user without rights.

The machine is a container of systemd-nspawn with files of its own, in memory. It has a network only for installations.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.conftest import MEMORY
from tests.deploy.machine import ROOT, missing

SUITE = "trixie"  # Debian 13
SOURCE = "/home/newcomer/source"
NEEDS = missing() or ("" if shutil.which("debootstrap") else "LOUD: debootstrap is missing, no empty machine is made")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.skipif(bool(NEEDS), reason=NEEDS)]


class Newcomer:
    """A user of a machine, who runs commands in the folder of the sources."""

    def __init__(self, machine: Path) -> None:
        self._machine = machine
        # How this machine reaches the package index, with the files that say so.
        self._settings = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))}
        named = {"/etc/pip.conf", *self._settings.values()}
        self._binds = [f"--bind-ro={path}" for path in named if path.startswith("/") and Path(path).exists()]

    def run(self, command: str, *, network: bool = False) -> str:
        """What a command prints. It has to end with 0."""
        words = ["systemd-nspawn", "--quiet", "--console=pipe", "--register=no", "--keep-unit"]
        words += [f"--directory={self._machine}", "--user=newcomer", f"--chdir={SOURCE}", *self._binds]
        words += ["--resolv-conf=replace-host"] if network else ["--private-network"]
        words += [f"--setenv={name}={value}" for name, value in self._settings.items()]
        done = subprocess.run(
            [*words, "sh", "-ec", command], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
        return done.stdout


@pytest.fixture
def newcomer() -> Iterator[Newcomer]:
    named = re.search(r"(?s)On Debian 13 these are the packages (.*?)\. ", (ROOT / "README.md").read_text())
    assert named
    packages = re.findall(r"`(.*?)`", named[1])
    with TemporaryDirectory(dir=MEMORY if shutil.disk_usage(MEMORY).free > 4 << 30 else None) as folder:
        machine = Path(folder, "machine")
        included = ",".join([*packages, "ca-certificates"])
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={included}", SUITE, str(machine)],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode != 0:
            pytest.skip(f"LOUD: Debian's packages can't be had here: {made.stdout[-500:]}{made.stderr[-500:]}")
        script = f'chroot "$1" useradd --create-home newcomer; mkdir "$1{SOURCE}"'
        script += f'; git -C "$0" archive HEAD | tar --extract --directory="$1{SOURCE}"'
        script += '; chroot "$1" chown --recursive newcomer: /home/newcomer'
        subprocess.run(["bash", "-euo", "pipefail", "-c", script, str(ROOT), str(machine)], check=True)
        yield Newcomer(machine)


def test_the_two_commands_of_the_readme(newcomer: Newcomer) -> None:
    readme = (ROOT / "README.md").read_text().partition("## How it works")[0]
    demo, test = re.findall(r"```sh\n(.*)\n```", readme)
    assert newcomer.run("id -un") == "newcomer\n"
    printed = newcomer.run(demo, network=True)
    assert printed.endswith("Every change arrived.\n")
    assert "NO COLLECTOR" not in printed
    newcomer.run("make .venv/.dev", network=True)  # so that the tests have no network, and ports of their own
    printed = newcomer.run(test)
    assert re.search(r"(?m)^=+ \d{4} passed, \d+ skipped in ", printed), printed[-2000:]
