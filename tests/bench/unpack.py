"""One large file out of a compressed NAR, through the app, against the tool that unpacks the same NAR."""

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
    write_file(tree / "large.bin", setup.size // SHARE.get(compression, 1), salt=compression.encode())
    return upstream.add(compression, write_tree(tree, setup.directory / f"{compression}.nar"), compression)


def _rows(setup: Setup, upstream: Upstream, packed: Packed) -> Iterator[Row]:
    size = packed.nar.listing.nar_size
    off, cold, tool = alternate(
        setup.runs,
        partial(through_app, upstream, packed, None),
        lambda: through_app(upstream, packed, Path(tempfile.mkdtemp(dir=setup.directory))),
        partial(by_tool, packed),
    )
    # isal unpacks faster than the gzip tool, so there is no reason to be slower.
    goal = 1.0 if packed.compression == "gzip" else 0.9
    command = " ".join(UNPACK[packed.compression])
    for what, seconds in (("cache off", off), ("cache on, cold", cold)):
        yield against(
            f"unpack {packed.compression}, {what}",
            size / MB / seconds,
            size / MB / tool,
            "MB/s",
            peer_name=command,
            at_least=goal,
        )


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
