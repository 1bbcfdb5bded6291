"""The socket that a server of ours listens on, and what to say if there is none."""

import errno
import socket

BACKLOG = 2048  # connections that wait to be accepted; the kernel has a limit of its own


def listen(host: str, port: int) -> socket.socket:
    """Listen on ``host``, or on every interface, IPv4 and IPv6, where it is empty."""
    if host:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server((str(address[0]), port), family=family, backlog=BACKLOG)
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG)
        except OSError as error:
            # IPv6 compiled in but switched off, as in many containers: only binding to it tells.
            if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                raise
    return socket.create_server(("", port), backlog=BACKLOG)


def explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is taken; stop what holds it, or choose another: PORT={port + 1}"
    if error.errno == errno.EACCES:
        return f"no permission to listen on port {port}; choose one above 1023: PORT=8383"
    return f"can't listen on {host or 'any address'}, port {port}: {error.strerror or error}"


def url_host(host: str) -> str:
    """What a browser on this machine puts for the address that is listened on."""
    if host.strip("0.:") == "":  # none, 0.0.0.0 or ::
        return "localhost"
    return f"[{host}]" if ":" in host else host
