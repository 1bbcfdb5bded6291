"""A worker: gunicorn's thread worker, which accepts only as many connections as it has threads, and stops on time."""

import logging
import os
import signal
from types import FrameType

from gunicorn.workers.gthread import ThreadWorker

log = logging.getLogger("narserve.server")


class GunicornWorker(ThreadWorker):
    """A thread worker that accepts a connection only if it has a free thread.

    All workers wait on one socket, and the first worker to accept gets the connection. gunicorn's own worker also accepts when all
    of its threads are busy; the client then waits even if another worker is idle. With 40 slow downloads on 2 workers of 32
    threads, this happened in 2 of 7 runs (tests/bench/slowclients.py): 8 downloads did not begin, and every second /healthz was not
    answered.
    """

    def init_process(self) -> None:
        # Only changes the configuration of this process: the master waits 2 s longer.
        self.cfg.set("graceful_timeout", max(1, self.cfg.graceful_timeout - 2))
        self._limit_connections()
        super().init_process()

    def init_signals(self) -> None:
        super().init_signals()
        # Ctrl-C in a terminal is sent to all processes; only the master acts on it, and stops the workers.
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait_for_and_dispatch_events(self, timeout: float | None) -> None:
        super().wait_for_and_dispatch_events(timeout)
        self._limit_connections()

    def _limit_connections(self) -> None:
        """Set the limit to the number of threads plus idle connections, before gunicorn's loop compares with it."""
        self.worker_connections = self.cfg.threads + len(self.keepalived_conns) + len(self.pending_conns)

    def set_accept_enabled(self, enabled: bool | None) -> None:
        super().set_accept_enabled(enabled)
        if not enabled and not self.alive:
            for listener in self.sockets:  # otherwise the kernel queues connections that nobody will accept
                listener.close()

    def run(self) -> None:
        super().run()
        if self.nr_conns > 0:
            log.warning("cutting %d connections, since NAR_STOP_SECONDS have passed", self.nr_conns)
            os._exit(0)  # a normal exit would wait for the threads

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        os._exit(0)
