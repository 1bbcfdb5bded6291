"""Parser of the Range header (RFC 9110 sections 14.1 and 14.2): from text and a file size to byte ranges.

::

    ranges-specifier = range-unit "=" range-set        units are case-insensitive; only "bytes" is supported
    range-set        = 1#range-spec                    a list; empty elements between commas are allowed
    range-spec       = first-pos "-" [ last-pos ]      last-pos is inclusive
                     | "-" suffix-length               the last bytes
"""

import re
from itertools import combinations
from typing import NamedTuple

# RFC 9110 14.2 lets a server reject "more than two overlapping ranges, or many small ranges". Each range costs a seek to its
# start, and each can request the whole file again.
MAX_RANGES = 20
MAX_OVERLAPPING = 2

_SPEC = re.compile(r"([0-9]*)-([0-9]*)")


class UnsatisfiableRangeError(ValueError):
    """A valid Range header that selects nothing, or too many ranges: the status is 416."""


class ByteRange(NamedTuple):
    """The bytes from ``start`` up to, but not including, ``stop``."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start

    def content_range(self, size: int) -> str:
        """Return the Content-Range header for this part of a file of ``size`` bytes."""
        return f"bytes {self.start}-{self.stop - 1}/{size}"


def parse_ranges(header: str, size: int) -> list[ByteRange] | None:
    """Parse a Range header for a file of ``size`` bytes. Returns the ranges in their order, without ranges beyond the end.

    Returns None if the header is to be ignored: it is malformed or uses another unit. Raises UnsatisfiableRangeError if no range
    begins inside the file, or if there are too many ranges or too many that overlap.
    """
    specs = _parse(header)
    if not specs:
        return None
    if size == 0 and any(not first and _order(last) > _order("0") for first, last in specs):
        # A suffix range of an empty file is satisfiable (14.1.1), but Content-Range can't express "no bytes". Ignoring the
        # header sends the whole empty file.
        return None
    ranges = [found for first, last in specs if (found := _resolve(first, last, size)).length > 0]
    if not ranges:
        raise UnsatisfiableRangeError("no range begins inside the file")
    if len(specs) > MAX_RANGES or _overlapping(ranges) > MAX_OVERLAPPING:
        raise UnsatisfiableRangeError("too many ranges, or too many overlapping ranges")
    return ranges


def _parse(header: str) -> list[tuple[str, str]] | None:
    """Return the digits before and after each dash, or None if the whole header is to be ignored."""
    unit, _, range_set = header.partition("=")
    if unit.lower() != "bytes":
        return None
    elements = [element for part in range_set.split(",") if (element := part.strip(" \t"))]
    matches = [_SPEC.fullmatch(element) for element in elements]
    specs = [(match[1], match[2]) for match in matches if match and _is_valid(match[1], match[2])]
    return specs if len(specs) == len(elements) else None


def _is_valid(first: str, last: str) -> bool:
    """Return whether a range-spec has at least one number and does not end before it begins."""
    if first and last:
        return _order(first) <= _order(last)
    return bool(first or last)


def _order(digits: str) -> tuple[int, str]:
    """Return a sort key that orders by numeric value. int() fails on the long digit strings that a header may contain."""
    digits = digits.lstrip("0")
    return len(digits), digits


def _number(digits: str, limit: int) -> int:
    """Return the value of ``digits``, but at most ``limit``."""
    length, significant = _order(digits)
    return limit if length > len(str(limit)) else min(int(significant or "0"), limit)


def _resolve(first: str, last: str, size: int) -> ByteRange:
    """Return the range for a valid range-spec. Its length is 0 or negative if it selects no bytes."""
    if not first:
        return ByteRange(size - _number(last, size), size)
    return ByteRange(_number(first, size), min(_number(last, size) + 1, size) if last else size)


def _overlapping(ranges: list[ByteRange]) -> int:
    """Return how many ranges share a byte with another range."""
    return len(
        {
            index
            for (one, left), (other, right) in combinations(enumerate(ranges), 2)
            if left.start < right.stop and right.start < left.stop
            for index in (one, other)
        }
    )
