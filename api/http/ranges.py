"""The Range header, read by RFC 9110 sections 14.1 and 14.2. Pure: text and a size in, byte ranges out.

::

    ranges-specifier = range-unit "=" range-set        units are case-insensitive, only "bytes" is known here
    range-set        = 1#range-spec                    a list: empty elements between the commas are allowed
    range-spec       = first-pos "-" [ last-pos ]      last-pos is inclusive
                     | "-" suffix-length               the last bytes
"""

import re
from itertools import combinations
from typing import NamedTuple

# RFC 9110 14.2 lets a server refuse "more than two overlapping ranges, or many small ranges": each one costs a walk
# to its place, and each can ask for the whole file again.
MAX_RANGES = 20
MAX_OVERLAPPING = 2

_SPEC = re.compile(r"([0-9]*)-([0-9]*)")


class UnsatisfiableRangeError(ValueError):
    """A valid Range header with nothing to send: the answer is 416."""


class ByteRange(NamedTuple):
    """Bytes ``start`` up to, not including, ``stop``."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start

    def content_range(self, size: int) -> str:
        """The Content-Range header of this part of a file of ``size`` bytes."""
        return f"bytes {self.start}-{self.stop - 1}/{size}"


def parse_ranges(header: str, size: int) -> list[ByteRange] | None:
    """The ranges of a file of ``size`` bytes that ``header`` asks for, in its order, without those behind the end.

    None: the header is malformed or in another unit, and is to be ignored. UnsatisfiableRangeError: no range begins
    inside the file, or there are too many of them.
    """
    specs = _parse(header)
    if not specs:
        return None
    if size == 0 and any(not first and _order(last) > _order("0") for first, last in specs):
        # Satisfiable by 14.1.1, but no Content-Range can say "no bytes": the whole of nothing is the answer.
        return None
    ranges = [found for first, last in specs if (found := _resolve(first, last, size)).length > 0]
    if not ranges:
        raise UnsatisfiableRangeError("no range begins inside the file")
    if len(specs) > MAX_RANGES or _overlapping(ranges) > MAX_OVERLAPPING:
        raise UnsatisfiableRangeError("too many ranges, or too many that overlap")
    return ranges


def _parse(header: str) -> list[tuple[str, str]] | None:
    """The digits before and behind each dash, or None if the header as a whole is not to be used."""
    unit, _, range_set = header.partition("=")
    if unit.lower() != "bytes":
        return None
    elements = [element for part in range_set.split(",") if (element := part.strip(" \t"))]
    matches = [_SPEC.fullmatch(element) for element in elements]
    specs = [(match[1], match[2]) for match in matches if match and _is_valid(match[1], match[2])]
    return specs if len(specs) == len(elements) else None


def _is_valid(first: str, last: str) -> bool:
    """Whether a range-spec has a number at all, and does not end before it begins."""
    if first and last:
        return _order(first) <= _order(last)
    return bool(first or last)


def _order(digits: str) -> tuple[int, str]:
    """A sort key by numeric value. Not int(): a header may hold more digits than int() takes from a string."""
    digits = digits.lstrip("0")
    return len(digits), digits


def _number(digits: str, limit: int) -> int:
    """The value of ``digits``, or ``limit`` if that is smaller."""
    length, significant = _order(digits)
    return limit if length > len(str(limit)) else min(int(significant or "0"), limit)


def _resolve(first: str, last: str, size: int) -> ByteRange:
    """The bytes that a valid range-spec stands for; its length is not above 0 if there are none."""
    if not first:
        return ByteRange(size - _number(last, size), size)
    return ByteRange(_number(first, size), min(_number(last, size) + 1, size) if last else size)


def _overlapping(ranges: list[ByteRange]) -> int:
    """How many ranges share a byte with another one."""
    return len(
        {
            index
            for (one, left), (other, right) in combinations(enumerate(ranges), 2)
            if left.start < right.stop and right.start < left.stop
            for index in (one, other)
        }
    )
