"""A WSGI middleware that takes the client address, the scheme and the host from the X-Forwarded headers of trusted proxies.

Anybody can send these headers, so they are used only if the connection comes from an address in NAR_TRUSTED_PROXIES. Each proxy
appends the address of its client to X-Forwarded-For. The client is the last address in this list that is not a trusted proxy. The
other headers are lists if proxies append to them, or single values if a proxy replaces them. From a list, the middleware takes the
value that was set by the trusted proxy farthest from this server.

Every trusted proxy must therefore set or remove these headers, and must not pass on values that a client made up.
"""

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from narcore.settings import Network

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# A host name, an IPv4 address, or an IPv6 address in brackets; then an optional port.
_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")

# The characters of a path (RFC 3986 3.3).
_PREFIX = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/-]*")

# A decoded prefix must begin with exactly one slash. If it began with two, a redirect to a URL below the prefix would lead to
# another host (RFC 3986 4.2). Backslashes are excluded because browsers treat a backslash as a slash.
_DECODED_PREFIX = re.compile(rb"(?:/[^/\\\x00-\x1f\x7f]+)+")

# Some proxies append the port to the address.
_V4_PORT = re.compile(r"([0-9.]+):[0-9]+")
_V6_PORT = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]+)?")

Address = IPv4Address | IPv6Address


class TrustedProxies:
    """The middleware. Malformed values are ignored."""

    def __init__(self, application: "WSGIApplication", trusted: Sequence[Network]) -> None:
        self._application = application
        self._trusted = tuple(trusted)

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        client = parse_address(environ.get("REMOTE_ADDR", ""))
        if client is not None and self._trusts(client):
            self._apply_headers(environ, client)
        return self._application(environ, start_response)

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)  # an IPv4 address is never in an IPv6 network

    def _apply_headers(self, environ: "WSGIEnvironment", client: Address) -> None:
        hops = 0  # number of trusted proxies that the request came through
        for text in reversed(["", *_values(environ, "FOR")]):
            hops += 1
            previous = parse_address(text)
            if previous is None:
                break
            client = previous
            if not self._trusts(client):
                break
        environ["REMOTE_ADDR"] = str(client)
        scheme = _value(environ, "PROTO", hops).lower()
        if scheme in ("http", "https"):
            environ["wsgi.url_scheme"] = scheme
        host = _value(environ, "HOST", hops)
        if _HOST.fullmatch(host):
            environ["HTTP_HOST"] = host
        prefix = _decoded_prefix(_value(environ, "PREFIX", hops))
        if prefix:
            environ["SCRIPT_NAME"] = prefix


def parse_address(text: str) -> Address | None:
    """Parse an IP address, with or without a port. Returns None for any other text.

    An IPv4-mapped IPv6 address, as an IPv6 socket reports an IPv4 client, becomes an IPv4 address.
    """
    match = _V4_PORT.fullmatch(text) or _V6_PORT.fullmatch(text)
    try:
        address = ip_address(match[1] if match else text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _decoded_prefix(text: str) -> str:
    """Return the prefix as SCRIPT_NAME has it, without a final slash; "" if it is malformed or empty."""
    decoded = unquote_to_bytes(text).removesuffix(b"/")
    return decoded.decode("latin-1") if _PREFIX.fullmatch(text) and _DECODED_PREFIX.fullmatch(decoded) else ""


def _values(environ: "WSGIEnvironment", name: str) -> list[str]:
    text: str = environ.get(f"HTTP_X_FORWARDED_{name}", "")
    return [value.strip() for value in text.split(",")] if text else []


def _value(environ: "WSGIEnvironment", name: str, hops: int) -> str:
    values = _values(environ, name)
    return values[-min(hops, len(values))] if values else ""
