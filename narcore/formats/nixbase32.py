"""Nix's base 32: the digits of a hash as store paths and narinfos show them.

The bytes are read as one little-endian number and its digits are written most significant first, five bits each
(Nix: src/libutil/base-nix-32.cc). So it is not RFC 4648's base 32, and can't be decoded digit by digit from the left.
"""

from functools import lru_cache

from narcore.errors import HashError

ALPHABET = "0123456789abcdfghijklmnpqrsvwxyz"  # no e, o, t, u: Nix keeps words out of its hashes
_DIGITS = frozenset(ALPHABET)
_TO_PYTHON = str.maketrans(ALPHABET, "0123456789abcdefghijklmnopqrstuv")  # the digits that int(text, 32) reads


def encoded_length(size: int) -> int:
    """How many digits ``size`` bytes take."""
    return (size * 8 + 4) // 5


@lru_cache(maxsize=4096)
def encode(raw: bytes) -> str:
    """The digits of ``raw``. Remembered: those of one NAR's hash are asked for several times a request."""
    number = int.from_bytes(raw, "little")
    count = encoded_length(len(raw))
    return "".join(ALPHABET[number >> (5 * position) & 31] for position in reversed(range(count)))


def decode(text: str) -> bytes:
    """The bytes that ``text`` encodes.

    HashError: a character that is no digit, a length that no number of bytes has, or bits set beyond the last byte.
    """
    size = len(text) * 5 // 8
    if not _DIGITS.issuperset(text):
        raise HashError("not nix base 32: a character that is no digit")
    if encoded_length(size) != len(text):
        raise HashError(f"not nix base 32: no bytes have {len(text)} digits")
    number = int(text.translate(_TO_PYTHON), 32) if text else 0
    if number >> (8 * size):
        raise HashError("not nix base 32: bits set beyond the last byte")
    return number.to_bytes(size, "little")
