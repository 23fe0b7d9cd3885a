"""docs/dependencies.md names what is installed: no package without a reason, and no reason without a package."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Final

import pytest
from packaging.requirements import Requirement

from tests.registry import (
    BEGIN,
    BEGIN_FOR_DEVELOPERS,
    END,
    FOR_USERS,
    PAGE,
    PLATFORMS,
    for_developers,
    normal,
    required,
    wheels,
)

ROOT: Final = PAGE.parents[1]
TEXT: Final = PAGE.read_text()
OPTIONAL: Final = {"confluent-kafka"}
"""An extra may lack wheels for a platform, if the page says so."""


def rows() -> dict[str, list[str]]:
    """The cells of the generated tables, by package."""
    generated = TEXT.partition(BEGIN)[2].partition(END)[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in generated.splitlines() if line[:1] == "|"]
    return {cells[0]: cells[1:] for cells in lines if cells[0] != "package" and not cells[0].startswith("---")}


def installed(names: list[str]) -> set[str]:
    """The packages that an installation brings on this machine."""
    found: set[str] = set()
    pending = [*names]
    while pending:
        name = normal(pending.pop())
        if name in found:
            continue
        found.add(name)
        try:
            further = [Requirement(line) for line in requires(name) or ()]
        except PackageNotFoundError:
            continue
        pending += [one.name for one in further if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def pinned() -> dict[str, str]:
    """The versions in constraints.txt, by package."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {normal(name): number for name, _, number in (line.partition("==") for line in lines)}


def is_pinned(name: str) -> bool:
    """Whether the pinned version is the one that is installed."""
    try:
        return version(name) == pinned()[normal(name)]
    except PackageNotFoundError:
        return False


has_pinned = pytest.mark.skipif(
    not all(map(is_pinned, required())),
    reason="other versions than the pinned ones are installed, and they may depend on other packages",
)


def test_each_dependency_has_its_reason() -> None:
    headings = re.findall(r"^### (.+)\n\n(.+)", TEXT, re.MULTILINE)
    assert [name for name, _ in headings] == sorted(required())
    assert all(len(reason) > 40 for _, reason in headings)


@has_pinned
def test_each_package_of_an_installation_has_a_row() -> None:
    """Also those that the dependencies bring. `make dependencies` writes the tables anew."""
    assert installed(required()) <= rows().keys()
    for name, (licence, release, platforms) in rows().items():
        assert licence not in ("", "not stated", "not installed here"), name
        assert re.fullmatch(r"\S+, 20\d\d-\d\d-\d\d", release), name
        assert "NONE" not in platforms or name in OPTIONAL, name


@pytest.mark.parametrize("extra", ["browser", "demo", "dev", "fuzz", "site"])
def test_each_package_for_developers_is_named(extra: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"browser", "demo", "dev", "fuzz", "site", *FOR_USERS} == project["optional-dependencies"].keys()
    part = TEXT.partition(f"The extra `{extra}`")[2].partition("The extra")[0]
    named = [name for line in part.splitlines() if line.startswith("- ") for name in re.findall("`([^`/]+)`", line)]
    assert sorted(named) == sorted(Requirement(line).name for line in project["optional-dependencies"][extra])


def test_each_package_for_developers_has_its_release() -> None:
    generated = TEXT.partition(BEGIN_FOR_DEVELOPERS)[2].partition(END)[0]
    released = re.findall(r"^\| (\S+) \| \S+, 20\d\d-\d\d-\d\d \|$", generated, re.MULTILINE)
    assert released == sorted({normal(Requirement(line).name) for line in for_developers()})


@has_pinned
def test_every_package_is_pinned() -> None:
    assert installed(required()) <= pinned().keys()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a-1-py3-none-any.whl"], "pure Python"),
        (
            ["a-1-cp311-abi3-manylinux_2_28_x86_64.whl"],
            "NONE on glibc arm64, musl x86-64, musl arm64, macOS x86-64, macOS arm64",
        ),
        (
            [
                f"a-1-cp3{minor}-cp3{minor}-{tag}.whl"
                for minor in (11, 12, 13)
                for tag in (
                    "manylinux_2_28_x86_64", "manylinux2014_aarch64.manylinux_2_17_aarch64", "musllinux_1_2_x86_64",
                    "musllinux_1_2_aarch64", "macosx_11_0_universal2",
                )
            ],
            "native",
        ),
        (["a-1-cp313-cp313-macosx_11_0_arm64.whl", "a-1-py3-none-any.whl"], "pure Python"),
    ],
)  # fmt: skip
def test_what_the_names_of_wheels_say(files: list[str], expected: str) -> None:
    assert len(PLATFORMS) == 6
    assert wheels(files) == expected
