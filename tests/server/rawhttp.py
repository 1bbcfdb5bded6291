"""A client that sends exact bytes, and reads responses with a Content-Length."""

import socket
from typing import Self


class RawClient:
    """One connection. Reading times out after 10 s."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, data: bytes) -> int:
        """Send a request. Returns the status of the response."""
        self.send(data)
        return self.status()

    def status(self) -> int:
        """Read a response. Returns its status."""
        head = self._until(b"\r\n\r\n").lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
        while len(self._received) < length:
            self._receive()
        self._received = self._received[length:]
        return int(head.split()[1])

    def rest(self) -> bytes:
        """Return everything up to the end of the connection. Raises ConnectionResetError if it was reset."""
        while data := self.socket.recv(1 << 16):
            self._received += data
        return self._received

    def is_open(self) -> bool:
        """Return whether the server answers another request on the connection."""
        try:
            return self.ask(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") == 200
        except ConnectionError:
            return False

    def _until(self, end: bytes) -> bytes:
        while end not in self._received:
            self._receive()
        before, _, self._received = self._received.partition(end)
        return before + end

    def _receive(self) -> None:
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionResetError("the server has closed the connection")
        self._received += data
