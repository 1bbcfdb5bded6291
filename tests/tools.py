"""Programs that some tests need, and that do not belong in the project's environment.

Each program is installed once from its registry, into a directory of the user's cache whose name has a hash of its requirements.
``NAR_SERVE_TOOLS_DIR`` selects another directory. If a program can't be installed, its tests are skipped, but not in CI.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tests import ROOT, needs

OSLS, CFN_LINT, MOTO = "osls@4.3.1", "cfn-lint==1.58.0", "moto[s3]==5.2.5"
AXE = "axe-core@4.14.1"
KUBERNETES_VALIDATE = "kubernetes-validate==1.37.0"
VERCEL_RUNTIME, AWSLAMBDARIC = "vercel-runtime==0.24.1", "awslambdaric==4.2.2"


@cache
def vercel_python() -> Path:
    """Return a Python 3.12 or newer with Vercel's runtime and the project's dependencies, like a deployment on Vercel."""
    python = _python_for_vercel()
    if python is None:
        needs.missing("Python 3.12", "install Python 3.12 or newer, on PATH or by pyenv")
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return _venv("vercel", python, [VERCEL_RUNTIME, *dependencies])


@cache
def moto_server() -> Path:
    """Return the program ``moto_server``, a local S3 server. Its environment also has boto3."""
    return _venv("moto", sys.executable, [MOTO, "flask", "flask-cors"]).with_name("moto_server")


@cache
def lambda_python() -> Path:
    """Return a Python like Lambda's: with the runtime client, and without the project's dependencies."""
    return _venv("lambda", sys.executable, [AWSLAMBDARIC])


@cache
def cfn_lint() -> Path:
    """Return the program ``cfn-lint``."""
    return _venv("cfn-lint", sys.executable, [CFN_LINT]).with_name("cfn-lint")


@cache
def kubernetes_validate() -> Path:
    """Return the program ``kubernetes-validate``, which contains the schemas of the Kubernetes versions: 100 MB."""
    return _venv("kubernetes-validate", sys.executable, [KUBERNETES_VALIDATE]).with_name("kubernetes-validate")


@cache
def osls() -> Path:
    """Return the program ``osls``, which reads a serverless.yml. Needs npm."""
    return _npm_package("osls", OSLS) / "node_modules/.bin/osls"


@cache
def axe() -> Path:
    """Return the script of axe-core, which runs in a page and finds accessibility problems. Needs npm."""
    return _npm_package("axe", AXE) / "node_modules/axe-core/axe.min.js"


def _npm_package(name: str, requirement: str) -> Path:
    """Return the directory in which npm has installed a package."""
    needs.program("npm")

    def install(directory: Path) -> None:
        _run("npm", "install", "--prefix", directory, "--no-audit", "--no-fund", "--silent", requirement)

    return _installed(name, [requirement], install)


def _python_for_vercel() -> str | None:
    names = ("python3.12", "python3.13", "python3.14", "python3")
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    candidates = [sys.executable, *names, *map(str, sorted(pyenv.glob("3.1[2-9]*/bin/python")))]
    return next(filter(_is_new_enough, candidates), None)


def _is_new_enough(python: str) -> bool:
    """Run the interpreter instead of only looking for it: pyenv leaves programs on PATH that don't start."""
    code = "import sys; sys.exit(sys.version_info < (3, 12))"
    try:
        return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def _venv(name: str, python: str, requirements: list[str]) -> Path:
    """Return the interpreter of an environment with these packages."""

    def install(directory: Path) -> None:
        _run(python, "-m", "venv", "--copies", directory)
        pip = (directory / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        _run(*pip, *requirements)

    version = subprocess.run([python, "-VV"], capture_output=True, text=True, check=True).stdout
    return _installed(name, [version, *requirements], install) / "bin/python"


def _installed(name: str, parts: list[str], install: Callable[[Path], None]) -> Path:
    """Return the directory that ``install`` fills. One process installs at a time, and repeats an interrupted installation."""
    home = Path(os.environ.get("NAR_SERVE_TOOLS_DIR") or _user_cache() / "nar-serve-tools")
    home.mkdir(parents=True, exist_ok=True)
    directory = home / f"{name}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:12]}"
    stamp = directory / "complete"
    with _locked(home / f"{name}.lock"):
        if not stamp.exists():
            for old in home.glob(f"{name}-*"):
                shutil.rmtree(old)
            try:
                install(directory)
            except (OSError, subprocess.CalledProcessError) as error:
                needs.missing(name, f"install it from its registry: {error}")
            stamp.touch()
    return directory


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
