"""narinfos: what a binary cache publishes about one store path (Nix: src/libstore/nar-info.cc).

A narinfo has lines of ``Key: value``. Some caches write them differently from today's Nix. Unusual but unambiguous input is
accepted and recorded as a ``Quirk``; invalid input is refused. Only StorePath, NarHash, NarSize and References are signed; the
other fields are not authenticated.
"""

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Self

from narcore.errors import FormatError, HashError, NarInfoError, StorePathError
from narcore.formats.nixhash import NixHash, Notation, notation_of
from narcore.formats.signature import PublicKey, Signature
from narcore.formats.storepath import DEFAULT_STORE_DIR, StorePath, is_base_name

LINES_MAX = 1000  # Nix writes about ten lines; the only repeated field is Sig
REFERENCES_MAX = 50_000
SIZE_MAX = 2**63 - 1

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SIZE = re.compile(r"[0-9]{1,19}")  # as many digits as SIZE_MAX has
_SINGLE = frozenset(
    ("StorePath", "URL", "Compression", "FileHash", "FileSize", "NarHash", "NarSize", "Deriver", "System")
)
_ONCE = frozenset(("References", "CA"))  # Nix refuses a second line of these; for other fields, Nix takes the last line
_KNOWN = _SINGLE | _ONCE | {"Sig"}


class Quirk(enum.Flag):
    """Unusual properties of a narinfo that was accepted."""

    NONE = 0
    NO_REFERENCES = enum.auto()
    """There is no References line; it counts as empty."""
    NO_COMPRESSION = enum.auto()
    """Compression is missing or empty, which means bzip2."""
    HEX_HASH = enum.auto()
    BASE64_HASH = enum.auto()
    SRI_HASH = enum.auto()
    UNKNOWN_DERIVER = enum.auto()
    """``Deriver: unknown-deriver``, which means that the deriver is not known."""
    SYSTEM = enum.auto()
    """The legacy field System."""
    UNKNOWN_FIELD = enum.auto()
    """A field that Nix does not know; it is ignored."""
    REPEATED_FIELD = enum.auto()
    """A field that should appear once; the last line counts."""
    UNSORTED_REFERENCES = enum.auto()
    """The references are not sorted or contain duplicates; the fingerprint sorts them."""
    UNREADABLE_SIGNATURE = enum.auto()
    """A Sig that is not an Ed25519 signature, possibly a future kind of signature; it is ignored because it can't be verified."""


_NOTATION_QUIRKS = {
    Notation.NIX32: Quirk.NONE,
    Notation.HEX: Quirk.HEX_HASH,
    Notation.BASE64: Quirk.BASE64_HASH,
    Notation.SRI: Quirk.SRI_HASH,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NarInfo:
    """One narinfo. Raises NarInfoError on construction if a value can't be written to a narinfo.

    ``url`` is as in the file: relative to the cache or absolute, percent-encoded. ``nar_hash`` is a sha256. ``nar_size`` and
    ``file_size`` are in bytes. ``references`` are base names in the order of the file. Comparisons ignore ``quirks``.
    """

    store_path: StorePath
    url: str
    compression: str
    nar_hash: NixHash
    nar_size: int
    file_hash: NixHash | None = None
    file_size: int | None = None
    references: tuple[str, ...] = ()
    deriver: str | None = None
    system: str | None = None
    signatures: tuple[Signature, ...] = ()
    ca: str | None = None
    quirks: Quirk = field(default=Quirk.NONE, compare=False)

    def __post_init__(self) -> None:
        if self.nar_hash.algorithm != "sha256":
            raise NarInfoError(f"{self.nar_hash.algorithm} instead of sha256", where="field NarHash")
        _check_size("NarSize", self.nar_size)
        if self.file_size is not None:
            _check_size("FileSize", self.file_size)
        for key, value in (
            ("URL", self.url),
            ("Compression", self.compression),
            ("System", self.system),
            ("CA", self.ca),
        ):
            _check_text(key, value)
        if self.deriver is not None and not is_base_name(self.deriver):
            raise NarInfoError(f"{self.deriver[:300]!r} is not a store path's name", where="field Deriver")
        _check_references(self.references)

    @classmethod
    def parse(cls, data: bytes, store_dir: str = DEFAULT_STORE_DIR) -> Self:
        """Read a narinfo. Raises NarInfoError if it breaks the format.

        The caller limits the size of ``data``, and checks that the narinfo describes the store path that it requested.
        """
        fields = _Fields(_decode(data))
        file_hash = fields.last("FileHash")
        return cls(  # ``quirks`` has to be last, because reading the other fields adds to the quirks
            store_path=_store_path(fields.required("StorePath"), store_dir),
            url=fields.required("URL"),
            compression=fields.compression(),
            nar_hash=fields.hash("NarHash", fields.required("NarHash")),
            nar_size=_size("NarSize", fields.required("NarSize")),
            file_hash=None if file_hash is None else fields.hash("FileHash", file_hash),
            file_size=_size("FileSize", fields.last("FileSize") or "0") or None,  # 0 means unknown in Nix
            references=fields.references(),
            deriver=fields.deriver(),
            system=fields.system(),
            signatures=fields.signatures(),
            ca=fields.last("CA") or None,
            quirks=fields.quirks,
        )

    def to_text(self) -> str:
        """Return the narinfo as Nix writes it, plus System, which Nix no longer writes, after Deriver."""
        lines = [f"StorePath: {self.store_path}", f"URL: {self.url}", f"Compression: {self.compression}"]
        if self.file_hash is not None:
            lines.append(f"FileHash: {self.file_hash.to_nix32()}")
        if self.file_size is not None:
            lines.append(f"FileSize: {self.file_size}")
        lines += [f"NarHash: {self.nar_hash.to_nix32()}", f"NarSize: {self.nar_size}"]
        lines.append(f"References: {' '.join(self.references)}")
        if self.deriver is not None:
            lines.append(f"Deriver: {self.deriver}")
        if self.system is not None:
            lines.append(f"System: {self.system}")
        lines += [f"Sig: {signature}" for signature in self.signatures]
        if self.ca is not None:
            lines.append(f"CA: {self.ca}")
        return "\n".join(lines) + "\n"

    def fingerprint(self) -> bytes:
        """Return the bytes that a signature of this narinfo signs (Nix: src/libstore/path-info.cc, fingerprint)."""
        store_dir = self.store_path.store_dir
        references = ",".join(f"{store_dir}/{reference}" for reference in sorted(set(self.references)))
        return f"1;{self.store_path};{self.nar_hash.to_nix32()};{self.nar_size};{references}".encode()

    def signed_by(self, keys: Iterable[PublicKey]) -> PublicKey | None:
        """Return the first of ``keys`` that made one of the signatures; None if there is none."""
        fingerprint = self.fingerprint()
        for key in keys:
            if any(key.verify(fingerprint, signature) for signature in self.signatures):
                return key
        return None


class _Fields:
    """The lines of a narinfo by key, and the quirks found while reading them."""

    def __init__(self, text: str) -> None:
        self.quirks = Quirk.NONE
        self._values: dict[str, list[str]] = {}
        lines = text.split("\n")
        if lines.pop():
            raise NarInfoError(
                "the last line has no line break: the narinfo is truncated, or this is not a narinfo",
                where=f"line {len(lines) + 1}",
            )
        if len(lines) > LINES_MAX:
            raise NarInfoError(f"more than {LINES_MAX} lines")
        for number, line in enumerate(lines, 1):
            self._add(line, number)
        self._count()

    def _add(self, line: str, number: int) -> None:
        key, colon, value = line.partition(":")
        if not colon:
            raise NarInfoError("no colon", where=f"line {number}")
        if key in _KNOWN:
            self._values.setdefault(key, []).append(value.removeprefix(" "))
        else:
            self.quirks |= Quirk.UNKNOWN_FIELD

    def _count(self) -> None:
        for key, values in self._values.items():
            if len(values) > 1 and key in _ONCE:
                raise NarInfoError("appears twice", where=f"field {key}")
            if len(values) > 1 and key in _SINGLE:
                self.quirks |= Quirk.REPEATED_FIELD

    def last(self, key: str) -> str | None:
        return self._values.get(key, [None])[-1]

    def required(self, key: str) -> str:
        value = self.last(key)
        if not value:
            raise NarInfoError("missing", where=f"field {key}")
        return value

    def hash(self, key: str, text: str) -> NixHash:
        try:
            self.quirks |= _NOTATION_QUIRKS[notation_of(text)]
            return NixHash.parse(text)
        except HashError as error:
            raise NarInfoError(str(error), where=f"field {key}") from error

    def compression(self) -> str:
        value = self.last("Compression")
        if not value:
            self.quirks |= Quirk.NO_COMPRESSION
        return value or "bzip2"

    def references(self) -> tuple[str, ...]:
        value = self.last("References")
        if value is None:
            self.quirks |= Quirk.NO_REFERENCES
            return ()
        references = tuple(value.split())
        if any(first >= second for first, second in pairwise(references)):
            self.quirks |= Quirk.UNSORTED_REFERENCES
        return references

    def deriver(self) -> str | None:
        value = self.last("Deriver")
        if value != "unknown-deriver":
            return value
        self.quirks |= Quirk.UNKNOWN_DERIVER
        return None

    def system(self) -> str | None:
        value = self.last("System")
        if value is not None:
            self.quirks |= Quirk.SYSTEM
        return value or None

    def signatures(self) -> tuple[Signature, ...]:
        signatures = []
        for text in self._values.get("Sig", ()):
            try:
                signatures.append(Signature.parse(text))
            except FormatError:
                self.quirks |= Quirk.UNREADABLE_SIGNATURE
        return tuple(signatures)


def _decode(data: bytes) -> str:
    if data.lstrip()[:1] == b"<":
        raise NarInfoError("this is HTML or XML, not a narinfo", where="line 1")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NarInfoError("not UTF-8", where=f"offset {error.start}") from error


def _store_path(text: str, store_dir: str) -> StorePath:
    try:
        return StorePath.parse(text, store_dir)
    except StorePathError as error:
        raise NarInfoError(str(error), where="field StorePath") from error


def _size(key: str, text: str) -> int:
    if not _SIZE.fullmatch(text):
        raise NarInfoError(f"not a size: {text[:32]!r}", where=f"field {key}")
    return int(text)


def _check_size(key: str, size: int) -> None:
    if not 0 < size <= SIZE_MAX:
        raise NarInfoError(f"a size of {size} is out of bounds", where=f"field {key}")


def _check_text(key: str, value: str | None) -> None:
    if value is not None and (not value or _CONTROL.search(value)):
        raise NarInfoError("empty, or contains a control character", where=f"field {key}")


def _check_references(references: tuple[str, ...]) -> None:
    if len(references) > REFERENCES_MAX:
        raise NarInfoError(f"more than {REFERENCES_MAX} references", where="field References")
    for reference in references:
        if not is_base_name(reference):
            raise NarInfoError(f"{reference[:300]!r} is not a store path's name", where="field References")
