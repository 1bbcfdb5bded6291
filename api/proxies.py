"""A WSGI middleware that takes client address, scheme and host from the X-Forwarded headers of trusted proxies.

Everybody can send these headers, so they count only when the connection comes from an address of NAR_TRUSTED_PROXIES. Those that
a request came through are told by X-Forwarded-For, to which each proxy adds whom it was connected from: read from its end, the
first address that is not a trusted proxy is the client. The other headers are lists as well where proxies add to them, and
one value where a proxy replaces what came in; their value from the trusted proxy that is the farthest from us is taken.

For all that, each trusted proxy has to set or to remove these headers, and not to pass on what a client has made up.
"""

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from narcore.settings import Network

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# A name or an IPv4 address, or an IPv6 address in brackets; and a port.
_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")

# One slash in front, or a redirect below it would lead to another host (RFC 3986 4.2).
_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)+/?")

# An address as proxies write it: some add the port.
_V4_PORT = re.compile(r"([0-9.]+):[0-9]+")
_V6_PORT = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]+)?")

Address = IPv4Address | IPv6Address


class TrustedProxies:
    """The middleware. What is not well-formed is ignored."""

    def __init__(self, application: "WSGIApplication", trusted: Sequence[Network]) -> None:
        self._application = application
        self._trusted = tuple(trusted)

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        client = parse_address(environ.get("REMOTE_ADDR", ""))
        if client is not None and self._trusts(client):
            self._believe(environ, client)
        return self._application(environ, start_response)

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)  # never, if one is IPv4 and the other IPv6

    def _believe(self, environ: "WSGIEnvironment", client: Address) -> None:
        hops = 0  # trusted proxies that the request came through
        for text in reversed(["", *_values(environ, "FOR")]):
            hops += 1
            before = parse_address(text)
            if before is None:
                break
            client = before
            if not self._trusts(client):
                break
        environ["REMOTE_ADDR"] = str(client)
        scheme = _value(environ, "PROTO", hops).lower()
        if scheme in ("http", "https"):
            environ["wsgi.url_scheme"] = scheme
        host = _value(environ, "HOST", hops)
        if _HOST.fullmatch(host):
            environ["HTTP_HOST"] = host
        prefix = _value(environ, "PREFIX", hops)
        if _PREFIX.fullmatch(prefix):
            environ["SCRIPT_NAME"] = unquote_to_bytes(prefix.rstrip("/")).decode("latin-1")


def parse_address(text: str) -> Address | None:
    """An IP address, with or without a port; an IPv4 one that came over an IPv6 socket is an IPv4 one. None for anything else."""
    match = _V4_PORT.fullmatch(text) or _V6_PORT.fullmatch(text)
    try:
        address = ip_address(match[1] if match else text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _values(environ: "WSGIEnvironment", name: str) -> list[str]:
    text: str = environ.get(f"HTTP_X_FORWARDED_{name}", "")
    return [value.strip() for value in text.split(",")] if text else []


def _value(environ: "WSGIEnvironment", name: str, hops: int) -> str:
    values = _values(environ, name)
    return values[-min(hops, len(values))] if values else ""
