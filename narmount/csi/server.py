"""gRPC on a unix socket: exceptions become status codes, and calls are counted."""

import errno
import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from narcore.errors import MountError, SettingsError
from narmount.csi.node import CsiIdentity, CsiNode, CsiPlugin
from narmount.csi.schema import CSI
from narmount.daemon.control import SOCKET_PATH_MAX
from narmount.metrics import Family
from narmount.volumes import Volumes
from narmount.volumes.errors import (
    CacheDead,
    NoSuchVolume,
    VolumeBusy,
    VolumeConflict,
    VolumeElsewhere,
    VolumeRefused,
)

THREADS = 128  # a call takes milliseconds; if one mount hangs, enough threads are left for volumes of other mounts
CALLS_MAX = 512  # running and waiting calls; a node has fewer pods
MESSAGE_MAX = 256 * 1024  # bytes; the largest fields of the specification are maps of at most 4 KiB
ERROR_MAX = 600  # characters of an error message; each has up to 12 encoded bytes, and gRPC limits headers to 8 KiB
STOP_SECONDS = 5.0  # how long running calls may take when the server stops

Method = Callable[[Any], Any]

# The nearest base class of an error determines its code.
_CODES: Mapping[type[BaseException], grpc.StatusCode] = {
    VolumeRefused: grpc.StatusCode.INVALID_ARGUMENT,
    VolumeConflict: grpc.StatusCode.ALREADY_EXISTS,
    VolumeElsewhere: grpc.StatusCode.FAILED_PRECONDITION,  # a volume of a single node may be published only once
    NoSuchVolume: grpc.StatusCode.NOT_FOUND,
    VolumeBusy: grpc.StatusCode.ABORTED,  # "operation pending for volume"
    CacheDead: grpc.StatusCode.UNAVAILABLE,
    MountError: grpc.StatusCode.INTERNAL,
    OSError: grpc.StatusCode.INTERNAL,
    Exception: grpc.StatusCode.INTERNAL,
}
_FULL = {errno.ENOSPC, errno.EDQUOT}

log = logging.getLogger("narmount.csi")


class CsiCalls:
    """Counts calls by name and status code, and measures their durations. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._seconds: dict[tuple[str, ...], float] = {}
        self._running = 0

    def begin(self) -> None:
        with self._lock:
            self._running += 1

    def end(self, call: str, code: grpc.StatusCode, seconds: float) -> None:
        with self._lock:
            self._running -= 1
            self._counts[call, code.name] += 1
            self._seconds[(call,)] = self._seconds.get((call,), 0.0) + seconds

    def running(self) -> int:
        return self._running

    def families(self) -> list[Family]:
        with self._lock:
            counts, seconds = dict(self._counts), dict(self._seconds)
        return [
            Family("nar_csi_calls", "Calls of kubelet, by status code.", "counter", ("call", "code"), counts),
            Family("nar_csi_call_seconds", "Total duration of the calls.", "counter", ("call",), seconds),
        ]


class CsiServer:
    """A gRPC server on a unix socket that only its owner can connect to."""

    def __init__(self, path: Path, calls: CsiCalls) -> None:
        self._path = path
        self._calls = calls
        self._server = grpc.server(
            ThreadPoolExecutor(THREADS, thread_name_prefix="grpc"),
            maximum_concurrent_rpcs=CALLS_MAX,
            options=[("grpc.max_receive_message_length", MESSAGE_MAX), ("grpc.so_reuseport", 0)],
        )

    def add(self, service: str, methods: Mapping[str, tuple[Method, type[Any], type[Any]]]) -> None:
        """Add a service. ``methods`` maps the name of each call to a method and the classes of request and response."""
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                self._guarded(name, method),
                request_deserializer=request.FromString,
                response_serializer=response.SerializeToString,
            )
            for name, (method, request, response) in methods.items()
        }
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])

    def start(self) -> None:
        """Listen and answer calls. Raises SettingsError or MountError if it can't listen at its path."""
        prepare_socket(self._path)
        with _owner_only():
            try:
                self._server.add_insecure_port(f"unix:{self._path}")
            except RuntimeError as error:
                raise MountError(f"can't listen at {self._path}: {error}") from error
        self._server.start()

    def stop(self) -> None:
        """Accept no new calls, and let running calls end within STOP_SECONDS."""
        self._server.stop(STOP_SECONDS).wait()
        self._path.unlink(missing_ok=True)

    def _guarded(self, name: str, method: Method) -> Callable[[Any, grpc.ServicerContext], Any]:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            start = time.monotonic()
            code = grpc.StatusCode.OK
            self._calls.begin()
            try:
                return method(request)
            except Exception as error:  # noqa: BLE001  every error becomes a status code
                code = code_of(error)
                _log_error(name, error)
                context.abort(code, _user_message(error)[:ERROR_MAX])
            finally:
                self._calls.end(name, code, time.monotonic() - start)

        return call


def csi_server(path: Path, plugin: CsiPlugin, volumes: Volumes, calls: CsiCalls) -> CsiServer:
    """Return a server at ``path`` with the Identity and the Node service."""
    server, identity, node = CsiServer(path, calls), CsiIdentity(plugin, volumes), CsiNode(plugin, volumes)
    services: dict[str, dict[str, Method]] = {
        "csi.v1.Identity": {
            "GetPluginInfo": identity.get_plugin_info,
            "GetPluginCapabilities": identity.get_plugin_capabilities,
            "Probe": identity.probe,
        },
        "csi.v1.Node": {
            "NodePublishVolume": node.publish,
            "NodeUnpublishVolume": node.unpublish,
            "NodeGetVolumeStats": node.get_volume_stats,
            "NodeGetCapabilities": node.get_capabilities,
            "NodeGetInfo": node.get_info,
        },
    }
    for service, methods in services.items():
        server.add(
            service,
            {name: (method, CSI[f"{name}Request"], CSI[f"{name}Response"]) for name, method in methods.items()},
        )
    return server


def is_ready(path: Path, timeout: float) -> bool:
    """Return whether the plugin at a socket is ready. ``timeout`` is in seconds. Raises MountError if it does not answer."""
    with grpc.insecure_channel(f"unix:{path}") as channel:
        probe = channel.unary_unary(
            "/csi.v1.Identity/Probe",
            request_serializer=CSI["ProbeRequest"].SerializeToString,
            response_deserializer=CSI["ProbeResponse"].FromString,
        )
        try:
            return bool(probe(CSI["ProbeRequest"](), timeout=timeout).ready.value)
        except grpc.RpcError as error:
            raise MountError(f"no answer at {path}; is nar-serve csi running?") from error


def prepare_socket(path: Path) -> None:
    """Create the directory of a socket, and remove an abandoned socket. Raises SettingsError if a program listens there."""
    if len(os.fsencode(path)) > SOCKET_PATH_MAX:
        raise SettingsError(f"{path} is too long for a socket; use a path of at most {SOCKET_PATH_MAX} bytes")
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError as error:
            if not path.is_socket():
                raise SettingsError(f"{path} exists and is not a socket; remove it") from error
            path.unlink()
            return
        except OSError as error:
            raise SettingsError(f"can't use {path}: {error.strerror or error}; remove it") from error
    raise SettingsError(f"another program listens at {path}; is nar-serve csi running already?")


@contextmanager
def _owner_only() -> Iterator[None]:
    """Let only the owner connect to sockets that are created in the ``with`` block, since every client can mount volumes."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def code_of(error: BaseException) -> grpc.StatusCode:
    """Return the status code of an error. Kubelet decides by this code whether to retry."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return grpc.StatusCode.RESOURCE_EXHAUSTED
    return next(_CODES[base] for base in type(error).__mro__ if base in _CODES)


def _user_message(error: Exception) -> str:
    """Return the message of an error that kubelet shows to users, as an event of the pod."""
    if isinstance(error, MountError):
        return str(error)
    if isinstance(error, OSError):
        return f"disk error on the node: {error.strerror or error}; see the log of nar-serve csi"
    return "internal error of nar-serve; see the log of nar-serve csi"


def _log_error(name: str, error: Exception) -> None:
    if isinstance(error, MountError | OSError):
        log.warning("%s: %s", name, error)
    else:
        log.error("%s: %r", name, error, exc_info=error)
