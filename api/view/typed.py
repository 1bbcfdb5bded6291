"""Finds the store path in the text that a user types or pastes: a path, a hash, a URL, or a command line."""

import re
from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

from narcore.errors import StorePathError
from narcore.formats.storepath import HASH_PART_LENGTH, is_hash_part

_URL = re.compile(r"[a-z][a-z0-9+]*://", re.IGNORECASE)
_ENDINGS = (".narinfo", ".ls")
# Nix's notation for an output of a derivation. The path of the derivation is the part to open.
_OUTPUT = re.compile(r"(\.drv)[!^].*")


def typed_path(text: str, store_dirs: Iterable[str]) -> str:
    """Return the path in ``text``: absolute, or beginning with the hash if the text has no store dir.

    ``store_dirs`` are the store dirs to look for in URLs and command lines. Raises StorePathError, with the text in its message, if
    there is no store path in the text.
    """
    typed = text.strip().strip("\"'`")
    found = _found(typed, tuple(store_dirs))
    if found is None:
        raise StorePathError(f"{typed[:300]!r} does not contain a store path")
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
    paths = (_found(word.strip("\"'`"), store_dirs) for word in reversed(words) if _is_candidate(word, store_dirs))
    return next(filter(None, paths), None)


def _is_candidate(word: str, store_dirs: tuple[str, ...]) -> bool:
    """Return whether a word of a command line can be the store path, rather than a program or the value of an option."""
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
        _, separator, rest = path.partition(f"{store_dir}/")
        if separator and is_hash_part(rest[:HASH_PART_LENGTH]):
            return f"{store_dir}/{rest}"
    label = (parts.hostname or "").partition(".")[0]
    if is_hash_part(label):  # the URL of a server with a host name per store path
        return f"{label}{path}"
    name = _without_ending(path.rpartition("/")[2])
    return name if is_hash_part(name) else None


def _without_ending(name: str) -> str:
    for ending in _ENDINGS:
        if is_hash_part(name.removesuffix(ending)):
            return name.removesuffix(ending)
    return name
