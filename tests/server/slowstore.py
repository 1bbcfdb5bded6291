"""A binary cache on a real socket that answers late, or never, and can have thousands of open connections."""

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Self

FOREVER = float("inf")

Delays = Callable[[str], tuple[float, float]]


def no_delays(_path: str) -> tuple[float, float]:
    return 0.0, 0.0


class SlowStore:
    """Serves ``files`` by their paths. ``delays`` returns, for a path, the seconds before the head and those before the body.

    With FOREVER nothing more is sent. ``delays`` may be replaced at any time.
    """

    def __init__(self, files: Mapping[str, bytes], delays: Delays = no_delays) -> None:
        self._files = files
        self.delays = delays
        self.requested: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._started: Future[int] = Future()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))

    def __enter__(self) -> Self:
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._started.result(10)}"
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    async def _run(self) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1000)
        self._started.set_result(server.sockets[0].getsockname()[1])
        await self._stop.wait()
        server.close()
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:  # connections may still be accepted meanwhile
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                path = head.split(b" ", 2)[1].decode().removeprefix("/")
                self.requested.append(path)
                await self._answer(path, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client has closed the connection, or the store is being closed
        finally:
            writer.close()

    async def _answer(self, path: str, writer: asyncio.StreamWriter) -> None:
        content = self._files.get(path)
        status, body = ("404 Not Found", b"") if content is None else ("200 OK", content)
        before_head, before_body = self.delays(path)
        await _pause(before_head)
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        await writer.drain()
        await _pause(before_body)
        writer.write(body)
        await writer.drain()


async def _pause(seconds: float) -> None:
    if seconds == FOREVER:
        await asyncio.Event().wait()
    elif seconds:
        await asyncio.sleep(seconds)
