"""One page of a long file: the range of bytes that the page shows."""

from typing import NamedTuple


class FilePage(NamedTuple):
    """Page ``number`` of ``last``: the bytes of a file from ``start`` up to ``stop``."""

    number: int
    last: int
    start: int
    stop: int

    @classmethod
    def of(cls, requested: str | None, size: int, length: int) -> "FilePage":
        """Return the page for a page number from a query. A page has ``length`` bytes, the file has ``size`` bytes.

        A number out of range selects the nearest page; an invalid number or None selects the first page.
        """
        last = max(1, -(-size // length))
        is_valid = requested is not None and requested.isascii() and requested.isdigit() and len(requested) < 20
        number = min(max(1, int(requested)), last) if is_valid and requested else 1
        return cls(number, last, (number - 1) * length, min(size, number * length))

    @property
    def is_all(self) -> bool:
        return self.last == 1
