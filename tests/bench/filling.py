"""Fetching a NAR into the disk cache (a fill), against the tool that unpacks it into a file."""

from collections.abc import Iterator
from functools import partial

from narcore.formats.listing import NarListing
from tests.bench.material import CacheDirectory, Packed, settle_disk, write_file, write_tree
from tests.bench.report import MB, Row, against, alternate
from tests.bench.servers import Server, nar_serve
from tests.bench.setup import Setup
from tests.bench.unpack import by_tool

FILES = 50


def fill(setup: Setup) -> Iterator[Row]:
    """Throughput of a fill with 1 and with 50 readers of different files, against zstd and xz -dc > file."""
    for number in range(FILES):
        write_file(setup.directory / "tree" / f"part-{number:02}", setup.size // FILES, seed=number)
    nar = write_tree(setup.directory / "tree", setup.directory / "parts.nar")
    upstream = CacheDirectory(setup.directory / "upstream")
    for compression in ("zstd", "xz"):
        packed = upstream.add(compression, nar, compression)
        settle_disk()
        with nar_serve(setup.directory, upstream.url, threads=FILES) as server:
            yield from _rows(setup, server, packed, nar.listing)


def _rows(setup: Setup, server: Server, packed: Packed, listing: NarListing) -> Iterator[Row]:
    paths = [f"{packed.store_path}/{node.name}" for node in listing.children(listing.root)]
    one, many, tool = alternate(
        setup.runs,
        partial(_fill, setup, server, paths[-1:]),  # the last file requires the whole NAR
        partial(_fill, setup, server, paths),
        partial(by_tool, packed, setup.directory / "unpacked"),
    )
    size = listing.nar_size / MB
    for readers, seconds in ((1, one), (FILES, many)):
        yield against(
            f"fill from {packed.compression}, {readers} reader{'s' if readers > 1 else ''}",
            size / seconds,
            size / tool,
            "MB/s",
            peer_name=f"{packed.compression} -dc > file",
            at_least=0.85,
        )


def _fill(setup: Setup, server: Server, paths: list[str]) -> float:
    """Empty the cache, and return the seconds until all ``paths`` have been read."""
    for pattern in ("*.nar", "*.ls"):
        for entry in (setup.directory / "cache").glob(pattern):
            entry.unlink()
    return server.load("get", paths)[0]
