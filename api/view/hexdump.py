"""A hex dump: sixteen bytes per line, as hexadecimal digits and as characters."""

from typing import NamedTuple

_WIDTH = 16


class HexLine(NamedTuple):
    offset: str
    digits: str
    characters: str


def hex_lines(data: bytes, offset: int) -> list[HexLine]:
    """Return the lines of the hex dump of ``data``, which begins at ``offset`` in its file."""
    rows = range(0, len(data), _WIDTH)
    return [_line(data[start : start + _WIDTH], offset + start) for start in rows]


def _line(data: bytes, offset: int) -> HexLine:
    left, right = data[:8].hex(" "), data[8:].hex(" ")
    characters = "".join(chr(byte) if 32 <= byte < 127 else "·" for byte in data)
    return HexLine(f"{offset:08x}", f"{left:<23}  {right:<23}", characters)
