"""The Range header: RFC 9110 14.1, 14.2."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.http.ranges import MAX_RANGES, ByteRange, UnsatisfiableRangeError, parse_ranges

HUGE = "9" * 10_000  # more digits than int() accepts

SATISFIABLE = [
    ("bytes=0-0", [(0, 1)]),
    ("bytes=0-9", [(0, 10)]),
    ("bytes=3-", [(3, 10)]),
    ("bytes=9-", [(9, 10)]),
    ("bytes=5-100", [(5, 10)]),
    ("bytes=-3", [(7, 10)]),
    ("bytes=-10", [(0, 10)]),
    ("bytes=-100", [(0, 10)]),
    ("Bytes=0-1", [(0, 2)]),  # 14.1: unit names are case-insensitive
    ("bytes=0-1,4-5", [(0, 2), (4, 6)]),
    ("bytes=4-5,0-1", [(4, 6), (0, 2)]),  # in the requested order
    ("bytes= 0-1 ,\t4-5 ", [(0, 2), (4, 6)]),
    ("bytes=,0-1,,4-5,", [(0, 2), (4, 6)]),  # 5.6.1.2: empty elements
    ("bytes=0-1,20-30", [(0, 2)]),  # the unsatisfiable range is omitted
    ("bytes=-0,0-0", [(0, 1)]),
    ("bytes=0-5,3-8", [(0, 6), (3, 9)]),  # two overlapping ranges are allowed
    ("bytes=0000-0001", [(0, 2)]),
    (f"bytes=2-{HUGE}", [(2, 10)]),
    (f"bytes=-{HUGE}", [(0, 10)]),
    (f"bytes={'0' * 10_000}1-2", [(1, 3)]),
    ("bytes=" + ",".join(["0-0", *(f"{n}-" for n in range(10, 10 + MAX_RANGES - 1))]), [(0, 1)]),
]

IGNORED = [
    "",
    "bytes",
    "bytes=",
    "bytes=,",
    "bytes=-",
    "bytes=a-b",
    "bytes=1-a",
    "bytes=5-4",
    "bytes=0-1,5-4",
    "bytes=0-1,x",
    "bytes=0 - 1",
    "bytes =0-1",
    "bytes=0-1-2",
    "bytes=--1",
    "bytes=+1-2",
    "bytes=0x1-2",
    "bytes=1_0-",
    "bytes=٣-٤",
    "bytes=0-1;2-3",
    "items=0-1",
    "seconds=0-1",
    "=0-1",
    "0-1",
    f"bytes={HUGE}-1",
]

UNSATISFIABLE = [
    "bytes=10-",
    "bytes=10-20",
    "bytes=-0",
    "bytes=-0,10-",
    f"bytes={HUGE}-",
    "bytes=0-,0-,0-",
    "bytes=0-4,2-6,4-8",
    "bytes=0-9,1-1,3-3",
    "bytes=" + ",".join(f"{n}-" for n in range(11, 12 + MAX_RANGES)),
    "bytes=" + ",".join(["0-0"] * (MAX_RANGES + 1)),
]


@pytest.mark.parametrize(("header", "expected"), SATISFIABLE)
def test_satisfiable_ranges_are_cut_to_the_size_of_the_file(header: str, expected: list[tuple[int, int]]) -> None:
    assert parse_ranges(header, 10) == expected


@pytest.mark.parametrize("header", IGNORED)
def test_a_malformed_header_or_an_unknown_unit_is_ignored(header: str) -> None:
    assert parse_ranges(header, 10) is None


@pytest.mark.parametrize("header", UNSATISFIABLE)
def test_ranges_that_select_nothing_or_too_much_are_unsatisfiable(header: str) -> None:
    with pytest.raises(UnsatisfiableRangeError):
        parse_ranges(header, 10)


def test_ranges_that_do_not_overlap_are_served_up_to_the_limit() -> None:
    header = "bytes=" + ",".join(f"{2 * n}-{2 * n}" for n in range(MAX_RANGES))
    assert len(parse_ranges(header, 1000) or ()) == MAX_RANGES
    with pytest.raises(UnsatisfiableRangeError):
        parse_ranges(header + ",500-", 1000)


def test_only_a_suffix_range_of_an_empty_file_is_ignored() -> None:
    for header in ("bytes=0-", "bytes=0-0", "bytes=-0"):
        with pytest.raises(UnsatisfiableRangeError):
            parse_ranges(header, 0)
    for header in ("bytes=-1", "bytes=0-,-1"):  # satisfiable, but Content-Range can't express it
        assert parse_ranges(header, 0) is None


def test_content_range_is_inclusive() -> None:
    assert ByteRange(2, 5).content_range(10) == "bytes 2-4/10"


@given(header=st.one_of(st.text(), st.from_regex(r"bytes=[0-9, \-]{0,60}", fullmatch=True)), size=st.integers(0, 2**64))
def test_any_header_gives_ranges_inside_the_file(header: str, size: int) -> None:
    try:
        ranges = parse_ranges(header, size)
    except UnsatisfiableRangeError:
        return
    assert ranges is None or all(0 <= start < stop <= size for start, stop in ranges)
