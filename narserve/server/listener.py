"""The listening socket of the servers, and the message to print if it can't be opened."""

import errno
import socket
from collections.abc import Mapping

MAX_PORT = 65535
BACKLOG = 2048  # connections that wait to be accepted; the kernel may lower it


def listen(host: str, port: int) -> socket.socket:
    """Listen on ``host``, or, if it is empty, on all interfaces, with IPv4 and IPv6. Raises OSError."""
    if host:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server((str(address[0]), port), family=family, backlog=BACKLOG)
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG)
        except OSError as error:
            # In many containers, IPv6 is compiled in but disabled, and the first error is that of bind().
            if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                raise
    return socket.create_server(("", port), backlog=BACKLOG)


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
