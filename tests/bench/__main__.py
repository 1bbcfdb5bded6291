"""``python -m tests.bench [NAME...]``: run benchmarks, print a Markdown table."""

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
from tests.bench.memory import memory
from tests.bench.mounting import mount
from tests.bench.parser import parser
from tests.bench.report import HEAD, MB, Row
from tests.bench.serving import readers, warm
from tests.bench.setup import Setup
from tests.bench.slowclients import slowclients
from tests.bench.unpack import unpack

BENCHES: Mapping[str, Callable[[Setup], Iterator[Row]]] = {
    bench.__name__: bench
    for bench in (
        unpack,
        archives,
        directory,
        parser,
        memory,
        imports,
        firstbyte,
        coldstart,
        warm,
        readers,
        fill,
        slowclients,
        mount,
    )
}
GROUPS: Mapping[str, tuple[str, ...]] = {
    "main": ("unpack", "archives", "directory", "parser", "memory", "imports", "firstbyte"),
    "cache": ("warm", "readers", "fill"),
    "server": ("slowclients",),
    "lambda": ("coldstart",),
    "volume": ("mount",),
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measure how fast nar-serve is, against a peer on the same machine in the same minute. "
        "Absolute figures differ from machine to machine; the ratios are what to look at.",
        epilog="groups: "
        + "; ".join(f"{group} = {', '.join(names)}" for group, names in GROUPS.items())
        + "\n\nbenchmarks:\n"
        + "\n".join(f"  {name:10} {(bench.__doc__ or '').splitlines()[0]}" for name, bench in BENCHES.items())
        + "\n\nNeeds the tools xz, zstd, bzip2, gzip and nginx; wrk is used where it is installed.\n"
        "mount needs root, nix, gcc and patchelf.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks or groups; all, if none is given")
    parser.add_argument("--runs", type=int, default=3, help="how often; the median counts (default: %(default)s)")
    parser.add_argument("--size", type=int, default=200, help="MB of a NAR to be unpacked (default: %(default)s)")
    parser.add_argument("--large", type=int, default=500, help="MB of a file to be served (default: %(default)s)")
    parser.add_argument("--dir", type=Path, help="where to make the files, 4 GB at most (default: the temp dir)")
    given = parser.parse_args()
    unknown = set(given.names) - set(BENCHES) - set(GROUPS)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join([*GROUPS, *BENCHES])}")
    return given


def _chosen(names: list[str]) -> list[str]:
    """Each once, in the order of BENCHES."""
    wanted = {bench for name in names or GROUPS for bench in GROUPS.get(name, (name,))}
    return [name for name in BENCHES if name in wanted]


def main() -> None:
    given = _arguments()
    print(f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}\n\n{HEAD}", flush=True)
    for name in _chosen(given.names):
        directory = Path(tempfile.mkdtemp(prefix=f"nar-serve-bench-{name}-", dir=given.dir))
        try:
            for row in BENCHES[name](Setup(directory, given.runs, given.size * MB, given.large * MB)):
                print(row, flush=True)
        finally:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
