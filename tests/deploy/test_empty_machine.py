"""README.md on a machine that has nothing but Debian, make and Python with its module venv, for a user without rights.

The machine is a container of systemd-nspawn with its own files. It has a network only while packages are installed.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.machine import ROOT, missing

SUITE = "trixie"
PACKAGES = "make,python3-venv,ca-certificates"
SOURCE = "/home/newcomer/source"
NEEDS = missing() or ("" if shutil.which("debootstrap") else "LOUD: debootstrap is missing, no empty machine is made")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.skipif(bool(NEEDS), reason=NEEDS)]


class Newcomer:
    """A user of the empty machine in a folder, who runs commands in the folder of the sources."""

    def __init__(self, machine: Path) -> None:
        self._machine = machine
        # How this machine reaches the package index, with the files that say so.
        self._settings = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))}
        named = {"/etc/pip.conf", *self._settings.values()}
        self._binds = [f"--bind-ro={path}" for path in named if path.startswith("/") and Path(path).exists()]

    def run(self, command: str, *, network: bool = False) -> str:
        """What a command prints. It has to end with 0."""
        words = [
            "systemd-nspawn",
            "--quiet",
            "--console=pipe",
            "--register=no",
            "--keep-unit",
            f"--directory={self._machine}",
        ]
        words += ["--user=newcomer", f"--chdir={SOURCE}", *self._binds, "--resolv-conf=replace-host"]
        words += [f"--setenv={name}={value}" for name, value in self._settings.items()]
        words += [] if network else ["--private-network"]
        done = subprocess.run(
            [*words, "sh", "-ec", command], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        return done.stdout


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    folder = tmp_path_factory.mktemp("empty")
    machine = folder / "machine"
    made = subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(machine)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        pytest.skip(f"LOUD: Debian's packages can't be had here: {made.stdout[-500:]}{made.stderr[-500:]}")
    subprocess.run(["chroot", str(machine), "useradd", "--create-home", "newcomer"], check=True)
    archive = f"git -C {ROOT} archive HEAD | tar --extract --directory={machine}{SOURCE}"
    subprocess.run(["chroot", str(machine), "mkdir", SOURCE], check=True)
    subprocess.run(["bash", "-c", f"set -o pipefail; {archive}"], check=True)
    subprocess.run(["chroot", str(machine), "chown", "--recursive", "newcomer:", SOURCE], check=True)
    yield Newcomer(machine)
    shutil.rmtree(folder, ignore_errors=True)


def test_the_two_commands_of_the_readme(newcomer: Newcomer) -> None:
    readme = (ROOT / "README.md").read_text().partition("## How it works")[0]
    demo, test = re.findall(r"```sh\n(.*)\n```", readme)
    assert newcomer.run("id -un") == "newcomer\n"
    assert newcomer.run(demo, network=True).endswith("Every change arrived.\n")
    newcomer.run("make .venv/.dev", network=True)
    printed = newcomer.run(test)
    assert re.search(r"(?m)^=+ \d{4} passed, \d+ skipped in ", printed), printed[-2000:]
