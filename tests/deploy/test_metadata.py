"""The project's metadata for PyPI, and the type information in its wheel."""

import re
import tomllib

from narcore import __version__
from narcore.errors import how_to_install
from tests import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TEXTS = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "deploy/**/*",
    *(f"{name}/**/*.py" for name in ("narcore", "api")),
)
PROGRAMS = ("narmount/**/*.py", "narserve/**/*.py")


def test_the_changelog_is_about_this_version() -> None:
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading is not None
    assert heading[1] == PROJECT["version"] == __version__


def test_the_classifiers_name_only_python_versions_that_are_supported() -> None:
    oldest = PROJECT["requires-python"].removeprefix(">=")
    versions = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", each)]
    assert versions[0] == oldest
    assert versions == sorted(versions, key=lambda each: int(each[2:]))
    assert PROJECT["authors"] == [{"name": "the nar-serve authors"}]


def test_every_package_of_the_wheel_is_marked_as_typed() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert "Typing :: Typed" in PROJECT["classifiers"]
    for package in packages["packages"]:
        assert (ROOT / package / "py.typed").is_file()


def test_no_text_advises_a_package_that_is_not_on_pypi() -> None:
    paths = [path for pattern in (*TEXTS, *PROGRAMS) for path in ROOT.glob(pattern) if path.is_file()]
    assert len(paths) > 100
    for path in paths:
        assert "nar-serve[" not in path.read_text(), path
    assert how_to_install("server") == "in a checkout of nar-serve, run: pip install '.[server]'"
