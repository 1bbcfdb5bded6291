"""The NAR parser on a NAR of many files."""

from collections.abc import Iterator
from functools import partial

from narcore.formats.listing import NarListing
from narcore.formats.nar.events import Regular
from narcore.formats.nar.parser import parse_nar
from narcore.formats.nar.writer import write_nar
from tests.bench.material import small_files
from tests.bench.report import Row, alternate, at_least
from tests.bench.setup import Setup
from tests.bench.unpack import seconds_of

FILES = 50_000
CHUNK = 256 * 1024
GOAL = 150_000  # entries per second


def parser(setup: Setup) -> Iterator[Row]:
    """Entries per second of the NAR parser, on a NAR of 50,000 files, in chunks as large as those of a decoder."""
    nar = b"".join(write_nar(small_files(FILES)))
    chunks = [nar[start : start + CHUNK] for start in range(0, len(nar), CHUNK)]
    whole, skipping, listing = alternate(
        setup.runs,
        lambda: seconds_of(partial(_count, chunks, contents=True)),
        lambda: seconds_of(partial(_count, chunks, contents=False)),
        lambda: seconds_of(lambda: NarListing.from_events(parse_nar(chunks, contents=False))),
    )
    yield at_least("parser, with contents", FILES / whole, "entries/s", GOAL)
    yield at_least("parser, skipping contents", FILES / skipping, "entries/s", GOAL)
    yield at_least("parser, into a listing", FILES / listing, "entries/s", GOAL)


def _count(chunks: list[bytes], *, contents: bool) -> None:
    found = sum(isinstance(event, Regular) for event in parse_nar(chunks, contents))
    assert found == FILES
