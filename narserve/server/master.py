"""The parent process of the workers: gunicorn's arbiter, with nar-serve's configuration, signal handling and log."""

import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.workers.base import Worker

from api.factory import create_app
from narcore.errors import NarcoreError
from narcore.settings import Settings
from narserve.server.listener import refuse_new_connections
from narserve.server.openfiles import max_connections, raise_limit
from narserve.server.preload import preload
from narserve.server.requesthead import MAX_REQUEST_LINE
from narserve.server.worker import WORKER_SIGNALS, GunicornWorker

log = logging.getLogger("narserve.server")

M_ARENA_MAX = -8  # malloc.h of glibc
ARENAS = 2

# Two signals within this time, in seconds, count as one: the program ``timeout`` signals the process, and then its process group.
SAME_SIGNAL_SECONDS = 0.3


def run(settings: Settings, listener: socket.socket) -> NoReturn:
    """Serve until a signal stops the server, then exit the process. Takes over the listener."""
    _share_arenas()
    preload(settings)
    master = Master(_Application(settings, listener))
    gc.freeze()  # otherwise the garbage collector would write to existing objects, and each worker would get its own copy of them
    master.run()
    sys.exit(0)


def _share_arenas() -> None:
    """Limit malloc to two arenas instead of eight per core. This saves about 10 MB for two workers with 32 threads.

    Chunks of NARs pass through every thread, and each arena retains some of them. A C library without ``mallopt`` has no arenas.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, ARENAS)


class _Application(BaseApplication):
    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self.settings = settings
        self._open_files = raise_limit()
        self._descriptor = listener.detach()
        super().__init__()

    def load_config(self) -> None:
        settings = self.settings
        options: dict[str, object] = {
            "bind": f"fd://{self._descriptor}",
            "workers": settings.workers,
            "threads": settings.threads,
            "worker_class": GunicornWorker,
            "worker_connections": settings.max_connections or max_connections(self._open_files, settings.threads),
            # The workers stop 2 s earlier, and log how many connections they cut: see GunicornWorker.
            "graceful_timeout": settings.stop_seconds + 2,
            "limit_request_line": MAX_REQUEST_LINE,
            "logger_class": _Log,
            "loglevel": "warning",
            "control_socket_disable": True,
            "child_exit": _forget_worker,
            # NAR_TRUSTED_PROXIES decides which proxies are trusted; gunicorn would trust every local process.
            "forwarded_allow_ips": "",
            "secure_scheme_headers": {},
            "forwarder_headers": "",
        }
        if os.access("/dev/shm", os.W_OK):  # noqa: S108  heartbeat files have unguessable names; in memory, they never wait for a disk
            options["worker_tmp_dir"] = "/dev/shm"  # noqa: S108
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        logging.disable(logging.WARNING)  # narserve.commands.serve has logged the warnings already
        try:
            return create_app(self.settings, access_log=True)
        finally:
            logging.disable(logging.NOTSET)


class Master(Arbiter):
    """An arbiter that stops gracefully on SIGTERM and on SIGINT, and immediately on the second of these signals.

    gunicorn's own arbiter cuts connections on SIGINT.
    """

    def __init__(self, app: BaseApplication) -> None:
        self._stopping_since: float | None = None
        self._hurry = False
        super().__init__(app)

    def signal(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal. Can run between any two steps of the main loop, so it does only what the signal requires."""
        if sig in (signal.SIGTERM, signal.SIGINT):
            now = time.monotonic()
            if self._stopping_since is None:
                self._stopping_since, sig = now, signal.SIGTERM
            elif now - self._stopping_since > SAME_SIGNAL_SECONDS:
                self._hurry, sig = True, signal.SIGQUIT
            else:
                return
        super().signal(sig, frame)

    def spawn_worker(self) -> Any:
        """Start a worker, with signals blocked until it has set its own handlers: see GunicornWorker.init_signals."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, WORKER_SIGNALS)
        try:
            return super().spawn_worker()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def stop(self, graceful: bool = True) -> None:
        if self._stopping_since is not None and not self._hurry:
            log.info("stopping after the responses in progress; a second signal stops immediately")
        for listener in self.LISTENERS:
            refuse_new_connections(listener.sock)
        super().stop(graceful and not self._hurry)


class _Log(Logger):
    """gunicorn's error log, with the handlers and the format of nar-serve's log."""

    def setup(self, cfg: Config) -> None:
        super().setup(cfg)
        self.error_log.handlers = list(logging.getLogger("api").handlers)

    def exception(self, msg: object, *args: object, **kwargs: object) -> None:
        """Log an exception, with a traceback only if it is a bug. ``api.telemetry.exchange`` logs the errors of bodies."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self.error_log.warning("%s: %s", (str(msg) % args).rstrip("."), error)
        elif not isinstance(error, NarcoreError):
            self.error_log.exception(msg, *args)


def _forget_worker(master: Arbiter, worker: Worker) -> None:
    """Remove the live gauges of a worker that has ended: its requests are no longer in progress."""
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if directory is not None:
        for path in Path(directory).glob(f"gauge_live*_{worker.pid}.db"):
            path.unlink(missing_ok=True)
