#!/usr/bin/env python3
"""Writes the lock files: for each install set, the exact version and the hashes of every package.

``./start-dev lock`` runs this program. It needs uv, because pip can't resolve for several Python versions and platforms
at once. To install the packages of a lock file, users and deployments need only pip. The requirements come from pyproject.toml.
The package index is always PyPI, even if the machine is configured to use another index. The lock files do not name the index.
"""

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "locks"
PYPI = "https://pypi.org/simple"
OLDEST_PYTHON = "3.11"

HEADER = """\
# {purpose}
# Made from pyproject.toml by `./start-dev lock`; do not edit.
"""


@dataclass(frozen=True, slots=True)
class InstallSet:
    """The packages that one kind of installation needs. ``build_backend``: also the packages that build nar-serve itself."""

    purpose: str
    extras: tuple[str, ...]
    build_backend: bool = True


EVERY_EXTRA = ("csi", "isal", "lz4", "metrics", "objectstore", "server")

# The set dev comes first. It constrains the other sets, so that a package has the same version in all files.
SETS: Mapping[str, InstallSet] = {
    "dev": InstallSet("All tests and checks: ./start-dev test", ("dev",)),
    "all": InstallSet("A server with every extra: the Docker image", EVERY_EXTRA),
    "serve": InstallSet("The development server: ./start-dev", ("server", "watch")),
    # The Lambda package has a copy of the sources, so no build backend is needed.
    "lambda": InstallSet("The AWS Lambda package", ("lz4", "objectstore"), build_backend=False),
}


def main(options: list[str]) -> int:
    """Write all files with the options of ``uv pip compile``, such as ``--upgrade``; return the exit status."""
    uv = shutil.which("uv") or shutil.which("uv", path=str(ROOT / ".venv" / "bin"))
    if uv is None:
        sys.stderr.write("renewing the locks needs uv: run .venv/bin/pip install uv, and start again\n")
        return 1
    for name in SETS:
        status = renew(uv, name, options)
        if status != 0:
            return status
    return 0


def renew(uv: str, name: str, options: list[str]) -> int:
    """Write one file. Keeps each version that still satisfies pyproject.toml, unless an option such as ``--upgrade`` is given."""
    file = lock_file(name)
    command = [uv, "pip", "compile", "-", "--universal", "--python-version", OLDEST_PYTHON, "--generate-hashes"]
    command += ["--no-config", "--default-index", PYPI, "--no-emit-index-url", "--no-emit-find-links"]
    command += ["--no-annotate", "--no-header", "--quiet", "--output-file", str(file)]
    if name != "dev":
        command += ["--constraints", str(lock_file("dev"))]
    lines = "\n".join(requirements(name))
    status = subprocess.run([*command, *options], input=lines, text=True, env=environment(), check=False).returncode
    if status == 0:
        file.write_text(HEADER.format(purpose=SETS[name].purpose) + file.read_text())
        count = sum("==" in line for line in file.read_text().splitlines())
        sys.stdout.write(f"locks/{file.name}: {count} packages\n")
    return status


def environment() -> dict[str, str]:
    """Return this process's environment without settings that change uv's result, such as another index or constraints."""
    keep = {"UV_CACHE_DIR", "UV_NATIVE_TLS", "UV_SYSTEM_CERTS"}
    return {name: value for name, value in os.environ.items() if not name.startswith("UV_") or name in keep}


def lock_file(name: str) -> Path:
    return LOCKS / f"{name}.txt"


def requirements(name: str) -> list[str]:
    """Return the requirements of an install set, from pyproject.toml.

    Raises KeyError if there is no such set or extra.
    """
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project: dict[str, Any] = pyproject["project"]
    found: list[str] = list(project["dependencies"])
    for extra in SETS[name].extras:
        found += of_extra(project, extra)
    if SETS[name].build_backend:
        found += pyproject["build-system"]["requires"]
    return found


def of_extra(project: dict[str, Any], extra: str) -> list[str]:
    """Return the requirements of an extra. If it requires other extras of the project, includes their requirements instead."""
    found: list[str] = []
    for requirement in project["optional-dependencies"][extra]:
        if requirement.startswith(f"{project['name']}["):
            names = requirement.partition("[")[2].rstrip("]").split(",")
            found += [each for name in names for each in of_extra(project, name)]
        else:
            found.append(requirement)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
