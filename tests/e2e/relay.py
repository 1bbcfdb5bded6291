"""A TCP relay that counts the requests to an HTTP server, and the bytes that the server sends."""

import contextlib
import re
import select
import socket
import threading
from collections.abc import Iterator

_REQUEST = re.compile(rb"(?:^|\r\n)(?:GET|HEAD|PUT|POST) (\S+) HTTP/1\.1\r\n")


class Relay:
    """``port`` relays to a server on this machine. Requests with bodies are not counted reliably."""

    def __init__(self, target: int) -> None:
        self.paths: list[str] = []
        self.bytes = 0
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def reset(self) -> None:
        self.paths, self.bytes = [], 0

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._relay, args=[client], daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self._target))
        with client, server, contextlib.suppress(OSError):
            while True:
                for source in select.select([client, server], [], [])[0]:
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    if source is client:
                        self.paths += [match.decode() for match in _REQUEST.findall(data)]
                        server.sendall(data)
                    else:
                        self.bytes += len(data)
                        client.sendall(data)


@contextlib.contextmanager
def relay(target: int) -> Iterator[Relay]:
    made = Relay(target)
    try:
        yield made
    finally:
        made.close()
