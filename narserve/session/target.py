"""What an argument names: a path in a store path, in the caches or on a running instance."""

import os
import re
from dataclasses import dataclass, replace
from typing import Self
from urllib.parse import unquote_to_bytes, urlsplit

import click

from narcore.errors import StorePathError
from narcore.formats.names import to_text
from narcore.formats.storepath import DEFAULT_STORE_DIR, is_hash_part

EXAMPLE = "/nix/store/<hash>-<name>[/path], <hash>[/path], or the URL of one on a running nar-serve"

# What stands before a store path, the store path or its hash part, and what is inside.
_PARTS = re.compile(r"(?s)(.*?)(?:^|/)([0-9a-z]{32})(?:-([^/]*))?(/.*)?")
_SLASHES = re.compile("/{2,}")


@dataclass(frozen=True, slots=True)
class Target:
    """``store_dir`` is None where only the hash was given; ``name`` is what was given for it, "" for nothing.

    ``path`` is as it was given, with the slashes. ``home`` is the URL of the instance up to its store dir (and that
    included), or "" for the caches.
    """

    store_dir: str | None
    hash_part: str
    name: str
    path: str
    home: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises StorePathError."""
        if re.match(r"(?i)https?://", text):
            return cls._parse_url(text)
        match = _PARTS.fullmatch(_SLASHES.sub("/", text))
        if match is None or not is_hash_part(match[2]) or (match[1] and not match[1].startswith("/")):
            raise StorePathError(f"{text[:300]!r} is not a store path; what can be given is {EXAMPLE}")
        return cls(match[1] or None, match[2], match[3] or "", match[4] or "")

    @classmethod
    def _parse_url(cls, url: str) -> Self:
        try:
            parts = urlsplit(url)
            path = to_text(unquote_to_bytes(parts.path))
        except ValueError:
            raise StorePathError(f"{url[:300]!r} can't be read as a URL") from None
        user, at, host = parts.netloc.rpartition("@")
        label, _, site = host.partition(".")
        if is_hash_part(label) and site:  # <hash>.DOMAIN: where all store paths are served is DOMAIN
            home = f"{parts.scheme.lower()}://{user}{at}{site}{DEFAULT_STORE_DIR}"
            return cls(DEFAULT_STORE_DIR, label, "", _SLASHES.sub("/", path), home)
        match = _PARTS.fullmatch(_SLASHES.sub("/", path))
        if match is None or not is_hash_part(match[2]) or not match[1]:
            raise StorePathError(
                f"there is no store path in that URL: on a nar-serve it is like {parts.scheme}://"
                f"{parts.netloc.rpartition('@')[2]}{DEFAULT_STORE_DIR}/<hash>-<name>"
            )
        home = f"{parts.scheme.lower()}://{parts.netloc}{match[1]}"
        return cls(_store_dir(match[1]), match[2], match[3] or "", match[4] or "", home)

    @property
    def follows(self) -> bool:
        """Whether a link that is named is to be followed: a slash at the end says so, as it does to ls and cp."""
        return self.path.endswith("/")

    def elsewhere(self, path: str) -> "Target":
        """What an absolute path names, in the same place: in the stores, or on an instance (there, in the same store dir)."""
        found = Target.parse(path)
        return replace(found, store_dir=self.store_dir, home=self.home) if self.home else found


def _store_dir(path: str) -> str:
    """The store dir at the end of a URL's path: it may have a prefix, which may be /unpack."""
    if path.endswith(DEFAULT_STORE_DIR):
        return DEFAULT_STORE_DIR
    return "/" + path.rpartition("/unpack/")[2].lstrip("/")


def target_argument(value: object) -> Target:
    """The type of a command line argument: its bytes, whatever the locale makes of them."""
    try:
        return Target.parse(to_text(os.fsencode(str(value))))
    except StorePathError as error:
        raise click.UsageError(str(error)) from error
