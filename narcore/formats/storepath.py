"""Store paths: ``/nix/store/<32 characters of hash>-<name>`` (Nix: src/libstore/path.cc)."""

import re
from dataclasses import dataclass
from typing import Self

from narcore.errors import StorePathError
from narcore.formats.nixbase32 import ALPHABET

DEFAULT_STORE_DIR = "/nix/store"
HASH_PART_LENGTH = 32
NAME_MAX = 211  # Nix: path.hh, MaxPathLen

_HASH_PART = re.compile(f"[{ALPHABET}]{{{HASH_PART_LENGTH}}}")
# A name is not `.` or `..`, and does not begin with `.-` or `..-`, which would look like relative paths (path.cc, checkName).
_NAME = re.compile(rf"(?!\.{{1,2}}(?:-|\Z))[0-9A-Za-z+\-._?=]{{1,{NAME_MAX}}}")
_BASE_NAME = re.compile(f"{_HASH_PART.pattern}-{_NAME.pattern}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class StorePath:
    """A valid store path; ``str()`` returns the full path. Raises StorePathError on construction if a part is invalid."""

    store_dir: str
    hash_part: str
    name: str

    def __post_init__(self) -> None:
        check_store_dir(self.store_dir)
        if not is_hash_part(self.hash_part):
            raise StorePathError(f"{_shown(self.hash_part)} is not the hash part of a store path")
        if not _NAME.fullmatch(self.name):
            raise StorePathError(f"{_shown(self.name)} is not a valid name of a store path")

    @classmethod
    def parse(cls, text: str, store_dir: str = DEFAULT_STORE_DIR) -> Self:
        """Read the full path of a store path. Use ``split_store_path`` for paths below it. Raises StorePathError if invalid."""
        prefix = store_dir + "/"
        if not text.startswith(prefix):
            raise StorePathError(f"{_shown(text)} is not in {store_dir}")
        return cls.from_base_name(text[len(prefix) :], store_dir)

    @classmethod
    def from_base_name(cls, base_name: str, store_dir: str = DEFAULT_STORE_DIR) -> Self:
        """Read ``<hash part>-<name>``. Raises StorePathError if it is invalid."""
        if not is_base_name(base_name):
            raise StorePathError(f"{_shown(base_name)} is not a store path")
        return cls(store_dir, base_name[:HASH_PART_LENGTH], base_name[HASH_PART_LENGTH + 1 :])

    @property
    def base_name(self) -> str:
        """``<hash part>-<name>``."""
        return f"{self.hash_part}-{self.name}"

    def __str__(self) -> str:
        return f"{self.store_dir}/{self.base_name}"


def is_hash_part(text: str) -> bool:
    """Return whether ``text`` can be a hash part, which is the key of a store path in a binary cache."""
    return _HASH_PART.fullmatch(text) is not None


def is_base_name(text: str) -> bool:
    """Return whether ``text`` is a valid ``<hash part>-<name>``. Creates no StorePath, because a narinfo may list thousands."""
    return _BASE_NAME.fullmatch(text) is not None


def check_store_dir(text: str) -> str:
    """Return ``text`` if it can be a store dir: absolute, not the root, without empty, ``.`` or ``..`` segments.

    Otherwise raises StorePathError. Control characters are refused too, because a store dir is used in URLs and headers.
    """
    first, *segments = text.split("/")
    if first or not segments or not {"", ".", ".."}.isdisjoint(segments) or _CONTROL.search(text):
        raise StorePathError(f"{_shown(text)} can't be a store dir")
    return text


def split_store_path(path: str, store_dir: str = DEFAULT_STORE_DIR) -> tuple[StorePath, str]:
    """Split an absolute path into the store path and the path below it: ``/nix/store/<base name>/x/y`` gives ``x/y``.

    Slashes before and after the base name may repeat, as in any POSIX path. The path below is returned unchanged; it is "" for the
    store path itself. Any ``..`` stays in it, because the meaning of ``..`` depends on links. Raises StorePathError if ``path`` is
    not below ``store_dir``.
    """
    rest = path
    for segment in store_dir.split("/"):  # the first is "": the path has to be absolute
        found, _, rest = rest.partition("/")
        rest = rest.lstrip("/")
        if found != segment:
            raise StorePathError(f"{_shown(path)} is not in {store_dir}")
    base_name, _, rest = rest.partition("/")
    return StorePath.from_base_name(base_name, store_dir), rest.lstrip("/")


def _shown(text: str) -> str:
    """Return ``text`` for a message: quoted, and shortened if it is long."""
    return repr(text if len(text) <= 300 else text[:297] + "...")
