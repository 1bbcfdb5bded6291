"""The PATH argument of the commands: a path in a store path, in the binary caches or on a running instance."""

import os
import re
from dataclasses import dataclass, replace
from typing import Self
from urllib.parse import unquote_to_bytes, urlsplit

import click

from narcore.errors import StorePathError
from narcore.formats.names import to_text
from narcore.formats.storepath import DEFAULT_STORE_DIR, is_hash_part

EXAMPLE = "/nix/store/<hash>-<name>[/path], <hash>[/path], or a URL on a running nar-serve"

# Groups: everything before the hash part, the hash part, the name, and the path inside the store path.
_PARTS = re.compile(r"(?s)(.*?)(?:^|/)([0-9a-z]{32})(?:-([^/]*))?(/.*)?")
_SLASHES = re.compile("/{2,}")


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed PATH argument.

    ``store_dir`` is None if only the hash was given. ``name`` is the name as given, or "" if it was omitted. ``path`` is the path
    inside the store path as given, including its slashes. ``home`` is the URL of the instance, up to and including its store dir,
    or "" for the binary caches.
    """

    store_dir: str | None
    hash_part: str
    name: str
    path: str
    home: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse an argument. Raises StorePathError."""
        if re.match(r"(?i)https?://", text):
            return cls._parse_url(text)
        match = _PARTS.fullmatch(_SLASHES.sub("/", text))
        if match is None or not is_hash_part(match[2]) or (match[1] and not match[1].startswith("/")):
            raise StorePathError(f"{text[:300]!r} is not a store path; use {EXAMPLE}")
        return cls(match[1] or None, match[2], match[3] or "", match[4] or "")

    @classmethod
    def _parse_url(cls, url: str) -> Self:
        try:
            parts = urlsplit(url)
            path = to_text(unquote_to_bytes(parts.path))
        except ValueError:
            raise StorePathError(f"{url[:300]!r} is not a valid URL") from None
        user, at, host = parts.netloc.rpartition("@")
        label, _, site = host.partition(".")
        if is_hash_part(label) and site:  # <hash>.DOMAIN; DOMAIN itself serves all store paths
            home = f"{parts.scheme.lower()}://{user}{at}{site}{DEFAULT_STORE_DIR}"
            return cls(DEFAULT_STORE_DIR, label, "", _SLASHES.sub("/", path), home)
        match = _PARTS.fullmatch(_SLASHES.sub("/", path))
        if match is None or not is_hash_part(match[2]) or not match[1]:
            raise StorePathError(
                f"the URL contains no store path; a URL on a nar-serve has the form {parts.scheme}://"
                f"{parts.netloc.rpartition('@')[2]}{DEFAULT_STORE_DIR}/<hash>-<name>"
            )
        home = f"{parts.scheme.lower()}://{parts.netloc}{match[1]}"
        return cls(_store_dir(match[1]), match[2], match[3] or "", match[4] or "", home)

    @property
    def follows(self) -> bool:
        """Whether to follow the link that the target names. True if the path ends with a slash, as with ls and cp."""
        return self.path.endswith("/")

    def elsewhere(self, path: str) -> "Target":
        """Return the target of an absolute path in the same source: in the stores, or in the store dir of the same instance."""
        target = Target.parse(path)
        return replace(target, store_dir=self.store_dir, home=self.home) if self.home else target


def _store_dir(path: str) -> str:
    """Return the store dir at the end of a URL's path. A prefix may precede it, such as /unpack."""
    if path.endswith(DEFAULT_STORE_DIR):
        return DEFAULT_STORE_DIR
    return "/" + path.rpartition("/unpack/")[2].lstrip("/")


def target_argument(value: object) -> Target:
    """Parse a command line argument from its raw bytes, independent of the locale. This is its click type."""
    try:
        return Target.parse(to_text(os.fsencode(str(value))))
    except StorePathError as error:
        raise click.UsageError(str(error)) from error
