"""The host name of a single store path, ``<hash>.DOMAIN``: how it is parsed and made.

Each host is an origin of its own in a browser, so what comes out of one needs no sandbox to be kept from the others.
"""

import re
from dataclasses import dataclass
from typing import Self

from flask import Request
from werkzeug.exceptions import NotFound

from narcore.formats.storepath import is_hash_part

# A name and the port that the client named. What is not like this (an IPv6 address, a port that is none) is no host of a store
# path; nothing else reads the header, so it does no harm.
_HOST = re.compile(r"([a-z0-9.-]+)(?::([0-9]*))?")


@dataclass(frozen=True, slots=True)
class OwnHost:
    """The host name that a request came to: ``<hash_part>.<site>``, where ``site`` is the domain, with a port if one was named."""

    hash_part: str
    site: str

    @classmethod
    def of(cls, request: Request, domain: str) -> Self | None:
        """None for a host that is not below ``domain``. Raises NotFound for one that is, but is no store path's."""
        match = _HOST.fullmatch(request.environ.get("HTTP_HOST", "").strip().lower())
        name = match[1].rstrip(".") if match else ""
        if match is None or not domain or not name.endswith(f".{domain}"):
            return None
        label = name.removesuffix(f".{domain}")
        if not is_hash_part(label):
            raise NotFound(
                f"A store path's host name is its hash of 32 characters in front of {domain}, and nothing more."
            )
        return cls(label, f"{domain}:{match[2]}" if match[2] else domain)

    # URLs without a scheme (RFC 3986 4.2): it stays the one that the client uses, whatever a proxy before us has made of it.

    def origin_of(self, hash_part: str) -> str:
        """Where another store path is served."""
        return f"//{hash_part}.{self.site}"

    @property
    def main_origin(self) -> str:
        """Where all store paths are served."""
        return f"//{self.site}"
