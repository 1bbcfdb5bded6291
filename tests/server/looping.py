"""The event loop of a worker in a thread of the test, with an application and limits of the test."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.workers.base import Worker

from narserve.server.acceptor import Acceptor
from narserve.server.connections import Connections, Limits
from narserve.server.iopool import IoPool
from narserve.server.listener import listen
from narserve.server.loop import Loop
from narserve.server.responder import Responder

App = Callable[..., Any]


class RunningLoop:
    """``call`` calls a function in the thread of the loop, and returns its result."""

    def __init__(self, port: int, loop: Loop, connections: Connections, acceptor: Acceptor) -> None:
        self.port = port
        self.connections = connections
        self.acceptor = acceptor
        self._loop = loop

    def call(self, function: Callable[[], Any]) -> Any:
        done = threading.Event()
        results = []

        def run() -> None:
            results.append(function())
            done.set()

        self._loop.call_soon(run)
        assert done.wait(10)
        return results[0]


@contextlib.contextmanager
def running_loop(app: App, limits: Limits, listener: socket.socket | None = None) -> Iterator[RunningLoop]:
    """Answer requests with ``app``: in the loop if the path is /healthz, otherwise in ``limits.threads`` threads."""
    config = Config()
    listener = listener or listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    worker = Worker(0, 0, [], BaseApplication, 30, config, Logger(config))  # type: ignore[arg-type]  # only for its errors
    loop = Loop()
    pool = IoPool(loop.call_soon)
    responder = Responder(app, config, ("127.0.0.1", port), worker.handle_error, worker.log.exception)
    with ThreadPoolExecutor(limits.threads) as threads:
        connections = Connections(
            loop,
            responder,
            config,
            pool,
            limits,
            threads,
            lambda request: None if request.path == "/healthz" else threads,
        )
        acceptor = Acceptor(loop, listener, connections)
        ended = threading.Event()

        def run() -> None:
            while not ended.is_set():
                loop.turn(1)

        thread = threading.Thread(target=run)
        thread.start()
        running = RunningLoop(port, loop, connections, acceptor)
        try:
            yield running
        finally:
            running.call(connections.close)
            ended.set()
            loop.wake()
            thread.join()
            pool.close()
            listener.close()
            loop.close()
            worker.tmp.close()
