"""A worker: a gunicorn worker with an event loop that owns all connections, and threads that answer requests."""

import logging
import os
import signal
import socket
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from types import FrameType
from typing import Any, Protocol, cast

from gunicorn.http.message import Request
from gunicorn.workers.base import Worker

from narcore.settings import Settings
from narserve.server.acceptor import Acceptor
from narserve.server.connections import Connections, Limits
from narserve.server.iopool import IoPool
from narserve.server.loop import Loop
from narserve.server.responder import Responder

log = logging.getLogger("narserve.server")

HEARTBEAT_SECONDS = 1.0  # the master kills a worker that is silent for 30 s

# The signals that a worker handles itself. The master blocks them while it starts a worker, because a worker that has not set its
# handlers yet would handle them like the master.
WORKER_SIGNALS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT)


class GunicornWorker(Worker):
    """A worker whose connections occupy a thread only while the application works for them.

    The event loop reads the heads of requests, sends files of the disk cache, and closes connections. It also answers /healthz,
    which therefore works when all threads are busy. /readyz and /metrics each have their own thread.
    """

    def init_process(self) -> None:
        # This changes the configuration of this process only: the master waits 2 s longer.
        self.cfg.set("graceful_timeout", max(1, self.cfg.graceful_timeout - 2))
        super().init_process()

    def init_signals(self) -> None:
        super().init_signals()
        # A terminal sends SIGINT (Ctrl-C) to all processes. Workers ignore it; the master handles it and stops the workers.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WORKER_SIGNALS)

    def run(self) -> None:
        loop = Loop()
        signal.set_wakeup_fd(loop.wakeup_descriptor, warn_on_full_buffer=False)
        listener: socket.socket = cast("Any", self.sockets[0]).sock  # gunicorn wraps the one listener
        responder = Responder(
            self.wsgi, self.cfg, listener.getsockname()[:2], cast("Any", self.handle_error), self.log.exception
        )
        threads = ThreadPoolExecutor(self.cfg.threads, thread_name_prefix="request")
        where = Placement(cast("_Application", self.app).settings, threads)
        limits = Limits(connections=self.cfg.worker_connections, threads=self.cfg.threads)
        connections = Connections(loop, responder, self.cfg, IoPool(loop.call_soon), limits, threads, where)
        acceptor = Acceptor(loop, listener, connections)
        while self.alive and self.ppid == os.getppid():
            self.notify()
            loop.turn(HEARTBEAT_SECONDS)
        self._stop(loop, acceptor, connections)

    def _stop(self, loop: Loop, acceptor: Acceptor, connections: Connections) -> None:
        """Let the responses in progress end, then exit the process."""
        connections.stop()
        acceptor.stop()
        deadline = time.monotonic() + self.cfg.graceful_timeout
        while (connections or not acceptor.is_closed) and (left := deadline - time.monotonic()) > 0:
            self.notify()
            loop.turn(min(left, HEARTBEAT_SECONDS))
        if connections:
            log.warning("cutting %d connections, since NAR_STOP_SECONDS have passed", len(connections))
            connections.close()
            os._exit(0)  # a normal exit would wait for the threads

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        os._exit(0)


class _Application(Protocol):
    settings: Settings


class Placement:
    """Decides where a request is answered: by ``threads``, by a thread of its own, or, with the result None, in the loop.

    /healthz, /readyz and /metrics are not answered by ``threads``. The exception is a host name below the setting DOMAIN. Such a
    host name belongs to one store path, so a URL such as /healthz is the URL of a file in this store path.
    """

    def __init__(self, settings: Settings, threads: Executor) -> None:
        self._threads = threads
        self._domain = settings.domain
        self._exceptions: dict[str, Executor | None] = {"/healthz": None, "/readyz": ThreadPoolExecutor(1, "readyz")}
        if settings.metrics:
            self._exceptions["/metrics"] = ThreadPoolExecutor(1, "metrics")

    def __call__(self, request: Request) -> Executor | None:
        if request.path not in self._exceptions or (self._domain and self._names_store_path(request)):
            return self._threads
        return self._exceptions[request.path]

    def _names_store_path(self, request: Request) -> bool:
        hosts = (value.lower() for name, value in request.headers if name in ("HOST", "X-FORWARDED-HOST"))
        return any(f".{self._domain}" in host for host in hosts)
