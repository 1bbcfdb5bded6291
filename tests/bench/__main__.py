"""``python -m tests.bench [NAME...]``: runs benchmarks and prints a Markdown table."""

import argparse
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.bench.archives import archives
from tests.bench.coldstart import firstbyte, imports
from tests.bench.coldstart_lambda import coldstart
from tests.bench.directory import directory
from tests.bench.filling import fill
from tests.bench.lookup import lookup
from tests.bench.memory import memory
from tests.bench.mounting import mount
from tests.bench.parser import parser
from tests.bench.report import HEAD, MB, Row
from tests.bench.serving import readers, warm
from tests.bench.setup import Setup
from tests.bench.slowclients import slowclients
from tests.bench.unpack import unpack
from tests.bench.viewing import viewing

BENCHES: Mapping[str, Callable[[Setup], Iterator[Row]]] = {
    bench.__name__: bench
    for bench in (
        unpack,
        archives,
        directory,
        parser,
        lookup,
        memory,
        imports,
        firstbyte,
        coldstart,
        warm,
        readers,
        fill,
        slowclients,
        viewing,
        mount,
    )
}
GROUPS: Mapping[str, tuple[str, ...]] = {
    "main": ("unpack", "archives", "directory", "parser", "lookup", "memory", "imports", "firstbyte"),
    "cache": ("warm", "readers", "fill"),
    "server": ("slowclients", "viewing"),
    "lambda": ("coldstart",),
    "volume": ("mount",),
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measure the speed of nar-serve against peers on the same machine, at the same time. "
        "Compare the ratios: absolute figures differ between machines.",
        epilog="groups: "
        + "; ".join(f"{group} = {', '.join(names)}" for group, names in GROUPS.items())
        + "\n\nbenchmarks:\n"
        + "\n".join(f"  {name:10} {(bench.__doc__ or '').splitlines()[0]}" for name, bench in BENCHES.items())
        + "\n\nRequires xz, zstd, bzip2, gzip and nginx; uses wrk if it is installed.\n"
        "mount also requires root, nix, gcc and patchelf.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks or groups (default: all)")
    parser.add_argument(
        "--runs", type=int, default=3, help="number of runs; the median is shown (default: %(default)s)"
    )
    parser.add_argument("--size", type=int, default=200, help="size of the NAR to unpack, in MB (default: %(default)s)")
    parser.add_argument(
        "--large", type=int, default=500, help="size of the file to serve, in MB (default: %(default)s)"
    )
    parser.add_argument("--dir", type=Path, help="directory for up to 4 GB of files (default: the temporary directory)")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(BENCHES) - set(GROUPS)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; choose from {', '.join([*GROUPS, *BENCHES])}")
    return arguments


def _selected(names: list[str]) -> list[str]:
    """Return the benchmarks that ``names`` and groups in it name, without duplicates and in the order of BENCHES."""
    selected = {bench for name in names or GROUPS for bench in GROUPS.get(name, (name,))}
    return [name for name in BENCHES if name in selected]


def main() -> None:
    arguments = _arguments()
    print(f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}\n\n{HEAD}", flush=True)
    for name in _selected(arguments.names):
        directory = Path(tempfile.mkdtemp(prefix=f"nar-serve-bench-{name}-", dir=arguments.dir))
        try:
            for row in BENCHES[name](Setup(directory, arguments.runs, arguments.size * MB, arguments.large * MB)):
                print(row, flush=True)
        finally:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
