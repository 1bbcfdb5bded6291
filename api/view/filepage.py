"""One page of a long file: which of its bytes the page shows."""

from typing import NamedTuple


class FilePage(NamedTuple):
    """Page ``number`` of ``last``: the bytes ``start`` to ``stop`` of a file."""

    number: int
    last: int
    start: int
    stop: int

    @classmethod
    def of(cls, wanted: str | None, size: int, length: int) -> "FilePage":
        """The page that a query asks for, the nearest there is: of ``length`` bytes each, in a file of ``size`` bytes."""
        last = max(1, -(-size // length))
        plain = wanted is not None and wanted.isascii() and wanted.isdigit() and len(wanted) < 20
        number = min(max(1, int(wanted)), last) if plain and wanted else 1
        return cls(number, last, (number - 1) * length, min(size, number * length))

    @property
    def is_all(self) -> bool:
        return self.last == 1
