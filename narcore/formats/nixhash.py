"""A hash with its algorithm, in every notation that Nix reads (Nix: src/libutil/hash.cc).

The notations are ``sha256:`` followed by base 16, nix base 32 or base 64, which differ in length, and SRI: ``sha256-`` followed by
base 64. The name of another algorithm may replace ``sha256``.
"""

import binascii
import enum
from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Self

from narcore.errors import HashError
from narcore.formats import nixbase32

DIGEST_SIZES = {"md5": 16, "sha1": 20, "sha256": 32, "sha512": 64}


class Notation(enum.Enum):
    """A notation of hashes."""

    HEX = "hex"
    NIX32 = "nix32"
    BASE64 = "base64"
    SRI = "sri"


@dataclass(frozen=True, slots=True)
class NixHash:
    """A hash. ``algorithm`` is md5, sha1, sha256 or sha512; raises HashError if ``digest`` has a wrong length."""

    algorithm: str
    digest: bytes

    def __post_init__(self) -> None:
        if len(self.digest) != _digest_size(self.algorithm):
            raise HashError(f"a digest of {self.algorithm} does not have {len(self.digest)} bytes")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read any notation. Raises HashError if ``text`` is not a hash."""
        algorithm, notation, digits = _split(text)
        return cls(algorithm, _DECODERS[notation](digits))

    def __str__(self) -> str:
        return self.to_nix32()

    def to_nix32(self) -> str:
        """Return ``sha256:<nix base 32>``, as in narinfos."""
        return f"{self.algorithm}:{self.nix32}"

    def to_sri(self) -> str:
        """Return ``sha256-<base 64>``, the notation of W3C Subresource Integrity."""
        return f"{self.algorithm}-{b64encode(self.digest).decode('ascii')}"

    @property
    def nix32(self) -> str:
        """The digits without the algorithm."""
        return nixbase32.encode(self.digest)


def notation_of(text: str) -> Notation:
    """Return the notation of ``text``, judged by its prefix and length. Raises HashError if it has none."""
    return _split(text)[1]


def _digest_size(algorithm: str) -> int:
    size = DIGEST_SIZES.get(algorithm)
    if size is None:
        raise HashError(f"unknown hash algorithm {algorithm[:32]!r}")
    return size


def _split(text: str) -> tuple[str, Notation, str]:
    """Split into algorithm, notation and digits. The number of digits is checked, but not the digits themselves."""
    algorithm, colon, digits = text.partition(":")
    if not colon:
        algorithm, dash, digits = text.partition("-")
        if not dash:
            raise HashError("not a hash: it has no algorithm")
    lengths = _lengths(_digest_size(algorithm))
    notation = lengths.get(len(digits))
    if notation is None or not (colon or notation is Notation.BASE64):
        raise HashError(f"not a hash: {len(digits)} characters is not the length of a {algorithm} hash")
    return algorithm, notation if colon else Notation.SRI, digits


def _lengths(size: int) -> dict[int, Notation]:
    return {
        size * 2: Notation.HEX,
        nixbase32.encoded_length(size): Notation.NIX32,
        (size + 2) // 3 * 4: Notation.BASE64,
    }


def _decode_hex(digits: str) -> bytes:
    try:
        return binascii.unhexlify(digits)  # bytes.fromhex would skip white space
    except ValueError as error:
        raise HashError("not a hash: invalid base 16") from error


def _decode_base64(digits: str) -> bytes:
    try:
        return b64decode(digits, validate=True)
    except ValueError as error:
        raise HashError("not a hash: invalid base 64") from error


_DECODERS = {
    Notation.HEX: _decode_hex,
    Notation.NIX32: nixbase32.decode,
    Notation.BASE64: _decode_base64,
    Notation.SRI: _decode_base64,
}
