#!/usr/bin/env python3
"""Writes the ZIP file for AWS Lambda: this project and the packages of locks/lambda.txt, for the architecture of the function.

``python3 deploy/lambda/build.py`` needs pip and access to PyPI. ``plugin.js`` runs it for ``npx osls package`` and ``deploy``.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "dist" / "lambda" / "nar-serve.zip"

LOCK = ROOT / "locks" / "lambda.txt"
SOURCES = ("api/**/*", "narcore/**/*", "narserve/__init__.py", "narserve/awslambda/*")
LEFT_OUT = ("*/__pycache__/*",)

# Files of the packages that nothing imports. The metadata stays, because packages read their own version from it. zstandard has
# two implementations: a C extension, which is used, and one with cffi. cryptography needs only the C module of cffi.
NOT_NEEDED: tuple[str, ...] = (
    *("bin/*", "*/tests/*", "*.pyi", "*.pyx", "*.pxd", "*.h", "*.c", "*/RECORD", "*/licenses/*", "*/sboms/*"),
    *("zstandard/_cffi*", "zstandard/backend_cffi.py", "cffi/*", "pycparser/*"),
)

MACHINES = {"arm64": "aarch64", "x86_64": "x86_64"}
WRAPPER = "narserve/awslambda/stream"


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the ZIP file for AWS Lambda.")
    parser.add_argument("--python", default="3.13", help="version in the name of the runtime (default: %(default)s)")
    parser.add_argument("--architecture", choices=MACHINES, default="arm64", help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="default: %(default)s")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nar-serve-lambda-") as directory:
        stage = Path(directory)
        install(stage, given.python, MACHINES[given.architecture])
        copy_sources(stage)
        compiled = compile_all(stage, given.python)
        given.output.parent.mkdir(parents=True, exist_ok=True)
        size = write_zip(stage, given.output)
    say(f"{given.output}: {size / 1e6:.1f} MB, {'with' if compiled else 'without'} byte code")
    if not compiled:
        say(
            f"no Python {given.python} on this machine to compile with, so a cold start compiles and takes a second longer"
        )
    return 0


def install(stage: Path, python: str, machine: str) -> None:
    """Install the packages of the lock file as wheels for the ``machine`` of the function, even on another kind of machine.

    pip evaluates environment markers for the machine on which it runs. That is harmless: the markers in the lock file have the
    same value for every CPython. A test checks this.
    """
    # Amazon Linux 2023 has glibc 2.34, and also runs wheels for older versions. pip needs the tag of each of these versions.
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(34, 16, -1)] + [f"manylinux2014_{machine}"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-compile",
        "--root-user-action=ignore",
    ]
    command += ["--target", str(stage), "--implementation", "cp", "--python-version", python, "--only-binary=:all:"]
    command += [option for platform in platforms for option in ("--platform", platform)]
    subprocess.run([*command, "--require-hashes", "--no-deps", "-r", str(LOCK)], check=True)
    for path in [path for path in stage.rglob("*") if path.is_file() and is_any(path.relative_to(stage), NOT_NEEDED)]:
        path.unlink()


def copy_sources(stage: Path) -> None:
    for source in sources():
        target = stage / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def sources() -> Iterator[Path]:
    for pattern in SOURCES:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file() and not is_any(path.relative_to(ROOT), LEFT_OUT):
                yield path


def is_any(path: Path, patterns: tuple[str, ...]) -> bool:
    """Return whether ``path`` or one of its parents matches a pattern."""
    return any(each.match(pattern) for each in (path, *path.parents) for pattern in patterns)


def compile_all(stage: Path, python: str) -> bool:
    """Write byte code next to the sources. Return False if this machine does not have the Python version.

    The function on Lambda can't write byte code itself, because its code directory is read-only.
    """
    interpreter = find_python(python)
    if interpreter is None:
        return False
    # unchecked-hash: Python does not compare byte code with the sources. A comparison of dates would fail, because Lambda changes
    # the dates of the files. No comparison is needed, because the files never change.
    command: list[str | Path] = [
        interpreter,
        "-m",
        "compileall",
        "-q",
        "--invalidation-mode",
        "unchecked-hash",
        "-s",
        stage,
        stage,
    ]
    return subprocess.run(command, check=False).returncode == 0


def find_python(version: str) -> str | None:
    """Return a Python of this version, or None. Runs each candidate, because pyenv puts commands on PATH that may not work."""
    pyenv = sorted((Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python"))
    code = f"import sys; sys.exit('{version}' != '%d.%d' % sys.version_info[:2])"
    for candidate in (sys.executable, f"python{version}", *map(str, pyenv)):
        try:
            if subprocess.run([candidate, "-c", code], capture_output=True, check=False).returncode == 0:
                return candidate
        except FileNotFoundError:
            continue
    return None


def write_zip(stage: Path, output: Path) -> int:
    """Write the ZIP file, and return its size in bytes. The files are sorted and have one date, so the result is reproducible."""
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(path for path in stage.rglob("*") if path.is_file()):
            name = path.relative_to(stage).as_posix()
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (0o100755 if name == WRAPPER else 0o100644) << 16
            archive.writestr(info, path.read_bytes())
    return output.stat().st_size


def say(line: str) -> None:
    sys.stdout.write(f"build: {line}\n")


if __name__ == "__main__":
    sys.exit(main())
