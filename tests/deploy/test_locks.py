"""The lock files: complete, in agreement with pyproject.toml, and free of anything that belongs to one machine."""

import re
from importlib import metadata

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from locks.renew import EVERY_EXTRA, LOCKS, SETS, lock_file, requirements
from tests import ROOT

PIN = re.compile(r"(?P<name>[a-z0-9-]+)==(?P<version>[^ ;]+)(?: ; (?P<marker>.+))?")
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}")
RENEW = "run ./start-dev lock"


def entries(name: str) -> list[tuple[re.Match[str], list[str]]]:
    """The pins of a lock file, each with its hash lines. Fails if the file has any other line."""
    found = []
    for line in lock_file(name).read_text().replace(" \\\n    --hash", "\n    --hash").splitlines():
        if line.startswith("#"):
            continue
        if pin := PIN.fullmatch(line):
            hashes: list[str] = []
            found.append((pin, hashes))
        else:
            assert HASH.fullmatch(line), f"locks/{name}.txt: {line}"
            hashes.append(line)
    return found


def pins(name: str) -> dict[str, str]:
    return {pin["name"]: pin["version"] for pin, _ in entries(name)}


def closure(roots: list[str]) -> set[str]:
    """The names of all packages that the requirements need on this machine, by the metadata of installed packages."""
    seen: set[tuple[str, str]] = set()
    todo = [Requirement(each) for each in roots]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            needed = map(Requirement, metadata.requires(name) or ())
            todo += [each for each in needed if each.marker is None or each.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}


def test_every_set_has_its_file() -> None:
    assert {path.stem for path in LOCKS.glob("*.txt")} == set(SETS)


def test_the_set_of_every_extra_lacks_only_development() -> None:
    extras = set(metadata.metadata("nar-serve").get_all("Provides-Extra") or ())
    assert set(EVERY_EXTRA) == extras - {"dev", "watch"}


@pytest.mark.parametrize("name", SETS)
def test_every_line_is_a_version_with_hashes_and_names_no_index_or_path(name: str) -> None:
    for pin, hashes in entries(name):
        assert hashes, f"locks/{name}.txt: {pin[0]} has no hash"


@pytest.mark.parametrize("name", SETS)
def test_every_requirement_of_pyproject_is_locked(name: str) -> None:
    locked = pins(name)
    for requirement in map(Requirement, requirements(name)):
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None, f"locks/{name}.txt lacks {requirement}: {RENEW}"
        assert requirement.specifier.contains(version), f"locks/{name}.txt: {version} is not {requirement}: {RENEW}"


@pytest.mark.parametrize("name", SETS)
def test_a_lock_has_everything_that_its_packages_need(name: str) -> None:
    assert closure(requirements(name)) <= set(pins(name)), RENEW


def test_a_package_has_one_version_in_all_locks() -> None:
    dev = pins("dev")
    for name in SETS:
        assert pins(name).items() <= dev.items(), f"locks/{name}.txt and locks/dev.txt differ: {RENEW}"


def test_the_build_backend_is_locked_where_the_project_is_built() -> None:
    assert {name for name in SETS if "hatchling" in pins(name)} == {"dev", "all", "serve"}


def test_no_marker_of_the_lambda_lock_depends_on_the_machine() -> None:
    """pip evaluates markers for the machine that builds the package, not for Lambda."""
    for pin, _ in entries("lambda"):
        if pin["marker"]:
            for system in ("linux", "darwin", "win32"):
                for version in ("3.11", "3.14"):
                    where = {"sys_platform": system, "python_version": version, "implementation_name": "cpython"}
                    where |= {"platform_python_implementation": "CPython", "platform_machine": "any"}
                    assert Marker(pin["marker"]).evaluate(where), pin[0]


def test_the_image_removes_the_build_backend_and_nothing_else() -> None:
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    (removed,) = re.findall(r"pip uninstall --yes (.*)$", dockerfile, re.MULTILINE)
    roots = [each for each in requirements("all") if not each.startswith("hatchling")]
    assert set(removed.split()) == {*pins("all"), "pip"} - closure(roots)
