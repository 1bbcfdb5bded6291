"""Standard output, and how names are shown on a terminal.

In a pipe a name is its bytes, whatever they are. On a terminal one that holds control characters, bytes that are no UTF-8,
or characters that mislead the eye is written so that it does no harm and can be pasted into a shell: ``$'new\\nline'``.
"""

import sys

from narcore.formats.names import to_bytes

_ESCAPES = {"\a": "\\a", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\v": "\\v", "\f": "\\f", "\r": "\\r", "\x1b": "\\e"}


def spelled_out(text: str) -> str:
    """``text`` with what can't be shown in backslashes: ``\\n``, ``\\xff``, ``\\u202e``."""
    return text if text.isprintable() else "".join(map(_spelled, text))


def quoted(text: str) -> str:
    """``text`` as it stands if it can be shown, else quoted for a shell (bash, zsh, ksh: ``$'...'``)."""
    if text.isprintable():
        return text
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{spelled_out(escaped)}'"


def _spelled(character: str) -> str:
    if character.isprintable():
        return character
    if character in _ESCAPES:
        return _ESCAPES[character]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"  # a byte that is no UTF-8
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


class StandardOutput:
    """Standard output: takes bytes and text, and quotes names if it is a terminal."""

    def __init__(self) -> None:
        self._file = sys.stdout.buffer
        self._shown = sys.stdout.isatty()

    def name(self, text: str) -> bytes:
        """A name or a target, for whoever is reading."""
        return to_bytes(quoted(text) if self._shown else text)

    def write(self, data: bytes | str) -> None:
        """Write ``data`` as it is, a name in it as its bytes."""
        self._file.write(to_bytes(data) if isinstance(data, str) else data)

    def line(self, text: str) -> None:
        """A name on a line of its own."""
        self._file.write(self.name(text) + b"\n")

    def flush(self) -> None:
        """Raises OSError: what is left to the interpreter's end would be reported there, and too late for the exit code."""
        self._file.flush()
