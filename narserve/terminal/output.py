"""Standard output, and quoting of names on a terminal.

In a pipe, a name is written as its raw bytes. On a terminal, a name that contains control characters, invalid UTF-8 or misleading
characters is quoted, so that it is harmless and can be pasted into a shell: ``$'new\\nline'``.
"""

import sys

from narcore.formats.names import to_bytes

_ESCAPES = {"\a": "\\a", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\v": "\\v", "\f": "\\f", "\r": "\\r", "\x1b": "\\e"}


def spelled_out(text: str) -> str:
    """Return ``text`` with unprintable characters replaced by escapes: ``\\n``, ``\\xff``, ``\\u202e``."""
    return text if text.isprintable() else "".join(map(_spelled, text))


def quoted(text: str) -> str:
    """Return ``text`` unchanged if it is printable, else quoted for a shell (bash, zsh, ksh: ``$'...'``)."""
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
        return f"\\x{code - 0xDC00:02x}"  # a byte of invalid UTF-8, from surrogateescape
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


class StandardOutput:
    """Standard output. Accepts bytes and text, and quotes names if it is a terminal."""

    def __init__(self) -> None:
        self._file = sys.stdout.buffer
        self._is_terminal = sys.stdout.isatty()

    def name(self, text: str) -> bytes:
        """Return a name or link target, quoted if standard output is a terminal."""
        return to_bytes(quoted(text) if self._is_terminal else text)

    def write(self, data: bytes | str) -> None:
        """Write ``data`` without quoting."""
        self._file.write(to_bytes(data) if isinstance(data, str) else data)

    def line(self, text: str) -> None:
        """Write a name as a line."""
        self._file.write(self.name(text) + b"\n")

    def flush(self) -> None:
        """Write buffered data now: an error during the flush at exit could no longer change the exit code. Raises OSError."""
        self._file.flush()
