"""Builds a release in dist/ and checks it, up to the upload. `make release` runs it.

    python .ci/release.py --tools build/tools/bin [--draft] [--python PYTHON]

It checks that build/sbom.json, which `make sbom` writes, is that of this version. It builds the sdist and the wheel
twice, in two copies of the commit in different folders, and both have to be the same byte for byte. Then it checks what
a package index would refuse, and installs the wheel into an empty environment of each Python, with the newest
dependencies, on the oldest one also with the oldest, and the sdist once. In each it runs the demo.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MINORS = [int(one.rpartition(".")[2]) for one in PROJECT["classifiers"] if re.search(r" :: 3\.\d+$", one)]


def run(*command: str | Path, cwd: Path = ROOT, **variables: str) -> str:
    """The output of a command, which has to succeed."""
    ran = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if ran.returncode:
        sys.exit(f"{ran.stdout}\n{' '.join(map(str, command))}: exit code {ran.returncode}")
    return ran.stdout


def version(*, is_draft: bool) -> str:
    """The version in statsig_otel/__init__.py, if nothing is uncommitted.

    But for a draft, the changelog must have it too, and the package has to say where it comes from.
    """
    (found,) = re.findall(r'(?m)^__version__ = "(.+)"$', (ROOT / "statsig_otel" / "__init__.py").read_text())
    if not is_draft and not re.search(
        rf"(?m)^## \[{re.escape(found)}\] - \d{{4}}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text()
    ):
        sys.exit(f'CHANGELOG.md has no heading "## [{found}] - DATE": write it, or change __version__')
    if not is_draft and not PROJECT.get("urls"):
        sys.exit(
            "pyproject.toml has no [project.urls], by which users find the source, the changelog and where to report"
        )
    if changed := run("git", "status", "--porcelain"):
        sys.exit(f"Commit these files first, since a release is made of a commit:\n{changed}")
    return str(found)


def check_sbom(number: str) -> None:
    """Check that build/sbom.json has this version, and all that it needs with the extra of the image."""
    document = json.loads((ROOT / "build" / "sbom.json").read_text())
    product = document["metadata"]["component"]
    if product.get("version") != number:
        sys.exit(f"build/sbom.json is of {product['name']} {product.get('version')}, not {number}")
    needed = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["kafka"]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", one)[0]).lower() for one in needed}
    listed = {re.sub(r"[-_.]+", "-", one["name"]).lower() for one in document["components"]}
    if missing := names - listed:
        sys.exit(f"build/sbom.json lacks {', '.join(sorted(missing))}")
    print(f"build/sbom.json: {product['name']} {number} and {len(listed)} packages")


def build(uv: Path, folder: Path) -> dict[str, bytes]:
    """The sdist and the wheel of a copy of the commit, by their names."""
    run("git", "clone", "--quiet", ROOT, folder)
    run(uv, "build", "--quiet", "--out-dir", folder / "dist", folder)
    return {path.name: path.read_bytes() for path in sorted((folder / "dist").glob("statsig_otel-*"))}


def pythons(wanted: list[str]) -> Iterator[Path]:
    """The named ones, or those of the supported versions on the PATH and of pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for minor in MINORS:
        of_pyenv = (pyenv / "versions").glob(f"3.{minor}.*/bin/python3")
        for name in wanted or [f"python3.{minor}", *map(str, of_pyenv)]:
            found = shutil.which(name)
            if found and subprocess.run([found, "-c", "import venv"], check=False, capture_output=True).returncode == 0:
                yield Path(found)
                break
        else:
            print(f"!! THERE IS NO PYTHON 3.{minor} ON THIS MACHINE: THE PACKAGES ARE NOT INSTALLED INTO ONE")
        if wanted:
            break


def install(uv: Path, python: Path, package: Path, dependencies: str) -> None:
    """Install a package into an empty environment, and run the main job far from this repository."""
    with TemporaryDirectory(prefix="statsig-otel-release-") as name:
        folder = Path(name)
        constraints = folder / "constraints.txt"
        constraints.write_text(run(sys.executable, ROOT / ".ci" / "constraints.py", dependencies))
        run(uv, "venv", "--quiet", "--python", python, folder / "venv")
        environment = folder / "venv" / "bin" / "python"
        run(uv, "pip", "install", "--quiet", "--python", environment, "--constraint", constraints, package)
        program = folder / "venv" / "bin" / "statsig-otel"
        told = run(program, "--version", cwd=folder).strip()
        seen = run(program, "demo", "--once", cwd=folder)
        delivered = re.search(r"(\d+) of \1 changes", seen)
        if delivered is None:
            sys.exit(f"{seen}\n{package.name} on {python} with the {dependencies} dependencies: not all arrived")
        print(f"{package.name} on {python}, {dependencies} dependencies: {told}, {delivered[0]} delivered")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", type=Path, required=True, help="the folder of uv and twine")
    parser.add_argument("--draft", action="store_true", help="of a version that the changelog does not have yet")
    parser.add_argument("--python", action="append", default=[], help="only this one, such as python3.12")
    arguments = parser.parse_args()
    tools: Path = arguments.tools.absolute()
    uv = tools / "uv"
    number = version(is_draft=arguments.draft)
    check_sbom(number)
    with TemporaryDirectory(prefix="statsig-otel-release-") as name:
        first, second = (build(uv, Path(name, folder)) for folder in ("one", "two-with-a-longer-name"))
    if first != second:
        differing = [one for one in first if first[one] != second.get(one)]
        sys.exit(f"Two builds of one commit differ: {', '.join(differing)}")
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    dist.mkdir()
    files = [dist / one for one in first]
    for file in files:
        file.write_bytes(first[file.name])
    wheel, sdist = files
    print(f"{sdist.name} and {wheel.name}: twice the same bytes")
    print(run(tools / "twine", "--no-color", "check", "--strict", *files).strip())
    for position, python in enumerate(pythons(arguments.python)):
        # The oldest dependencies have wheels for the oldest Python; those for a newer one may be newer.
        for dependencies in ("newest", "oldest") if position == 0 else ("newest",):
            install(uv, python, wheel, dependencies)
    install(uv, Path(sys.executable), sdist, "pinned")
    for runner in ((tools / "uvx", "--from"), (tools / "pipx", "run", "--spec")):
        print(f"by {runner[0].name}: {run(*runner, wheel, 'statsig-otel', '--version').splitlines()[-1]}")
    if arguments.draft:
        print(f"A draft of version {number} is in dist/")
    else:
        print(f"Version {number} is in dist/. To publish it: git tag v{number} && twine upload dist/statsig_otel-*")


if __name__ == "__main__":
    main()
