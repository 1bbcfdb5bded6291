"""``nix-cache-info``, the file in which a binary cache describes itself (Nix: src/libstore/binary-cache-store.cc)."""

import re
from dataclasses import dataclass
from typing import Self

from narcore.errors import CacheInfoError, StorePathError
from narcore.formats.storepath import DEFAULT_STORE_DIR, check_store_dir

_INTEGER = re.compile(r"[+-]?[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """The description of a binary cache; a missing field has its default.

    ``priority`` is None if the cache declares none; caches with a lower number are asked first. Raises CacheInfoError on
    construction if ``store_dir`` is not a valid store dir.
    """

    store_dir: str = DEFAULT_STORE_DIR
    want_mass_query: bool = False
    priority: int | None = None

    def __post_init__(self) -> None:
        try:
            check_store_dir(self.store_dir)
        except StorePathError as error:
            raise CacheInfoError(str(error), where="field StoreDir") from error

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read the file. As in Nix, lines without a colon and unknown keys are ignored; if a key is repeated, its last line counts.

        Raises CacheInfoError if the file is not UTF-8, is HTML (an error page with status 200), or has an invalid value.
        """
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CacheInfoError("nix-cache-info is not UTF-8", where=f"offset {error.start}") from error
        if text.lstrip().startswith("<"):
            raise CacheInfoError("this is HTML or XML, not a nix-cache-info")
        fields = _fields(text)
        return cls(
            store_dir=fields.get("StoreDir", DEFAULT_STORE_DIR),
            want_mass_query=fields.get("WantMassQuery") == "1",
            priority=_priority(fields.get("Priority")),
        )

    def to_text(self) -> str:
        """Return the file as Nix writes it; unset fields are omitted."""
        text = f"StoreDir: {self.store_dir}\n"
        if self.want_mass_query:
            text += "WantMassQuery: 1\n"
        if self.priority is not None:
            text += f"Priority: {self.priority}\n"
        return text


def _fields(text: str) -> dict[str, str]:
    lines = (line.partition(":") for line in text.split("\n"))
    return {key: value.strip() for key, colon, value in lines if colon}


def _priority(text: str | None) -> int | None:
    if text is None:
        return None
    if not _INTEGER.fullmatch(text):
        raise CacheInfoError(f"not an integer: {text[:32]!r}", where="field Priority")
    return int(text)
