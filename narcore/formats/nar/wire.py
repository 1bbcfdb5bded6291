"""The NAR format on the wire: its strings, its merged tokens and its limits.

A NAR is a sequence of length-prefixed strings, and most of them are fixed. This module merges every run of fixed strings
into one token, as in snix's nix-compat (``nar/wire``). The parser compares whole tokens and the writer emits whole tokens, so both
can be checked against the grammar in this package's docstring. The limits are those of Nix (src/libutil/archive.cc).
"""

import struct
from collections.abc import Iterable
from typing import Final

TAG_MAX: Final = 32
"""The length limit of a fixed string in bytes. All tokens below are shorter; a longer tag can't match any of them."""
NAME_MAX: Final = 255
"""The length limit of a directory entry's name in bytes."""
TARGET_MAX: Final = 4095
"""The length limit of a symlink's target in bytes: PATH_MAX without its NUL."""
DEPTH_MAX: Final = 64
"""The depth limit of a node; the root has depth 0. Unbounded nesting is CVE-2026-44028."""
SIZE_MAX: Final = 2**63 - 1
"""The size limit of a regular file in bytes. File offsets are signed 64-bit numbers, so no real file is larger."""

U64: Final = struct.Struct("<Q")


def padded(length: int) -> int:
    """Return ``length`` rounded up to a multiple of 8: the size of a string's bytes with padding, without their length."""
    return length + (-length & 7)


def string(raw: bytes) -> bytes:
    """Return one string in NAR encoding: length, bytes, zero padding."""
    return U64.pack(len(raw)) + raw + bytes(-len(raw) & 7)


def token(*strings: bytes) -> bytes:
    """Return a run of strings in NAR encoding."""
    return b"".join(map(string, strings))


def after_padding(fixed: bytes) -> tuple[bytes, ...]:
    """Return ``fixed`` preceded by 0 to 7 bytes of padding, indexed by the length of the padding."""
    return tuple(bytes(length) + fixed for length in range(8))


ROOT: Final = token(b"nix-archive-1", b"(", b"type")
ENTRY: Final = token(b"entry", b"(", b"name")
NODE: Final = token(b"node", b"(", b"type")
REGULAR: Final = token(b"regular", b"contents")
EXECUTABLE: Final = token(b"regular", b"executable", b"", b"contents")
SYMLINK: Final = token(b"symlink", b"target")
DIRECTORY: Final = token(b"directory")
CLOSE: Final = token(b")")
CLOSE_ENTRY: Final = token(b")", b")")  # the end of a node in a directory, and of its entry

PADDED_NODE: Final = after_padding(NODE)  # after a name
PADDED_CLOSE: Final = after_padding(CLOSE)  # after contents or a target
PADDED_CLOSE_ENTRY: Final = after_padding(CLOSE_ENTRY)


def name_fault(name: bytes) -> str | None:
    """Return what is wrong with the name of a directory entry, or None. Names need not be UTF-8."""
    if not name:
        return "an entry's name is empty"
    if len(name) > NAME_MAX:
        return f"an entry's name has {len(name)} bytes; the limit is {NAME_MAX}"
    if name in (b".", b".."):
        return f"an entry is named {name!r}"
    if b"/" in name or b"\0" in name:
        return f"an entry's name contains a slash or a NUL: {name!r}"
    return None


def order_fault(name: bytes, previous: bytes) -> str | None:
    """Return what is wrong with ``name`` after ``previous`` in a directory, or None. Names strictly increase in byte order."""
    if name > previous:
        return None
    return f"two entries are named {name!r}" if name == previous else f"entry {name!r} comes after {previous!r}"


def target_fault(target: bytes) -> str | None:
    """Return what is wrong with the target of a symlink, or None. Absolute targets and ``..`` are valid."""
    if not target:
        return "a symlink's target is empty"
    if len(target) > TARGET_MAX:
        return f"a symlink's target has {len(target)} bytes; the limit is {TARGET_MAX}"
    if b"\0" in target:
        return "a symlink's target contains a NUL"
    return None


def first_difference(found: bytes, tokens: Iterable[bytes]) -> tuple[int, str]:
    """Find the first string in ``found`` that matches none of ``tokens``. Return the string's offset in ``found`` and the error."""
    start = 0
    while start + 8 <= len(found):
        length = U64.unpack_from(found, start)[0]
        if length > TAG_MAX:
            return start, f"found a string of {length} bytes (a tag has at most {TAG_MAX})"
        text_end, end = start + 8 + length, start + 8 + padded(length)
        if not any(fixed.startswith(found[:end]) for fixed in tokens):
            wrong_padding = any(found[text_end:end])
            return start, "but the padding is not zero" if wrong_padding else f"found {found[start + 8 : text_end]!r}"
        start = end
    return start, f"found {found[start:]!r}"
