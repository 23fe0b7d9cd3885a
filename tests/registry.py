"""Writes what the registry says of each package that an installation brings into docs/dependencies.md.

The packages and their files are those of a resolution by uv for all platforms and all versions of Python, with the
newest releases. Licences are those of the packages that are installed beside this script.

    make dependencies
"""

import argparse
import re
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, metadata
from itertools import product
from pathlib import Path
from typing import Any, Final, TypeAlias

from packaging.requirements import Requirement

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs" / "dependencies.md"
BEGIN, END = "<!-- from the registry -->\n", "<!-- end -->\n"
BEGIN_FOR_DEVELOPERS: Final = "<!-- from the registry, for developers -->\n"

PYTHONS: Final = ("cp311", "cp312", "cp313")
PLATFORMS: Final = tuple(product(("glibc", "musl", "macOS"), ("x86-64", "arm64")))
_TAGS: Final = {
    ("glibc", "x86-64"): r"manylinux\w*_x86_64",
    ("glibc", "arm64"): r"manylinux\w*_aarch64",
    ("musl", "x86-64"): r"musllinux\w*_x86_64",
    ("musl", "arm64"): r"musllinux\w*_aarch64",
    ("macOS", "x86-64"): r"macosx\w*_(?:x86_64|universal2)",
    ("macOS", "arm64"): r"macosx\w*_(?:arm64|universal2)",
}

FOR_USERS: Final = ("kafka",)
"""The extras that users install, and not only developers."""

Package: TypeAlias = Mapping[str, Any]


def normal(name: str) -> str:
    """A package's name as registries compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def required() -> list[str]:
    """The names of the dependencies of pyproject.toml and of the extras for users, as written there."""
    return [name for line in requirements() if (name := re.split(r"[^\w.-]", line)[0])]


def requirements() -> list[str]:
    """What an installation with all extras for users requires."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [
        *project["dependencies"],
        *(line for extra in FOR_USERS for line in project["optional-dependencies"][extra]),
    ]


def for_developers() -> list[str]:
    """What the extras for developers require."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return [line for extra, lines in extras.items() if extra not in FOR_USERS for line in lines]


def resolve(uv: str, requirements: Sequence[str]) -> dict[str, Package]:
    """The newest release of each package that an installation of these brings, with its files."""
    with tempfile.TemporaryDirectory() as directory:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        text = f'[project]\nname = "page"\nversion = "0"\nrequires-python = "{project["requires-python"]}"\n'
        Path(directory, "pyproject.toml").write_text(f"{text}dependencies = {requirements!r}\n")
        subprocess.run([uv, "lock", "--quiet"], cwd=directory, check=True)
        found = tomllib.loads(Path(directory, "uv.lock").read_text())["package"]
    return {package["name"]: package for package in found if package["name"] != "page"}


def wheels(files: Iterable[str]) -> str:
    """For which platforms there are wheels of every version of Python."""
    files = list(files)
    native = [[file for file in files if _fits(file, python)] for python in PYTHONS]
    there = [one for one in PLATFORMS if all(any(re.search(_TAGS[one], file) for file in some) for some in native)]
    if any(file.endswith("-none-any.whl") for file in files):
        rest = f"; slower without native code on {_listed(one for one in PLATFORMS if one not in there)}"
        return "pure Python" if not there else f"native{'' if len(there) == len(PLATFORMS) else rest}"
    missing = [one for one in PLATFORMS if one not in there]
    return f"NONE on {_listed(missing)}" if missing else "native"


def _fits(file: str, python: str) -> bool:
    """Whether a wheel with native code is for a version of Python (PEP 425: the last three parts of its name)."""
    interpreter, abi, platform = file.removesuffix(".whl").split("-")[-3:]
    own, wanted = re.fullmatch(r"cp3(\d+)", interpreter), int(python.removeprefix("cp3"))
    if platform == "any" or own is None:
        return False
    return (interpreter == python and abi == python) or (abi == "abi3" and int(own[1]) <= wanted)


def _listed(platforms: Iterable[tuple[str, str]]) -> str:
    return ", ".join(" ".join(one) for one in platforms)


def licence(name: str) -> str:
    """What an installed package says of its licence."""
    try:
        found = metadata(name)
    except PackageNotFoundError:
        return "not installed here"
    texts: list[str] = [*(found.get_all("License-Expression") or ()), *(found.get_all("License") or ())]
    classifiers: list[str] = found.get_all("Classifier") or []
    texts += [line.rpartition(" :: ")[2] for line in classifiers if line.startswith("License")]
    return next((text for text in texts if "\n" not in text), "not stated")


def table(packages: Mapping[str, Package], names: Sequence[str]) -> str:
    """A row for each package."""
    rows = ["| package | licence | last release | wheels |", "|---|---|---|---|"]
    for name in names:
        files = [wheel["url"].rpartition("/")[2] for wheel in packages[name].get("wheels", [])]
        rows.append(f"| {name} | {licence(name)} | {release(packages[name])} | {wheels(files)} |")
    return "\n".join(rows) + "\n"


def release(package: Package) -> str:
    """Its version and when it was published."""
    return f"{package['version']}, {max(wheel['upload-time'] for wheel in package['wheels'])[:10]}"


def releases(packages: Mapping[str, Package], names: Iterable[str]) -> str:
    """A shorter row for each package."""
    rows = [f"| {name} | {release(packages[name])} |" for name in sorted(set(map(normal, names)))]
    return "\n".join(["| package | last release |", "|---|---|", *rows]) + "\n"


def report(packages: Mapping[str, Package], date: str) -> str:
    """The generated part of the page."""
    direct = sorted({normal(name) for name in required()})
    rest = sorted(packages.keys() - set(direct))
    return (
        f"As of {date}, for {', '.join(PYTHONS)}, on Linux with glibc and musl and on macOS, each on x86-64 and "
        f"arm64.\n\n"
        f"{table(packages, direct)}\nThese come with them:\n\n{table(packages, rest)}"
    )


def main() -> None:
    """Write the tables anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uv", default="uv", help="the program that resolves (%(default)s)")
    given = parser.parse_args()
    uv = str(Path(shutil.which(given.uv) or given.uv).absolute())
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    _write(BEGIN, report(resolve(uv, requirements()), today))
    developers = for_developers()
    names = [Requirement(line).name for line in developers]
    _write(BEGIN_FOR_DEVELOPERS, f"As of {today}.\n\n{releases(resolve(uv, developers), names)}")


def _write(begin: str, made: str) -> None:
    """Replace a generated part of the page."""
    before, _, rest = PAGE.read_text().partition(begin)
    PAGE.write_text(f"{before}{begin}{made}{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
