"""Runs a real nginx with a configuration that the test provides."""

import contextlib
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests import needs
from tests.server.serving import eventually

_MAIN = """\
{user}
daemon off;
worker_processes 1;
worker_rlimit_nofile {descriptors};
pid {directory}/pid;
error_log {directory}/error.log;
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    {http}
}}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


@contextlib.contextmanager
def nginx(directory: Path, http: str, port: int, connections: int = 64) -> Iterator[None]:
    """Run nginx with ``http`` as its http block, which listens on ``port``. Skips the test if nginx is not installed.

    ``connections`` limits the connections of nginx, those to clients and to the server together.
    """
    program = needs.program("nginx")
    directory.mkdir()
    config = directory / "nginx.conf"
    user = "" if os.geteuid() else "user root;"  # another user could not access the directories of these tests
    # A file of nginx's cache needs a descriptor besides the connection.
    descriptors = min(64 + 2 * connections, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    config.write_text(
        _MAIN.format(user=user, directory=directory, http=http, connections=connections, descriptors=descriptors)
    )
    process = subprocess.Popen([program, "-e", f"{directory}/error.log", "-c", config, "-p", directory])
    try:
        eventually(lambda: _answers(port))
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _answers(port: int) -> bool:
    with contextlib.suppress(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False
