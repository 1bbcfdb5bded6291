"""Finds the store path in what a user types or pastes: a path, a hash, a URL, a line of a terminal."""

import re
from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

from narcore.errors import StorePathError
from narcore.formats.storepath import HASH_PART_LENGTH, is_hash_part

_URL = re.compile(r"[a-z][a-z0-9+]*://", re.IGNORECASE)
_ENDINGS = (".narinfo", ".ls")
# Nix writes an output of a derivation so; the derivation is what can be opened.
_OUTPUT = re.compile(r"(\.drv)[!^].*")


def typed_path(text: str, store_dirs: Iterable[str]) -> str:
    """The path that ``text`` means: absolute, or one that begins with the hash where it names no store dir.

    ``store_dirs`` are those to look for in URLs and lines. Raises StorePathError, with what was typed, if there is none.
    """
    typed = text.strip().strip("\"'`")
    found = _found(typed, tuple(store_dirs))
    if found is None:
        raise StorePathError(f"{typed[:300]!r} is not a store path, and there is none in it")
    return found


def _found(typed: str, store_dirs: tuple[str, ...]) -> str | None:
    if _URL.match(typed) and " " not in typed:
        return _in_url(typed, store_dirs)
    if typed.startswith("/"):
        return _OUTPUT.sub(r"\1", typed)
    if is_hash_part(typed[:HASH_PART_LENGTH]):
        return _OUTPUT.sub(r"\1", _without_ending(typed))
    words = typed.split()
    if len(words) < 2:
        return None
    inside = (_found(word.strip("\"'`"), store_dirs) for word in reversed(words) if _tells(word, store_dirs))
    return next(filter(None, inside), None)


def _tells(word: str, store_dirs: tuple[str, ...]) -> bool:
    """Whether a word of a line can be what it is about, and not a program or an option's value."""
    word = word.strip("\"'`")
    in_store = any(word.startswith(f"{each}/") for each in store_dirs)
    return in_store or is_hash_part(word[:HASH_PART_LENGTH]) or _URL.match(word) is not None


def _in_url(url: str, store_dirs: tuple[str, ...]) -> str | None:
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    path = unquote(parts.path, errors="surrogateescape")
    for store_dir in store_dirs:
        _, there, rest = path.partition(f"{store_dir}/")
        if there and is_hash_part(rest[:HASH_PART_LENGTH]):
            return f"{store_dir}/{rest}"
    label = (parts.hostname or "").partition(".")[0]
    if is_hash_part(label):  # an instance that gives each store path a host of its own
        return f"{label}{path}"
    name = _without_ending(path.rpartition("/")[2])
    return name if is_hash_part(name) else None


def _without_ending(name: str) -> str:
    for ending in _ENDINGS:
        if is_hash_part(name.removesuffix(ending)):
            return name.removesuffix(ending)
    return name
