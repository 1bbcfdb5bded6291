"""Ed25519 signatures and keys, ``name:base64``, as in narinfos and nix.conf (Nix: src/libutil/signature/local-keys.cc).

The name only selects the key, by exact comparison. Trust depends on the key itself, not on its name. Whether a path is
trusted is decided in ``narcore/lookup/lookup.py``.
``cryptography`` is imported at first use, so a server that trusts every cache never loads it.
"""

import re
from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from typing import Self

from narcore.errors import FormatError

SIGNATURE_SIZE = 64
KEY_SIZE = 32  # of a public key, and of a secret key's seed

# The y coordinates of the curve's points of small order, in all encodings. If a public key is one of these points, anyone can make
# valid signatures without a secret key. libsodium, and therefore Nix, refuses these keys; OpenSSL does not.
_P = 2**255 - 19
_ORDER_8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_WEAK = frozenset((0, 1, _P - 1, _P, _P + 1, _ORDER_8, _P - _ORDER_8))
_SIGN_BIT = 1 << 255

_NAME = re.compile(r"[^:\s\x00-\x1f\x7f]+")


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature of 64 bytes, and the name of the key that made it. Raises FormatError on construction if it is invalid."""

    name: str
    sig: bytes

    def __post_init__(self) -> None:
        _check(self.name, self.sig, SIGNATURE_SIZE, "signature")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``name:base64``. Raises FormatError if it is invalid or does not have the size of an Ed25519 signature."""
        return cls(*_split(text, "signature"))

    def __str__(self) -> str:
        return _join(self.name, self.sig)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key of 32 bytes to verify signatures. Raises FormatError on construction if it is invalid or weak."""

    name: str
    key: bytes

    def __post_init__(self) -> None:
        _check(self.name, self.key, KEY_SIZE, "public key")
        if int.from_bytes(self.key, "little") & ~_SIGN_BIT in _WEAK:
            raise FormatError("a weak key: anyone can make signatures for it", where="public key")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``name:base64``. Raises FormatError if it is invalid."""
        return cls(*_split(text, "public key"))

    def __str__(self) -> str:
        return _join(self.name, self.key)

    def verify(self, message: bytes, signature: Signature) -> bool:
        """Return whether ``signature`` names this key and is its signature of ``message``."""
        if signature.name != self.name:
            return False
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.key).verify(signature.sig, message)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class SecretKey:
    """A key to sign with. Raises FormatError on construction if it is invalid.

    ``str`` and ``repr`` show only its name, so that the secret does not end up in a log; ``to_text`` returns the secret.
    """

    name: str
    seed: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _check(self.name, self.seed, KEY_SIZE, "secret key")

    @classmethod
    def generate(cls, name: str) -> Self:
        """Return a new random key."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return cls(name, Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``name:base64`` with 64 bytes, as Nix writes it: the seed, then the public key. Raises FormatError if invalid."""
        name, raw = _split(text, "secret key")
        key = cls(name, raw[:KEY_SIZE])
        if raw[KEY_SIZE:] != key.public_key.key:
            raise FormatError("the public key does not match the secret key", where="secret key")
        return key

    def to_text(self) -> str:
        """Return the secret in the form that ``parse`` and Nix read."""
        return _join(self.name, self.seed + self.public_key.key)

    def sign(self, message: bytes) -> Signature:
        """Sign a message. The same message always has the same signature."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return Signature(self.name, Ed25519PrivateKey.from_private_bytes(self.seed).sign(message))

    @property
    def public_key(self) -> PublicKey:
        """The key that verifies the signatures of this key."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        public = Ed25519PrivateKey.from_private_bytes(self.seed).public_key()
        return PublicKey(self.name, public.public_bytes_raw())


def parse_public_keys(text: str) -> tuple[PublicKey, ...]:
    """Read public keys separated by white space, as in ``trusted-public-keys`` of nix.conf; the list may be empty.

    Raises FormatError. Its message gives the position and the name of the key, but never the key itself, because a user may have
    written a secret key by mistake.
    """
    return tuple(_listed_key(number, word) for number, word in enumerate(text.split(), 1))


def _listed_key(number: int, text: str) -> PublicKey:
    try:
        return PublicKey.parse(text)
    except FormatError as error:
        name, colon, _ = text.partition(":")
        raise FormatError(
            str(error), where=f"number {number}, {name[:50]!r}" if colon else f"number {number}"
        ) from error


def _split(text: str, where: str) -> tuple[str, bytes]:
    name, colon, encoded = text.partition(":")
    if not colon:
        raise FormatError("no colon between name and base 64", where=where)
    try:
        return name, b64decode(encoded, validate=True)
    except ValueError as error:
        raise FormatError("invalid base 64", where=where) from error


def _check(name: str, raw: bytes, size: int, where: str) -> None:
    if not _NAME.fullmatch(name):
        raise FormatError("the name is empty, or contains a colon or white space", where=where)
    if len(raw) != size:
        raise FormatError(f"{len(raw)} bytes instead of {size}", where=where)


def _join(name: str, raw: bytes) -> str:
    return f"{name}:{b64encode(raw).decode('ascii')}"
