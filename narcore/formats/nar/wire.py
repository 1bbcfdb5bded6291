"""The NAR format on the wire: its strings, its merged tokens and its limits.

A NAR is a row of length-prefixed strings, and most of them are fixed. Every run of fixed strings is merged into one
token here (as snix's nix-compat does in ``nar/wire``), so that parser and writer compare and emit whole tokens, and
both can be read against the grammar in this package's docstring. Limits are those of Nix (src/libutil/archive.cc).
"""

import struct
from collections.abc import Iterable
from typing import Final

TAG_MAX: Final = 32
"""Bytes of a fixed string. The tokens below obey it by construction; a longer tag can match none of them."""
NAME_MAX: Final = 255
"""Bytes of a directory entry's name."""
TARGET_MAX: Final = 4095
"""Bytes of a symlink's target: PATH_MAX without its NUL."""
DEPTH_MAX: Final = 64
"""How deep a node may be; the root is at depth 0. Unbounded nesting is CVE-2026-44028."""
SIZE_MAX: Final = 2**63 - 1
"""Bytes of a regular file: more does not fit the signed offsets of any file system, and can only be an attack."""

U64: Final = struct.Struct("<Q")


def padded(length: int) -> int:
    """``length`` rounded up to the next multiple of 8, which is what a string's bytes take without their length."""
    return length + (-length & 7)


def string(raw: bytes) -> bytes:
    """One string as it stands in a NAR: length, bytes, zero padding."""
    return U64.pack(len(raw)) + raw + bytes(-len(raw) & 7)


def token(*strings: bytes) -> bytes:
    """A run of strings, merged."""
    return b"".join(map(string, strings))


def behind_padding(fixed: bytes) -> tuple[bytes, ...]:
    """``fixed`` behind 0 to 7 bytes of padding, to be looked up by the length of the padding."""
    return tuple(bytes(length) + fixed for length in range(8))


ROOT: Final = token(b"nix-archive-1", b"(", b"type")
ENTRY: Final = token(b"entry", b"(", b"name")
NODE: Final = token(b"node", b"(", b"type")
REGULAR: Final = token(b"regular", b"contents")
EXECUTABLE: Final = token(b"regular", b"executable", b"", b"contents")
SYMLINK: Final = token(b"symlink", b"target")
DIRECTORY: Final = token(b"directory")
CLOSE: Final = token(b")")
CLOSE_ENTRY: Final = token(b")", b")")  # of a node in a directory, and of the entry around it

PADDED_NODE: Final = behind_padding(NODE)  # a name ends in padding,
PADDED_CLOSE: Final = behind_padding(CLOSE)  # and so do contents and a target
PADDED_CLOSE_ENTRY: Final = behind_padding(CLOSE_ENTRY)


def name_fault(name: bytes) -> str | None:
    """What is wrong with the name of a directory entry, or None. Any bytes but these will do, UTF-8 or not."""
    if not name:
        return "an entry's name is empty"
    if len(name) > NAME_MAX:
        return f"an entry's name has {len(name)} bytes, and {NAME_MAX} is the limit"
    if name in (b".", b".."):
        return f"an entry is called {name!r}"
    if b"/" in name or b"\0" in name:
        return f"an entry's name holds a slash or a NUL: {name!r}"
    return None


def order_fault(name: bytes, previous: bytes) -> str | None:
    """What is wrong with ``name`` after ``previous`` in a directory, or None: the order is that of bytes, strictly."""
    if name > previous:
        return None
    return f"two entries are called {name!r}" if name == previous else f"entry {name!r} comes after {previous!r}"


def target_fault(target: bytes) -> str | None:
    """What is wrong with the target of a symlink, or None. Absolute targets and ``..`` are legal."""
    if not target:
        return "a symlink's target is empty"
    if len(target) > TARGET_MAX:
        return f"a symlink's target has {len(target)} bytes, and {TARGET_MAX} is the limit"
    if b"\0" in target:
        return "a symlink's target holds a NUL"
    return None


def first_difference(found: bytes, tokens: Iterable[bytes]) -> tuple[int, str]:
    """The first string in ``found`` with which no token goes on: its offset in ``found``, and what is wrong with it."""
    start = 0
    while start + 8 <= len(found):
        length = U64.unpack_from(found, start)[0]
        if length > TAG_MAX:
            return start, f"there is a string of {length} bytes, and a tag has {TAG_MAX} at most"
        text_end, end = start + 8 + length, start + 8 + padded(length)
        if not any(fixed.startswith(found[:end]) for fixed in tokens):
            wrong_padding = any(found[text_end:end])
            return start, "padding is not zero" if wrong_padding else f"there is {found[start + 8 : text_end]!r}"
        start = end
    return start, f"there is {found[start:]!r}"
