"""The process that the workers are children of: gunicorn's arbiter, with our configuration, signals and log."""

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
from narserve.server.worker import GunicornWorker

log = logging.getLogger("narserve.server")

# An idle connection takes no thread. Longer than the 60 seconds for which nginx and the load balancers of AWS keep one: whoever
# closes first must not be us, while a request is on its way.
KEEPALIVE_SECONDS = 75
IDLE_CONNECTIONS = 500  # with the threads and the files that they read, below the usual limit of 1024 open files

M_ARENA_MAX = -8  # malloc.h of glibc
ARENAS = 2

# Signals of one cause, as ``timeout`` sends them to a process and then to its group, come within this time.
SAME_SIGNAL_SECONDS = 0.3


def run(settings: Settings, listener: socket.socket) -> NoReturn:
    """Serve until a signal ends it, and the process with it. Takes over the listener."""
    _share_arenas()
    master = Master(_Application(settings, listener))
    gc.freeze()  # what there is by now is shared with the workers, as long as nobody writes to it: the collector would
    master.run()
    sys.exit(0)


def _share_arenas() -> None:
    """Have all threads allocate in two arenas, and not in eight a core: some 10 MB less for two workers with 32 threads.

    The chunks of NARs pass through every thread, and each arena keeps some. A C library without ``mallopt`` has no arenas.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, ARENAS)


class _Application(BaseApplication):
    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self._settings = settings
        self._descriptor = listener.detach()
        super().__init__()

    def load_config(self) -> None:
        settings = self._settings
        options: dict[str, object] = {
            "bind": f"fd://{self._descriptor}",
            "workers": settings.workers,
            "threads": settings.threads,
            "worker_class": GunicornWorker,
            "worker_connections": settings.threads + IDLE_CONNECTIONS,
            "keepalive": KEEPALIVE_SECONDS,
            # The workers stop a little earlier, and say what they had to cut: see GunicornWorker.
            "graceful_timeout": settings.stop_seconds + 2,
            "limit_request_line": 8190,  # the most it can be; a path in a NAR may be long, and three times as long encoded
            "logger_class": _Log,
            "loglevel": "warning",
            "control_socket_disable": True,
            "child_exit": _forget_worker,
            # Whom to believe about the client is for NAR_TRUSTED_PROXIES to say: gunicorn would believe every local process.
            "forwarded_allow_ips": "",
            "secure_scheme_headers": {},
            "forwarder_headers": "",
        }
        if os.access("/dev/shm", os.W_OK):  # noqa: S108  the heartbeats are no names that could be guessed, and never wait for a disk
            options["worker_tmp_dir"] = "/dev/shm"  # noqa: S108
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        logging.disable(logging.WARNING)  # it has been said: see narserve.commands.serve
        try:
            return create_app(self._settings, access_log=True)
        finally:
            logging.disable(logging.NOTSET)


class Master(Arbiter):
    """Stops when the work is done: on SIGTERM, and on SIGINT, at which gunicorn cuts it off. At once on the second of these."""

    def __init__(self, app: BaseApplication) -> None:
        self._stopping_since: float | None = None
        self._hurry = False
        super().__init__(app)

    def signal(self, sig: int, frame: FrameType | None) -> None:
        """Runs between any two steps of the main loop, so it does no more than what follows from the signal."""
        if sig in (signal.SIGTERM, signal.SIGINT):
            now = time.monotonic()
            if self._stopping_since is None:
                self._stopping_since, sig = now, signal.SIGTERM
            elif now - self._stopping_since > SAME_SIGNAL_SECONDS:
                self._hurry, sig = True, signal.SIGQUIT
            else:
                return
        super().signal(sig, frame)

    def stop(self, graceful: bool = True) -> None:
        if self._stopping_since is not None and not self._hurry:
            log.info("stopping when all answers under way have been sent; a second signal stops at once")
        super().stop(graceful and not self._hurry)


class _Log(Logger):
    """What gunicorn has to say, where and how we say it."""

    def setup(self, cfg: Config) -> None:
        super().setup(cfg)
        self.error_log.handlers = list(logging.getLogger("api").handlers)

    def exception(self, msg: object, *args: object, **kwargs: object) -> None:
        """No traceback for what is no mistake of ours; of what a body raised, ``api.telemetry.exchange`` has told already."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self.error_log.warning("%s: %s", (str(msg) % args).rstrip("."), error)
        elif not isinstance(error, NarcoreError):
            self.error_log.exception(msg, *args)


def _forget_worker(master: Arbiter, worker: Worker) -> None:
    """What a worker that has ended was in the middle of is no longer in progress."""
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if directory is not None:
        for path in Path(directory).glob(f"gauge_live*_{worker.pid}.db"):
            path.unlink(missing_ok=True)
