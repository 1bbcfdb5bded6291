"""Store paths with a host name of their own: ``<hash>.DOMAIN``.

Each is an origin of its own in a browser, so what comes out of one needs no sandbox to be kept from the others.
"""

from dataclasses import dataclass
from typing import Self

from flask import Request
from werkzeug.exceptions import NotFound

from narcore.formats.storepath import is_hash_part


@dataclass(frozen=True, slots=True)
class OwnHost:
    """The host name that a request came to: ``<hash_part>.<domain>``, with the port that the client named."""

    hash_part: str
    domain: str
    scheme: str
    port: str  # ":8383", or nothing

    @classmethod
    def of(cls, request: Request, domain: str) -> Self | None:
        """None for a host that is not below ``domain``. Raises NotFound for one that is, but is no store path's."""
        host, colon, port = request.environ.get("HTTP_HOST", "").lower().partition(":")
        label, dot, rest = host.rstrip(".").partition(".")
        if not domain or not dot or rest != domain:
            if domain and host.rstrip(".").endswith(f".{domain}"):
                raise NotFound("A store path's host name is one label, its hash.")
            return None
        if not is_hash_part(label):
            raise NotFound("A store path's host name begins with its hash of 32 characters.")
        return cls(label, domain, request.scheme, colon + port)

    def origin_of(self, hash_part: str) -> str:
        """Where another store path is served."""
        return f"{self.scheme}://{hash_part}.{self.domain}{self.port}"

    @property
    def main_origin(self) -> str:
        """Where all store paths are served."""
        return f"{self.scheme}://{self.domain}{self.port}"
