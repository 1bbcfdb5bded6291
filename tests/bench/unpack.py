"""One large file out of a compressed NAR, through the app, against the tool that unpacks the same NAR."""

import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.bench.inprocess import App
from tests.bench.material import UNPACK, Packed, Upstream, settle_disk, write_file, write_tree
from tests.bench.report import MB, Row, against, alternate
from tests.bench.setup import Setup

# bzip2 unpacks 30 MB/s.
SHARE = {"bzip2": 4, "xz": 2}


def unpack(setup: Setup) -> Iterator[Row]:
    """MB/s of unpacking one large file through the app, against xz, zstd, bzip2, gzip -dc > /dev/null."""
    upstream = Upstream(setup.directory / "upstream")
    for compression in UNPACK:
        packed = _one_file(setup, upstream, compression)
        settle_disk()
        yield from _rows(setup, upstream, packed)


def _one_file(setup: Setup, upstream: Upstream, compression: str) -> Packed:
    tree = setup.directory / compression
    write_file(tree / "large.bin", setup.size // SHARE.get(compression, 1), seed=list(UNPACK).index(compression))
    return upstream.add(compression, write_tree(tree, setup.directory / f"{compression}.nar"), compression)


def _rows(setup: Setup, upstream: Upstream, packed: Packed) -> Iterator[Row]:
    used: dict[str, float] = {}
    off, cold, tool = alternate(
        setup.runs,
        _noting(used, "off", partial(through_app, upstream, packed, None)),
        _noting(used, "cold", lambda: through_app(upstream, packed, Path(tempfile.mkdtemp(dir=setup.directory)))),
        _noting(used, "tool", partial(by_tool, packed)),
    )
    megabytes, command = packed.nar.listing.nar_size / MB, " ".join(UNPACK[packed.compression])
    # isal unpacks faster than the gzip tool, so there is no reason to be slower.
    goal = 1.0 if packed.compression == "gzip" else 0.9
    for what, seconds, key in (("cache off", off, "off"), ("cache on, cold", cold, "cold")):
        what = f"unpack {packed.compression}, {what}"
        yield against(what, megabytes / seconds, megabytes / tool, "MB/s", peer_name=command, at_least=goal)
        # Only the app hashes what it unpacks; where a core is idle, that costs no time.
        own, theirs = (used[name] / setup.runs / megabytes * 1000 for name in (key, "tool"))
        yield Row(f"{what}: CPU", f"{own:.2f} s/GB", f"{theirs:.2f} s/GB {command}")


def _noting(used: dict[str, float], name: str, action: Callable[[], float]) -> Callable[[], float]:
    """``action``, the CPU seconds of which are added up under ``name``."""

    def run() -> float:
        before = _cpu_seconds()
        seconds = action()
        used[name] = used.get(name, 0.0) + _cpu_seconds() - before
        return seconds

    return run


def _cpu_seconds() -> float:
    """Of this process and of all that it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def through_app(upstream: Upstream, packed: Packed, cache_dir: Path | None) -> float:
    """Seconds that the large file takes, in a new app."""
    app = App(upstream.url, cache_dir)
    try:
        answer = app.request(f"{packed.store_path}/large.bin")
    finally:
        app.close()
    assert answer.status == 200
    return answer.seconds


def by_tool(packed: Packed, sink: Path = Path("/dev/null")) -> float:
    """Seconds that the tool takes."""
    return seconds_of(lambda: _run_tool(packed, sink))


def _run_tool(packed: Packed, sink: Path) -> None:
    with packed.file.open("rb") as source, sink.open("wb") as output:
        subprocess.run(UNPACK[packed.compression], stdin=source, stdout=output, check=True)


def seconds_of(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
