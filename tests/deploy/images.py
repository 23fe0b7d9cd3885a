"""Builds and runs the image of examples/docker with Podman.

No registry of images is asked. Python on Debian, on which the image is based, is made of Debian's packages, and kept in
the user's cache directory.
"""

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.deploy.machine import ROOT
from tests.e2e.otelcol import UnavailableError, locked

CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
BASE = "localhost/debian-python"
IMAGE = "localhost/statsig-otel"


def missing() -> str:
    """Why no image can be built here, or an empty string."""
    if os.geteuid() != 0:
        return "LOUD: the tests of the image need to be root"
    absent = [name for name in ("podman", "crun", "debootstrap") if shutil.which(name) is None]
    return f"LOUD: missing: {', '.join(absent)}" if absent else ""


_WITHOUT_SECOND_HIERARCHY = """
! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified
exec "$@"
"""
"""crun refuses a machine with both versions of control groups, also to a container without any."""


class Podman:
    """Podman with a store of its own in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def words(self, *arguments: str) -> list[str]:
        """The command for some arguments."""
        places = [f"--root={self._folder}/store", f"--runroot={self._folder}/run", f"--tmpdir={self._folder}/tmp"]
        return ["podman", *places, "--cgroup-manager=cgroupfs", "--events-backend=file", *arguments]

    def run(self, *arguments: str) -> list[str]:
        """The command for `podman run`, with the network of this machine and without control groups.

        Its limits may not be above those of this machine, and timers of systemd for health checks may not be there.
        """
        alone = ["unshare", "--mount", "sh", "-c", _WITHOUT_SECOND_HIERARCHY, "sh"]
        here = ["--network=host", "--cgroups=disabled", "--no-healthcheck"]
        limits = ["--ulimit=nofile=4096:4096", "--ulimit=nproc=1000:1000"]
        return [*alone, *self.words("run", "--rm", *here, *limits, *arguments)]

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run(self.words(*arguments), capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def build(self, command: str) -> None:
        """Build an image as a command for Docker says, from this folder of sources.

        Raises:
            UnavailableError: The base can't be had, or no container can be run here.

        The base knows the certificates of this machine, so that packages can be had from where this machine has them.
        """
        trust = [f"--change=ENV {name}={CERTIFICATES}" for name in ("SSL_CERT_FILE", "PIP_CERT")]
        self("import", *trust, str(_base()), BASE)
        tried = subprocess.run(self.run(BASE, "true"), capture_output=True, text=True, check=False)
        if tried.returncode:
            raise UnavailableError(f"no container can be run here: {tried.stderr[-500:]!r}")
        options = ["--format=docker", "--layers=false", "--isolation=chroot", "--network=host"]
        docker, build, *arguments = shlex.split(command)
        assert (docker, build) == ("docker", "build")
        self("build", *options, f"--build-arg=PYTHON={BASE}", *arguments)


def _base() -> Path:
    """An archive of a Debian with Python.

    Raises:
        UnavailableError: debootstrap can't make it.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "statsig-otel-tests" / "debian-python"
    archive = folder / "root.tar"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock"):
        if not archive.exists():
            root = folder / "root"
            shutil.rmtree(root, ignore_errors=True)
            packages = "--include=python3,python3-venv,ca-certificates"
            words = ["debootstrap", "--variant=minbase", packages, "bookworm", str(root)]
            made = subprocess.run(words, capture_output=True, text=True, check=False)
            if made.returncode:
                raise UnavailableError(f"debootstrap fails: {made.stdout[-500:]!r} {made.stderr[-500:]!r}")
            if CERTIFICATES.exists():
                shutil.copy(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
            _run("tar", f"--directory={root}", "--create", f"--file={folder}/unfinished", ".")
            (folder / "unfinished").replace(archive)
            shutil.rmtree(root)
    return archive


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def podman() -> Iterator[Podman]:
    """Podman; its containers and images are removed at the end. It wants its paths to be short."""
    with TemporaryDirectory(prefix="podman-") as folder:
        made = Podman(Path(folder))
        try:
            yield made
        finally:
            made("system", "reset", "--force")
