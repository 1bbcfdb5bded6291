"""NAR names, link targets and paths as text and as bytes.

They are bytes in a NAR and ``str`` everywhere else: UTF-8 with surrogateescape, which preserves any bytes.
"""


def to_bytes(text: str) -> bytes:
    """Return the bytes of a name, target or path. Raises UnicodeEncodeError for a surrogate that stands for no byte."""
    return text.encode("utf-8", "surrogateescape")


def to_text(raw: bytes | bytearray) -> str:
    """Return the text of a name, target or path; `to_bytes` restores the bytes."""
    return raw.decode("utf-8", "surrogateescape")
