"""Decides which hosts a redirect may lead to.

A cache may redirect to another host; cachix and S3 do. So a hostile or compromised cache could make nar-serve fetch from hosts
that the cache itself can't reach: this machine, its network, a cloud's metadata service. Therefore a redirect to another host
may lead only to a public address, or to an address of the same kind as the store's own. For example, a cache in a private
network may redirect to private addresses.

This module resolves the host name and connects to the address that it has checked. So a name whose address changes after the
check (DNS rebinding) does not bypass it. If there is a proxy, the proxy resolves host names. Then the module checks only hosts
that are given as IP addresses.

Imports urllib3: only ``stores/http/client.py`` imports this module.
"""

import ipaddress
import socket
from collections.abc import Callable
from enum import StrEnum

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
from urllib3.util.connection import create_connection

from narcore.errors import StoreForbidden

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class AddressKind(StrEnum):
    PUBLIC = "public"
    PRIVATE = "private"
    LOOPBACK = "loopback"
    LINK_LOCAL = "link-local"
    RESERVED = "reserved"


def kind_of(address: str) -> AddressKind:
    """Return the kind of an IP address. An IPv6 address that contains an IPv4 address has the kind of that IPv4 address."""
    ip = _unwrapped(ipaddress.ip_address(address))
    if ip.is_loopback:
        return AddressKind.LOOPBACK
    if ip.is_link_local:
        return AddressKind.LINK_LOCAL
    if ip.is_unspecified or ip.is_multicast or ip.is_reserved:  # unspecified: on Linux, 0.0.0.0 means this machine
        return AddressKind.RESERVED
    if isinstance(ip, ipaddress.IPv6Address) and ip.is_site_local:
        return AddressKind.PRIVATE
    return AddressKind.PUBLIC if ip.is_global else AddressKind.PRIVATE


def _unwrapped(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in _NAT64:
        return ipaddress.IPv4Address(ip.packed[-4:])
    return ip.ipv4_mapped or ip.sixtofour or ip


def addresses(host: str, *, numeric: bool = False) -> list[str]:
    """Return the addresses of a host, or an empty list. With ``numeric``, does not resolve names: the list is empty for a name.

    getaddrinfo parses the address, because connecting also uses getaddrinfo, which accepts forms like ``127.1`` and ``0x7f000001``.
    """
    flags = socket.AI_NUMERICHOST if numeric else 0
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM, flags=flags)
    except (OSError, UnicodeError):  # UnicodeError: a label that is too long, or empty
        return []
    return [str(sockaddr[0]) for *_, sockaddr in found]


def check(host: str, found: list[str], allowed: frozenset[AddressKind]) -> None:
    """Raise ``StoreForbidden`` if one of the addresses ``found`` for ``host`` is of a kind that is not allowed."""
    for address in found:
        if (kind := kind_of(address)) not in allowed:
            raise StoreForbidden(f"a redirect to {host}, which is a {kind} address")


def guarded_adapter(allowed: Callable[[], frozenset[AddressKind]], *, pool_maxsize: int) -> HTTPAdapter:
    """Return an adapter whose direct connections only go to addresses of an allowed kind."""

    class Connection(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return _connect(self, allowed())

    class TlsConnection(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return _connect(self, allowed())

    class Pool(HTTPConnectionPool):
        ConnectionCls = Connection

    class TlsPool(HTTPSConnectionPool):
        ConnectionCls = TlsConnection

    adapter = HTTPAdapter(pool_maxsize=pool_maxsize)
    adapter.poolmanager.pool_classes_by_scheme = {"http": Pool, "https": TlsPool}
    return adapter


def _connect(connection: HTTPConnection, allowed: frozenset[AddressKind]) -> socket.socket:
    """Connect as ``HTTPConnection._new_conn`` does, but only to addresses that were checked."""
    found = addresses(connection.host)
    check(connection.host, found, allowed)
    error: ConnectTimeoutError | NewConnectionError = NewConnectionError(connection, "the host name is unknown")
    for address in found:
        try:
            return create_connection(
                (address, connection.port or connection.default_port),
                connection.timeout,
                connection.source_address,
                connection.socket_options,
            )
        except TimeoutError:
            error = ConnectTimeoutError(connection, "connecting timed out")
        except OSError:
            error = NewConnectionError(connection, "connecting failed")
    raise error
