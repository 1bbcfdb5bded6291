"""The process that answers the requests of one mount. The holder starts it. When it ends, the holder starts another worker."""

import logging
import os
import signal
import socket
import sys
from dataclasses import replace
from types import FrameType

from narcore.binarycache import BinaryCache
from narcore.errors import NarcoreError, SettingsError
from narcore.lookup.pathinfo import PathInfo
from narcore.settings import Settings
from narmount.daemon.controlserver import ControlServer
from narmount.daemon.holder import STOPPED, TROUBLE, UNMOUNTED, USAGE, take_over, tell_ready
from narmount.daemon.options import MountHandover
from narmount.daemon.ratelimit import LogRateLimit
from narmount.daemon.upkeep import Appeared, Upkeep
from narmount.files.filesystem import FileSystem
from narmount.files.passthrough import PassthroughFiles
from narmount.files.pathnumbers import PathNumbers
from narmount.files.prefetch import Prefetch
from narmount.files.storepaths import StorePaths
from narmount.fuse.protocol import Notify
from narmount.fuse.server import FuseServer

log = logging.getLogger("narmount")


class MountWorker:
    """Everything that answers the requests of a mount: file system, request loop, control socket, and upkeep."""

    def __init__(self, handover: MountHandover, settings: Settings, holder: int) -> None:
        """``holder`` is the process id of the holder. Raises SettingsError if the settings can't be used."""
        self._handover = handover
        self._holder = holder  # not os.getppid(), whose value changes when the holder dies
        self._settings = settings
        self._cache = BinaryCache.from_settings(
            settings, strict=not settings.mount_early, patience=float(settings.mount_deadline)
        )
        self._passthrough = (
            None
            if handover.no_passthrough_reason
            else PassthroughFiles(handover.device, handover.passthrough_files, handover.generation + 1)
        )
        appeared = Appeared()
        self._paths = StorePaths(
            self._cache,
            PathNumbers(handover.path_numbers),
            early=settings.mount_early,
            notify=self._notify,
            announce=appeared.add,
        )
        self._files = FileSystem(self._cache, self._paths, self._passthrough, self._notify)
        self._server = FuseServer(
            handover.device,
            self._files,
            handover.agreed,
            deadline=float(settings.mount_deadline),
            resumed=handover.generation > 0,
        )
        self._prefetch = Prefetch(self._fetch)
        self._control = ControlServer(
            socket.socket(fileno=handover.listener), status=self.status, prefetch=self._prefetch.add
        )
        self._upkeep = Upkeep(
            holder=holder,
            replace_holder=self._replace_holder,
            paths=self._paths,
            appeared=appeared,
            files=self._files,
            server=self._server,
            control=self._control,
        )
        self._stopped = False

    def start(self) -> None:
        """Set up signals and metrics. Raises SettingsError if the metrics can't be served."""
        signal.signal(signal.SIGTERM, self._stop)
        for number in (signal.SIGINT, signal.SIGHUP):  # the holder also gets these signals, and handles them
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if self._handover.metrics:
            self._serve_metrics()

    def run(self) -> int:
        """Answer requests until the end. Returns UNMOUNTED or STOPPED."""
        self._control.start()
        self._upkeep.start()
        self._server.serve()
        return STOPPED if self._stopped else UNMOUNTED

    def close(self) -> None:
        self._upkeep.close()
        self._control.close()
        self._files.close()
        self._cache.close()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopped = True
        self._server.stop()

    def _serve_metrics(self) -> None:
        from narmount.metrics import mount_metrics, serve_metrics  # prometheus-client is an extra

        serve_metrics(self._handover.metrics, lambda: mount_metrics(self.status()))

    def _replace_holder(self) -> None:
        take_over(replace(self._handover, generation=self._handover.generation + 1))

    def _notify(self, code: Notify, body: bytes) -> None:
        self._server.notify(code, body)

    def _fetch(self, base_name: str) -> PathInfo | None:
        found = self._paths.find(base_name)
        if found is None:
            return None
        self._cache.open_fetched(found.info).close()
        return found.info

    # --- status

    def status(self) -> dict[str, object]:
        handover, server, files, paths = self._handover, self._server, self._files, self._paths
        return {
            "target": str(handover.target),
            "mode": handover.mode,
            "mode_reason": handover.no_passthrough_reason,
            "resend": handover.agreed.resend,
            "kernel_minor": handover.agreed.minor,
            "worker_pid": os.getpid(),
            "holder_pid": self._holder,  # not os.getppid(): if the holder has died, that is the process id of init
            "restarts": handover.generation,
            "since": handover.since,
            "stores": [substituter.url for substituter in self._cache.substituters],
            "cache": self._cache.disk_usage(),
            "early": self._settings.mount_early,
            "deadline": self._settings.mount_deadline,
            "counts": server.counts(),
            "lookups": dict(paths.lookups),
            "waiting": server.waiting,
            "interrupts": server.interrupts,
            "errors": server.errors,
            "last_error": server.last_error,
            "read_bytes": files.read_bytes,
            "passthrough_opens": self._passthrough.opened if self._passthrough else 0,
            "passthrough_files": len(self._passthrough) if self._passthrough else 0,
            "open_nars": files.open_nars,
            "paths_known": len(paths),
            "denied": len(paths.missing_names),
            "prefetch_pending": self._prefetch.pending,
        }


def main(handover: MountHandover, ready: int, holder: int) -> int:
    logging.basicConfig(format="nar-serve: %(message)s", level=logging.INFO)
    logging.getLogger().handlers[0].addFilter(LogRateLimit())
    try:
        settings = Settings.from_environ(os.environ)
        worker = MountWorker(handover, settings, holder)
        worker.start()
    except NarcoreError as error:
        code = USAGE if isinstance(error, SettingsError) else TROUBLE
        tell_ready(ready, {"error": str(error), "code": code})
        return code
    tell_ready(ready, {"ready": True, "stores": len(settings.cache_urls)})
    code = worker.run()
    if code == UNMOUNTED:
        worker.close()
    return code


if __name__ == "__main__":
    status = main(MountHandover.from_json(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    # Exit without joining the threads that read the device or wait for a store. The kernel sends their requests to the next worker.
    os._exit(status)
