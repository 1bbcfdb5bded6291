"""Ed25519 signatures and keys, ``name:base64``, as in narinfos and nix.conf (Nix: src/libutil/signature/local-keys.cc).

The name only says which key is meant: names compare exactly, and a key is trusted for what it is, not for its name.
``cryptography`` is imported at first use: a server that trusts every cache never loads it.
"""

import re
from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from typing import Self

from narcore.errors import FormatError

SIGNATURE_SIZE = 64
KEY_SIZE = 32  # of a public key, and of the seed of a secret one

# The y coordinates of the points of small order, in all spellings: with one of these as the key, signatures can be made
# without any secret. libsodium, and so Nix, refuses them; OpenSSL does not.
_P = 2**255 - 19
_ORDER_8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_WEAK = frozenset((0, 1, _P - 1, _P, _P + 1, _ORDER_8, _P - _ORDER_8))
_SIGN_BIT = 1 << 255

_NAME = re.compile(r"[^:\s\x00-\x1f\x7f]+")


@dataclass(frozen=True, slots=True)
class Signature:
    """64 bytes, and the name of the key that is said to have made them. FormatError on construction if it is none."""

    name: str
    sig: bytes

    def __post_init__(self) -> None:
        _check(self.name, self.sig, SIGNATURE_SIZE, "signature")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``name:base64``; FormatError, also for signatures of another kind than Ed25519's size."""
        return cls(*_split(text, "signature"))

    def __str__(self) -> str:
        return _join(self.name, self.sig)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key to verify with, 32 bytes. FormatError on construction if it can't be one, or proves nothing."""

    name: str
    key: bytes

    def __post_init__(self) -> None:
        _check(self.name, self.key, KEY_SIZE, "public key")
        if int.from_bytes(self.key, "little") & ~_SIGN_BIT in _WEAK:
            raise FormatError("a weak key, whose signatures anyone can make", where="public key")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``name:base64``."""
        return cls(*_split(text, "public key"))

    def __str__(self) -> str:
        return _join(self.name, self.key)

    def verify(self, message: bytes, signature: Signature) -> bool:
        """Whether ``signature`` names this key and is its signature of ``message``."""
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
    """A key to sign with. FormatError on construction if it can't be one.

    ``str`` and ``repr`` show its name only, so that it can't slip into a log; ``to_text`` writes it out.
    """

    name: str
    seed: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _check(self.name, self.seed, KEY_SIZE, "secret key")

    @classmethod
    def generate(cls, name: str) -> Self:
        """A new random key."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return cls(name, Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``name:base64`` of the 64 bytes that Nix writes: the seed, then its public key. FormatError."""
        name, raw = _split(text, "secret key")
        key = cls(name, raw[:KEY_SIZE])
        if raw[KEY_SIZE:] != key.public_key.key:
            raise FormatError("the public half does not belong to the secret half", where="secret key")
        return key

    def to_text(self) -> str:
        """The secret, in the form that ``parse`` and Nix read."""
        return _join(self.name, self.seed + self.public_key.key)

    def sign(self, message: bytes) -> Signature:
        """Sign; the same message always gives the same signature."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return Signature(self.name, Ed25519PrivateKey.from_private_bytes(self.seed).sign(message))

    @property
    def public_key(self) -> PublicKey:
        """What others need to verify with."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        public = Ed25519PrivateKey.from_private_bytes(self.seed).public_key()
        return PublicKey(self.name, public.public_bytes_raw())


def parse_public_keys(text: str) -> tuple[PublicKey, ...]:
    """Read a list of public keys as ``trusted-public-keys`` of nix.conf has it: separated by white space, or empty.

    FormatError, which says which key it is about, but not what it holds: it may be a secret one.
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
        raise FormatError("bad base 64", where=where) from error


def _check(name: str, raw: bytes, size: int, where: str) -> None:
    if not _NAME.fullmatch(name):
        raise FormatError("the name is empty, or has a colon or white space in it", where=where)
    if len(raw) != size:
        raise FormatError(f"{len(raw)} bytes instead of {size}", where=where)


def _join(name: str, raw: bytes) -> str:
    return f"{name}:{b64encode(raw).decode('ascii')}"
