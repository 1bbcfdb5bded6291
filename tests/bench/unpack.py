"""Extracting one large file of a compressed NAR with the app, against the tool that unpacks the same NAR."""

import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.bench.inprocess import App
from tests.bench.material import UNPACK, CacheDirectory, Packed, settle_disk, write_file, write_tree
from tests.bench.report import MB, Row, against, alternate
from tests.bench.setup import Setup

# Divisors of --size for slow tools: bzip2 unpacks 30 MB/s.
SIZE_DIVISORS = {"bzip2": 4, "xz": 2}


def unpack(setup: Setup) -> Iterator[Row]:
    """MB/s of unpacking one large file with the app, against xz, zstd, bzip2 and gzip -dc > /dev/null."""
    upstream = CacheDirectory(setup.directory / "upstream")
    for compression in UNPACK:
        packed = _one_file(setup, upstream, compression)
        settle_disk()
        yield from _rows(setup, upstream, packed)


def _one_file(setup: Setup, upstream: CacheDirectory, compression: str) -> Packed:
    tree = setup.directory / compression
    write_file(
        tree / "large.bin", setup.size // SIZE_DIVISORS.get(compression, 1), seed=list(UNPACK).index(compression)
    )
    return upstream.add(compression, write_tree(tree, setup.directory / f"{compression}.nar"), compression)


def _rows(setup: Setup, upstream: CacheDirectory, packed: Packed) -> Iterator[Row]:
    cpu: dict[str, float] = {}
    off, cold, tool = alternate(
        setup.runs,
        _adding_cpu_seconds(cpu, "off", partial(through_app, upstream, packed, None)),
        _adding_cpu_seconds(
            cpu, "cold", lambda: through_app(upstream, packed, Path(tempfile.mkdtemp(dir=setup.directory)))
        ),
        _adding_cpu_seconds(cpu, "tool", partial(by_tool, packed)),
    )
    megabytes, command = packed.nar.listing.nar_size / MB, " ".join(UNPACK[packed.compression])
    # isal unpacks faster than the gzip tool, so the app should, too.
    goal = 1.0 if packed.compression == "gzip" else 0.9
    for what, seconds, key in (("cache off", off, "off"), ("cache on, cold", cold, "cold")):
        what = f"unpack {packed.compression}, {what}"
        yield against(what, megabytes / seconds, megabytes / tool, "MB/s", peer_name=command, at_least=goal)
        # Only the app hashes the contents; that takes CPU time, but no additional time if a core is idle.
        own, theirs = (cpu[name] / setup.runs / megabytes * 1000 for name in (key, "tool"))
        yield Row(f"{what}: CPU", f"{own:.2f} s/GB", f"{theirs:.2f} s/GB {command}")


def _adding_cpu_seconds(cpu: dict[str, float], name: str, action: Callable[[], float]) -> Callable[[], float]:
    """Wrap ``action`` so that each call adds its CPU seconds to ``cpu[name]``."""

    def run() -> float:
        before = _cpu_seconds()
        seconds = action()
        cpu[name] = cpu.get(name, 0.0) + _cpu_seconds() - before
        return seconds

    return run


def _cpu_seconds() -> float:
    """Return the CPU seconds of this process and of the children that it has waited for."""
    usages = [resource.getrusage(target) for target in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def through_app(upstream: CacheDirectory, packed: Packed, cache_dir: Path | None) -> float:
    """Return the seconds for the large file in a new app."""
    app = App(upstream.url, cache_dir)
    try:
        response = app.request(f"{packed.store_path}/large.bin")
    finally:
        app.close()
    assert response.status == 200
    return response.seconds


def by_tool(packed: Packed, sink: Path = Path("/dev/null")) -> float:
    """Return the seconds that the tool needs to unpack the NAR."""
    return seconds_of(lambda: _run_tool(packed, sink))


def _run_tool(packed: Packed, sink: Path) -> None:
    with packed.file.open("rb") as source, sink.open("wb") as output:
        subprocess.run(UNPACK[packed.compression], stdin=source, stdout=output, check=True)


def seconds_of(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
