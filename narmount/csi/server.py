"""The sockets: gRPC on them, exceptions as codes, and what is counted of the calls."""

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

THREADS = 128  # a call takes milliseconds, unless a mount hangs: those for all other volumes of a node go on meanwhile
CALLS_MAX = 512  # under way and waiting: as many as a node may have pods, and then some
MESSAGE_MAX = 256 * 1024  # the largest of the specification's are 4 KiB of attributes
TOLD_MAX = 600  # characters of a message; as it is encoded, each may take 12 bytes, and gRPC takes 8 KiB of headers
STOP_SECONDS = 5.0  # so long calls under way may take when it ends


Method = Callable[[Any], Any]

# The nearest class counts.
_CODES: Mapping[type[BaseException], grpc.StatusCode] = {
    VolumeRefused: grpc.StatusCode.INVALID_ARGUMENT,
    VolumeConflict: grpc.StatusCode.ALREADY_EXISTS,
    VolumeElsewhere: grpc.StatusCode.FAILED_PRECONDITION,  # what is for one node may be published once
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
    """How many calls there were, how they ended, and how long they took. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._seconds: dict[tuple[str, ...], float] = {}
        self._under_way = 0

    def begin(self) -> None:
        with self._lock:
            self._under_way += 1

    def add(self, call: str, code: grpc.StatusCode, seconds: float) -> None:
        """It has ended."""
        with self._lock:
            self._under_way -= 1
            self._counts[call, code.name] += 1
            self._seconds[(call,)] = self._seconds.get((call,), 0.0) + seconds

    def under_way(self) -> int:
        return self._under_way

    def families(self) -> list[Family]:
        with self._lock:
            counts, seconds = dict(self._counts), dict(self._seconds)
        return [
            Family("nar_csi_calls", "Calls of kubelet, by how they ended.", "counter", ("call", "code"), counts),
            Family("nar_csi_call_seconds", "How long they took, all together.", "counter", ("call",), seconds),
        ]


class CsiServer:
    """gRPC on a unix socket that is for its owner alone. ``services`` are methods by name: service, call, and its messages."""

    def __init__(self, path: Path, calls: CsiCalls) -> None:
        self._path = path
        self._calls = calls
        self._server = grpc.server(
            ThreadPoolExecutor(THREADS, thread_name_prefix="grpc"),
            maximum_concurrent_rpcs=CALLS_MAX,
            options=[("grpc.max_receive_message_length", MESSAGE_MAX), ("grpc.so_reuseport", 0)],
        )

    def add(self, service: str, methods: Mapping[str, tuple[Method, type[Any], type[Any]]]) -> None:
        """Each is a method with the classes of its request and its response."""
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
        """Raises SettingsError or MountError if it can't listen there."""
        make_way(self._path)
        with _private():
            try:
                self._server.add_insecure_port(f"unix:{self._path}")
            except RuntimeError as error:
                raise MountError(f"can't listen at {self._path}: {error}") from error
        self._server.start()

    def stop(self) -> None:
        """No new calls; those under way may end."""
        self._server.stop(STOP_SECONDS).wait()
        self._path.unlink(missing_ok=True)

    def _guarded(self, name: str, method: Method) -> Callable[[Any, grpc.ServicerContext], Any]:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            start = time.monotonic()
            code = grpc.StatusCode.OK
            self._calls.begin()
            try:
                return method(request)
            except Exception as error:  # noqa: BLE001  all of them become a code
                code = code_of(error)
                _report(name, error)
                context.abort(code, _told(error)[:TOLD_MAX])
            finally:
                self._calls.add(name, code, time.monotonic() - start)

        return call


def csi_server(path: Path, plugin: CsiPlugin, volumes: Volumes, calls: CsiCalls) -> CsiServer:
    """Identity and Node."""
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
    """What the plugin behind the socket says when it is probed. Raises MountError if nothing answers."""
    with grpc.insecure_channel(f"unix:{path}") as channel:
        probe = channel.unary_unary(
            "/csi.v1.Identity/Probe",
            request_serializer=CSI["ProbeRequest"].SerializeToString,
            response_deserializer=CSI["ProbeResponse"].FromString,
        )
        try:
            return bool(probe(CSI["ProbeRequest"](), timeout=timeout).ready.value)
        except grpc.RpcError as error:
            raise MountError(f"nobody answers at {path}; is nar-serve csi running?") from error


def make_way(path: Path) -> None:
    """Remove a socket that was left behind, and make its directory. Raises SettingsError if somebody listens there."""
    if len(os.fsencode(path)) > SOCKET_PATH_MAX:
        raise SettingsError(f"{path} is too long for a socket, by {len(os.fsencode(path)) - SOCKET_PATH_MAX} bytes")
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trying:
        trying.settimeout(1)
        try:
            trying.connect(str(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError as error:
            if not path.is_socket():
                raise SettingsError(f"{path} is in the way: it is no socket; remove it") from error
            path.unlink()
            return
        except OSError as error:
            raise SettingsError(f"{path} is in the way: {error.strerror or error}; remove it") from error
    raise SettingsError(f"something listens at {path} already; is nar-serve csi running?")


@contextmanager
def _private() -> Iterator[None]:
    """Sockets that are made in it are for their owner alone: who may connect may mount."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def code_of(error: BaseException) -> grpc.StatusCode:
    """For kubelet, some of them mean that it is to try again."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return grpc.StatusCode.RESOURCE_EXHAUSTED
    return next(_CODES[base] for base in type(error).__mro__ if base in _CODES)


def _told(error: Exception) -> str:
    """It becomes an event of the pod, which its user reads."""
    if isinstance(error, MountError):
        return str(error)
    if isinstance(error, OSError):
        return f"the node has trouble with its disk: {error.strerror or error}; the log of nar-serve csi says more"
    return "a mistake of nar-serve; the log of nar-serve csi says more"


def _report(name: str, error: Exception) -> None:
    if isinstance(error, MountError | OSError):
        log.warning("%s: %s", name, error)
    else:
        log.error("%s: %r", name, error, exc_info=error)
