"""A worker: gunicorn's thread worker, which takes only what it has threads for, and lets go when it is told to."""

import logging
import os
import signal
from types import FrameType

from gunicorn.workers.gthread import ThreadWorker

log = logging.getLogger("narserve.server")


class GunicornWorker(ThreadWorker):
    """Several of them wait on one socket, and whoever is quicker gets the connection.

    gunicorn's own takes it also when all of its threads are at work, and the client waits while another worker has nothing to
    do. With 40 slow downloads on 2 workers of 32 threads that came about in 2 of 7 runs (tests/bench/slowclients.py): 8 of the
    downloads did not begin, and one /healthz in two was not answered.
    """

    def init_process(self) -> None:
        self.cfg.set(
            "graceful_timeout", max(1, self.cfg.graceful_timeout - 2)
        )  # in this process: the master waits longer
        self._limit_connections()
        super().init_process()

    def init_signals(self) -> None:
        super().init_signals()
        # Ctrl-C at a terminal reaches all processes; what becomes of the workers is for the master to say.
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait_for_and_dispatch_events(self, timeout: float | None) -> None:
        super().wait_for_and_dispatch_events(timeout)
        self._limit_connections()

    def _limit_connections(self) -> None:
        """As many as there are threads, and those that wait for their next request: before the loop compares with it."""
        self.worker_connections = self.cfg.threads + len(self.keepalived_conns) + len(self.pending_conns)

    def set_accept_enabled(self, enabled: bool | None) -> None:
        super().set_accept_enabled(enabled)
        if not enabled and not self.alive:
            for listener in self.sockets:  # or the kernel goes on to queue connections that nobody will take
                listener.close()

    def run(self) -> None:
        super().run()
        if self.nr_conns > 0:
            log.warning("%d connections are cut: NAR_STOP_SECONDS are over", self.nr_conns)
            os._exit(0)  # the threads would be waited for

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        os._exit(0)
