"""Programs in store paths that need nothing else: a C library, a program linked to it, and a complete Python.

`build` makes them, and uses a real Nix to sign them and write them into a binary cache. They refer to each other by absolute paths
in /nix/store, so they only run where the mount is at /nix/store.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from narcore.export import dump
from narcore.formats.nar import write_nar
from tests.e2e.links import base_name, store_path
from tests.realnix import RealNix

TOOLS = ("nix", "gcc", "patchelf", "ldd")

LIBC, HELLO, PYTHON = "libc-0.1", "hello-dynamic-0.1", "python-0.1"
NAMES = (LIBC, HELLO, PYTHON)
GREETING = "hello from the store"

_HELLO_C = f"""
#include <math.h>
#include <stdio.h>
#include <unistd.h>
int main(int argc, char **argv) {{
    volatile double two = 2.0;
    printf("{GREETING} %.4f\\n", sqrt(two));
    fflush(stdout);
    while (argc > 1) {{ usleep(20000); puts("tick"); fflush(stdout); }}
    return 0;
}}
"""

_LEFT_OUT = shutil.ignore_patterns(
    "__pycache__", "site-packages", "test", "tests", "lib2to3", "idlelib", "ensurepip", "turtledemo", "tkinter",
    "pydoc_data", "config-*", "_tkinter*", "_test*", "_ctypes_test*", "*.a", "nis.*",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Programs:
    """``cache`` is the binary cache, signed with ``public_key``. ``trees`` has the same store paths unpacked."""

    cache: Path
    trees: Path
    public_key: str


def program(name: str, path: str) -> str:
    """Return the absolute path of a file of one of `NAMES`."""
    return f"{store_path(name)}/{path}"


PYTHON_PROGRAM = program(PYTHON, "bin/python3")
HELLO_PROGRAM = program(HELLO, "bin/hello")


def build(directory: Path) -> Programs:
    """Make the programs below the empty ``directory``. Takes some seconds."""
    nix, trees = RealNix.start(directory), directory / "trees"
    for make in (_libc, _hello, _python):
        make(trees)
    libc, hello, python = NAMES
    for name, references in ((libc, ()), (hello, (libc,)), (python, (libc,))):
        nar = b"".join(write_nar(dump(trees / base_name(name))))
        nix.import_path(base_name(name), nar, map(base_name, references))
    nix.sign_all()
    nix.copy_all("compression=zstd&write-nar-listing=1")
    return Programs(nix.cache, trees, (directory / "key.pk").read_text().strip())


def _libc(trees: Path) -> None:
    target = trees / base_name(LIBC) / "lib"
    target.mkdir(parents=True)
    for library, source in _libraries([Path(sys.executable)]).items():
        if library in ("libc.so.6", "libm.so.6") or library.startswith("ld-"):
            shutil.copy(source, target / library)


def _interpreter(trees: Path) -> str:
    """Return the absolute path of the dynamic linker."""
    (linker,) = (trees / base_name(LIBC) / "lib").glob("ld-*")
    return program(LIBC, f"lib/{linker.name}")


def _hello(trees: Path) -> None:
    tree = trees / base_name(HELLO)
    (tree / "bin").mkdir(parents=True)
    (tree / "hello.c").write_text(_HELLO_C)
    links = [f"-Wl,--dynamic-linker={_interpreter(trees)}", f"-Wl,-rpath={store_path(LIBC)}/lib"]
    subprocess.run(["gcc", "-O1", *links, "-o", tree / "bin/hello", tree / "hello.c", "-lm"], check=True)


def _python(trees: Path) -> None:
    tree = trees / base_name(PYTHON)
    (tree / "bin").mkdir(parents=True)
    shutil.copy(Path(sys.executable).resolve(), tree / "bin/python3")
    stdlib = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(stdlib, tree / "lib" / stdlib.name, ignore=_LEFT_OUT)
    modules = [tree / "bin/python3", *(tree / "lib").rglob("*.so")]
    libc = {path.name for path in (trees / base_name(LIBC) / "lib").iterdir()}
    copied = []
    for library, source in _libraries(modules).items():
        if library not in libc:
            copied.append(Path(shutil.copy(source, tree / "lib" / library)))
    rpath = f"{store_path(PYTHON)}/lib:{store_path(LIBC)}/lib"
    for module in (*modules, *copied):
        subprocess.run(["patchelf", "--set-rpath", rpath, module], check=True)
    subprocess.run(["patchelf", "--set-interpreter", _interpreter(trees), tree / "bin/python3"], check=True)
    _compile(tree / "lib")


def _compile(directory: Path) -> None:
    """Compile all modules as Nix does: with file times of one second after the epoch, which the byte code contains."""
    for path in directory.rglob("*.py"):
        os.utime(path, (1, 1))
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "compileall",
        "-q",
        "-j2",
        "--invalidation-mode",
        "timestamp",
        directory,
    ]
    subprocess.run(command, check=True)


def _libraries(programs: Iterable[Path]) -> dict[str, Path]:
    """Return the libraries that the programs are linked to: name and path on this machine. They include the dynamic linker."""
    output = subprocess.run(["ldd", *programs], stdout=subprocess.PIPE, text=True, check=True).stdout
    found = re.findall(r"^\s+(\S+) => (/\S+)", output, re.MULTILINE) + re.findall(
        r"^\s+()(/\S+) \(", output, re.MULTILINE
    )
    return {name or Path(path).name: Path(path) for name, path in found}
