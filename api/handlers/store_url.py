"""The URL of a node in a store path: its parts and its parser.

The path is parsed from the raw bytes of the URL. They are decoded like the names in a listing (UTF-8, surrogateescape), so
that a URL can name a file whose name has arbitrary bytes.
"""

import re
from dataclasses import dataclass

from flask import Request

from api.hosts import OwnHost
from api.responses.templates import STATIC_PREFIX
from narcore.binarycache import BinaryCache
from narcore.errors import StorePathError
from narcore.formats.storepath import DEFAULT_STORE_DIR, HASH_PART_LENGTH, is_hash_part

UNPACK = "/unpack"

# A store dir, then a name in it that begins with a hash part, then the rest.
_STORE_PATH = re.compile(r"(?s)(/.+?)/([0-9a-z]{32}(?:-[^/]*)?)(/.*)?")
_SLASHES = re.compile("/{2,}")


@dataclass(frozen=True, slots=True)
class StorePathUrl:
    """The parts of a URL. The path is ``prefix`` + ``store_dir`` + / + ``base`` + ``rest``, or just ``rest`` if ``host`` is set."""

    prefix: str  # UNPACK or ""
    store_dir: str | None  # None: any store dir
    base: str  # <hash>, or <hash>-<name>
    rest: str  # the slash after the base and everything that follows, or ""
    host: OwnHost | None = None

    @property
    def hash_part(self) -> str:
        return self.base[:HASH_PART_LENGTH]

    def at(self, rest: str, *, base: str | None = None) -> str:
        """Return the URL path of another node of the same store path."""
        if self.host is not None:
            return rest or "/"
        return f"{self.prefix}{self.store_dir}/{base or self.base}{rest}"


def parse_store_url(request: Request, cache: BinaryCache, domain: str) -> StorePathUrl | None:
    """Parse the URL of a request. Returns None if the URL is neither below a store dir nor on a host below ``domain``.

    Raises StorePathError if the URL is below a store dir but not in a store path. Raises NotFound if the host is below ``domain``
    but is not the host of a store path.
    """
    path = _decoded_path(request)
    host = OwnHost.of(request, domain)
    if host is not None:
        return StorePathUrl("", None, host.hash_part, path, host)
    if path.startswith(STATIC_PREFIX):
        return None
    return None if request.url_rule is not None else _parse_path(path, cache)


def _parse_path(path: str, cache: BinaryCache) -> StorePathUrl | None:
    prefix = UNPACK if path.startswith(f"{UNPACK}/") else ""
    path = path.removeprefix(prefix)
    match = _STORE_PATH.fullmatch(path)
    if match is None or not is_hash_part(match[2][:HASH_PART_LENGTH]):
        dirs = {DEFAULT_STORE_DIR, *cache.store_dirs(ask=False)}
        if any(path.startswith(f"{each}/") and path != f"{each}/" for each in dirs):
            raise StorePathError(f"{path[:300]!r} is not a store path or a file in a store path")
        return None
    store_dir, base, rest = match[1], match[2], match[3] or ""
    # A URL below the default store dir is accepted without asking the stores for their store dirs. If a store has another store
    # dir, it answers later that it does not have the path.
    if store_dir != DEFAULT_STORE_DIR and not cache.may_have(store_dir):
        return None
    return StorePathUrl(prefix, store_dir, base, rest)


def _decoded_path(request: Request) -> str:
    raw = request.environ.get("PATH_INFO", "").encode("latin-1")
    return _SLASHES.sub("/", raw.decode("utf-8", "surrogateescape"))
