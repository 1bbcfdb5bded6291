"""The host name of a single store path, ``<hash>.DOMAIN``: parsing and building it.

In a browser each host name is a separate origin, so the files of a store path need no sandbox to be isolated from other store
paths.
"""

import re
from dataclasses import dataclass
from typing import Self

from flask import Request
from werkzeug.exceptions import NotFound

from api.responses.templates import SITE
from narcore.formats.storepath import is_hash_part

# Two groups: a name of any characters, and the port if the client sent one. If the port is invalid, it becomes part of the name,
# and such a name is not below the domain.
_HOST = re.compile(r"(.*?)(?::([0-9]*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class OwnHost:
    """The host name in a request: ``<hash_part>.<site>``, where ``site`` is the domain with the port, if the request has one."""

    hash_part: str
    site: str

    @classmethod
    def of(cls, request: Request, domain: str) -> Self | None:
        """Parse the Host header. Returns None if the host is not below ``domain``; otherwise sets SITE in the request's environ.

        Raises NotFound if the host is below ``domain`` but not the host of a store path.
        """
        match = _HOST.fullmatch(request.environ.get("HTTP_HOST", "").strip().lower())
        name = match[1].removesuffix(".") if match else ""
        if match is None or not domain or not name.endswith(f".{domain}"):
            return None
        site = f"{domain}:{match[2]}" if match[2] else domain
        request.environ[SITE] = site
        label = name.removesuffix(f".{domain}")
        if not is_hash_part(label):
            raise NotFound(f"The host name of a store path is <hash>.{domain}, where <hash> is its 32-character hash.")
        return cls(label, site)

    # The URLs below have no scheme (RFC 3986 4.2), so the client uses the scheme of its own request. A proxy may have sent the
    # request to this server with another scheme.

    def origin_of(self, hash_part: str) -> str:
        """Return the origin that serves another store path."""
        return f"//{hash_part}.{self.site}"

    @property
    def main_origin(self) -> str:
        """The origin that serves all store paths."""
        return f"//{self.site}"
