"""Content addresses: the CA field of a narinfo, and the store path that Nix computes from a content address.

::

    ca     = "text:" hash  |  "fixed:" hash  |  "fixed:r:" hash          hash = algorithm ":" digits
    path   = storeDir "/" fold(sha256(type ":" inner ":" storeDir ":" name)) "-" name
    type   = "text" {":" reference}              inner = hash, of the bytes of the one file
           | "source" {":" reference} [":self"]  inner = hash, of the NAR by sha256
           | "output:out"                        inner = sha256("fixed:out:" ["r:"] hash ":"), for all others

(Nix: src/libstore/content-address.cc, and makeStorePath, makeFixedOutputPath and makeTextPath in src/libstore/store-api.cc;
in this computation, digits are base 16, and references are sorted full paths. ``fold`` combines the bytes into 20 bytes with XOR,
and encodes them in nix base 32.) Such a path needs no signature: its hash part authenticates its references and, once the contents
have been hashed, its contents.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self

from narcore.errors import FormatError
from narcore.formats import nixbase32
from narcore.formats.narinfo import NarInfo
from narcore.formats.nixhash import NixHash
from narcore.formats.storepath import DEFAULT_STORE_DIR, StorePath

Method = Literal["flat", "nar", "text"]

# The prefixes are tried in this order, so ``fixed:r:`` comes before ``fixed:``.
_PREFIXES: dict[str, Method] = {"fixed:r:": "nar", "fixed:": "flat", "text:": "text"}
_OF_METHOD = {method: prefix for prefix, method in _PREFIXES.items()}
_WHERE = "content address"


@dataclass(frozen=True, slots=True)
class ContentAddress:
    """A hash, and the method that says what was hashed: a NAR (``nar``), or the bytes of a single file (``flat``, ``text``).

    Raises FormatError on construction for a ``text`` hash other than sha256. The ``nar`` hash of a path that refers to itself
    is not the hash of the unmodified NAR: see `refers_to_itself`.
    """

    method: Method
    hash: NixHash

    def __post_init__(self) -> None:
        if self.method == "text" and self.hash.algorithm != "sha256":
            raise FormatError(f"a text address uses {self.hash.algorithm} instead of sha256", where=_WHERE)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the CA field, with digits in base 16, nix base 32 or base 64.

        Raises FormatError for anything else, including the kinds of newer versions of Nix: git trees and BLAKE3 are not supported.
        """
        for prefix, method in _PREFIXES.items():
            if text.startswith(prefix):
                return cls(method, _hash(text.removeprefix(prefix)))
        raise FormatError(f"unknown kind: {text[:32]!r}", where=_WHERE)

    def __str__(self) -> str:
        """Return the address as Nix writes it."""
        return _OF_METHOD[self.method] + self.hash.to_nix32()

    @property
    def is_by_nar_hash(self) -> bool:
        """Whether this hash is also the narinfo's NarHash, for a path that does not refer to itself."""
        return self.method == "nar" and self.hash.algorithm == "sha256"

    def store_path(
        self,
        name: str,
        references: Iterable[str] = (),
        *,
        self_reference: bool = False,
        store_dir: str = DEFAULT_STORE_DIR,
    ) -> StorePath:
        """Return the store path of contents that have this address.

        ``references`` are base names in any order, without the path's own base name; ``self_reference`` says whether the path
        refers to itself. Raises FormatError for references that Nix does not allow. With the method ``text``, a path can't refer
        to itself. Among the other kinds, only a NAR hashed by sha256 can have references.
        """
        others = [f"{store_dir}/{reference}" for reference in sorted(set(references))]
        if self.method == "text" and not self_reference:
            return _make_store_path(["text", *others], self.hash, store_dir, name)
        if self.is_by_nar_hash:
            return _make_store_path(
                ["source", *others, *(["self"] if self_reference else [])], self.hash, store_dir, name
            )
        if others or self_reference:
            raise FormatError(f"contents with the address {self} can't have these references", where=_WHERE)
        fixed = _OF_METHOD[self.method].replace("fixed:", "fixed:out:")
        inner = hashlib.sha256(f"{fixed}{self.hash.algorithm}:{self.hash.digest.hex()}:".encode()).digest()
        return _make_store_path(["output", "out"], NixHash("sha256", inner), store_dir, name)


def refers_to_itself(narinfo: NarInfo) -> bool:
    """Return whether the path is among its own references.

    The content address of such a path is computed before the path is known: from its NAR with zeros in place of the hash part.
    """
    return narinfo.store_path.base_name in narinfo.references


def is_address_of(narinfo: NarInfo) -> bool:
    """Return whether the narinfo's store path follows from its CA, name and references, so that it needs no signature.

    If CA and NarHash are hashes of the same bytes, this function also requires that they are equal. Otherwise the NarHash is not
    authenticated, and the contents have to be checked as well: see `contents_unproved`.
    """
    if narinfo.ca is None:
        return False
    own = narinfo.store_path
    try:
        address = ContentAddress.parse(narinfo.ca)
        others = (reference for reference in narinfo.references if reference != own.base_name)
        found = address.store_path(own.name, others, self_reference=refers_to_itself(narinfo), store_dir=own.store_dir)
    except FormatError:
        return False
    return found == own and (_needs_contents(address, narinfo) or address.hash == narinfo.nar_hash)


def contents_unproved(narinfo: NarInfo) -> bool:
    """Return whether the contents need a check of their own, for a narinfo that `is_address_of` accepts.

    If so, a NAR can have the right NarHash and still not match the address. ``streams.contentcheck.addressed`` then has to check
    the whole NAR before any byte of it is trusted.
    """
    return narinfo.ca is not None and _needs_contents(ContentAddress.parse(narinfo.ca), narinfo)


def _needs_contents(address: ContentAddress, narinfo: NarInfo) -> bool:
    return not address.is_by_nar_hash or refers_to_itself(narinfo)


def _hash(text: str) -> NixHash:
    """Parse ``<algorithm>:<digits>``. Refuses the SRI notation: NixHash reads it, but content addresses never use it."""
    if ":" not in text:
        raise FormatError("no algorithm before the hash", where=_WHERE)
    try:
        return NixHash.parse(text)
    except FormatError as error:
        raise FormatError(str(error), where=_WHERE) from error


def _make_store_path(kind: list[str], inner: NixHash, store_dir: str, name: str) -> StorePath:
    described = ":".join([*kind, inner.algorithm, inner.digest.hex(), store_dir, name])
    folded = bytearray(20)  # compressHash: src/libutil/hash.cc
    for index, byte in enumerate(hashlib.sha256(described.encode()).digest()):
        folded[index % 20] ^= byte
    return StorePath(store_dir, nixbase32.encode(bytes(folded)), name)
