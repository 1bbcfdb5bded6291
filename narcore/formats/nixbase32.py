"""Nix's base 32: the digits of hashes in store paths and narinfos.

The bytes are read as one little-endian number. Its digits have five bits each, and the most significant digit comes first
(Nix: src/libutil/base-nix-32.cc). Therefore this is not RFC 4648's base 32, and can't be decoded digit by digit from the left.
"""

from functools import lru_cache

from narcore.errors import HashError

ALPHABET = "0123456789abcdfghijklmnpqrsvwxyz"  # without e, o, t and u, so that hashes contain no words
_DIGITS = frozenset(ALPHABET)
_TO_PYTHON = str.maketrans(ALPHABET, "0123456789abcdefghijklmnopqrstuv")  # the digits that int(text, 32) reads


def encoded_length(size: int) -> int:
    """Return the number of digits for ``size`` bytes."""
    return (size * 8 + 4) // 5


@lru_cache(maxsize=4096)
def encode(raw: bytes) -> str:
    """Return the digits of ``raw``. Cached, because a single request needs the digits of the same NarHash several times."""
    number = int.from_bytes(raw, "little")
    count = encoded_length(len(raw))
    return "".join(ALPHABET[number >> (5 * position) & 31] for position in reversed(range(count)))


def decode(text: str) -> bytes:
    """Return the bytes that ``text`` encodes.

    Raises HashError if it has a character that is not a digit, an impossible length, or bits set beyond the last byte.
    """
    size = len(text) * 5 // 8
    if not _DIGITS.issuperset(text):
        raise HashError("not nix base 32: a character is not a digit")
    if encoded_length(size) != len(text):
        raise HashError(f"not nix base 32: {len(text)} digits do not encode a whole number of bytes")
    number = int(text.translate(_TO_PYTHON), 32) if text else 0
    if number >> (8 * size):
        raise HashError("not nix base 32: bits set beyond the last byte")
    return number.to_bytes(size, "little")
