"""The listening socket of the servers, and the message to print if it can't be opened."""

import ctypes
import errno
import socket
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress

MAX_PORT = 65535
BACKLOG = 2048  # the maximum number of connections that wait to be accepted; the kernel may use a lower limit

# A classic BPF program for a TCP socket, whose packets begin with the TCP header: drops a packet whose flags are SYN without ACK.
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h of Linux
_DROP_SYN = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load the byte with the flags
        (0x54, 0, 0, 0x12),  # and (SYN | ACK)
        (0x15, 0, 1, 0x02),  # if it is SYN:
        (0x06, 0, 0, 0),  # drop the packet
        (0x06, 0, 0, 0xFFFFFFFF),  # otherwise take all of it
    )
)


def listen(host: str, port: int) -> socket.socket:
    """Listen on ``host``, or, if it is empty, on all interfaces, with IPv4 and IPv6. Raises OSError."""
    if host:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server((str(address[0]), port), family=family, backlog=BACKLOG)
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG)
        except OSError as error:
            # In many containers, IPv6 is compiled in but disabled, so socket() succeeds and bind() fails.
            if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                raise
    return socket.create_server(("", port), backlog=BACKLOG)


def refuse_new_connections(listener: socket.socket) -> None:
    """Ignore new connections in all processes that share the listener. Connections that have already begun can still be accepted.

    The kernel resets a connection that it accepts between the last ``accept`` of the processes and their ``close``. A client whose
    first packet is ignored sends it again after a second, and then finds the port closed. This function has no effect on systems
    other than Linux.
    """
    program = ctypes.create_string_buffer(_DROP_SYN, len(_DROP_SYN))
    pointer = struct.pack("HP", len(_DROP_SYN) // 8, ctypes.addressof(program))
    if sys.platform == "linux":
        with suppress(OSError):  # a sandbox that does not allow filters
            listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)


def address_setting(environ: Mapping[str, str]) -> str:
    """Return the name of the environment variable that determines the address: HTTP_ADDR takes precedence over PORT."""
    return "HTTP_ADDR" if environ.get("HTTP_ADDR", "").strip() else "PORT"


def explain(error: OSError, host: str, port: int, setting: str) -> str:
    """Return a message for an error of ``listen``, with advice that uses ``setting``: "PORT", "HTTP_ADDR" or "--listen"."""
    if error.errno == errno.EADDRINUSE:
        advice = _assignment(setting, host, port + 1 if port < MAX_PORT else port - 1)
        return f"port {port} is already in use; stop the program that uses it, or choose another port: {advice}"
    if error.errno == errno.EACCES:
        return f"no permission to listen on port {port}; choose a port above 1023: {_assignment(setting, host, 8383)}"
    return f"can't listen on {host or 'any address'}, port {port}: {error.strerror or error}"


def _assignment(setting: str, host: str, port: int) -> str:
    """Return the text that sets the port, such as ``PORT=8384`` or ``--listen 127.0.0.1:8384``."""
    if setting == "PORT":
        return f"PORT={port}"
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"{setting}{' ' if setting.startswith('-') else '='}{address}"


def url_host(host: str) -> str:
    """Return the host that a browser on this machine uses in the URL of a server that listens on ``host``."""
    if host.strip("0.:") == "":  # empty, 0.0.0.0 or ::
        return "localhost"
    return f"[{host}]" if ":" in host else host
