"""The endpoints of Docker's volume plugins. Requests and responses are JSON; an error is in the field ``Err``."""

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound, RequestEntityTooLarge

from narcore.errors import MountError
from narmount.docker.driver import Driver
from narmount.docker.users import UNKNOWN, caller
from narmount.metrics import Family
from narmount.volumes.errors import NoSuchVolume, VolumeBusy, VolumeConflict, VolumeRefused

BODY_MAX = 64 * 1024  # bytes: a name and some options; the option prefetch may have a hundred store paths
MEDIA_TYPE = "application/vnd.docker.plugins.v1.2+json"

CALLS_WITHOUT_BODY = ("List", "Capabilities")

OUTCOMES = ("ok", "refused", "error")

# Errors that the caller has to fix.
_STATUSES: Mapping[type[MountError], int] = {
    NoSuchVolume: 404,
    VolumeBusy: 503,
    VolumeConflict: 409,
    VolumeRefused: 400,
}
_REFUSED = tuple(_STATUSES)

Call = Callable[[Mapping[str, object]], Mapping[str, object]]

log = logging.getLogger("narmount.docker")


class BodyLost(Exception):
    """A repeated call that has no body.

    If the plugin is killed during a call, dockerd repeats the call. The repeated call has no body, since dockerd has already read
    its body to the end (moby, pkg/plugins/client.go: callWithRetry). So the arguments of the call are unknown.
    """


class DockerCalls:
    """Counts calls by name and outcome. Thread-safe."""

    def __init__(self, names: Iterable[str]) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, ...], float] = {(name, outcome): 0 for name in names for outcome in OUTCOMES}

    def count(self, name: str, outcome: str) -> None:
        with self._lock:
            self._counts[name, outcome] += 1

    def families(self) -> list[Family]:
        with self._lock:
            counts = dict(self._counts)
        return [
            Family("nar_docker_calls", "Calls of dockerd, by how they ended.", "counter", ("call", "outcome"), counts)
        ]


def create_docker_app(driver: Driver, status: Callable[[], Mapping[str, object]]) -> tuple[Flask, DockerCalls]:
    """Return the app and the counts of its calls. ``status`` gives the response to ``GET /status``, which dockerd does not use."""
    app = Flask("nar-serve-docker-volume", static_folder=None, template_folder=None, root_path=".")
    app.config["MAX_CONTENT_LENGTH"] = BODY_MAX
    volume_calls = _volume_calls(driver)
    calls = DockerCalls(volume_calls)
    for name, call in volume_calls.items():
        app.add_url_rule(f"/VolumeDriver.{name}", name, _view(name, call, calls), methods=["POST"])
    app.add_url_rule("/Plugin.Activate", "Activate", _activate, methods=["POST"])
    app.add_url_rule("/status", "status", lambda: _response(status()), methods=["GET"])
    app.register_error_handler(Exception, _error_response)
    return app, calls


def _volume_calls(driver: Driver) -> dict[str, Call]:
    """Return the calls by their names in Docker's protocol."""

    def create(body: Mapping[str, object]) -> Mapping[str, object]:
        driver.create(body.get("Name"), body.get("Opts"))
        return {}

    def mount(body: Mapping[str, object]) -> Mapping[str, object]:
        return {"Mountpoint": str(driver.mount(body.get("Name"), body.get("ID"), _caller()))}

    def unmount(body: Mapping[str, object]) -> Mapping[str, object]:
        driver.unmount(body.get("Name"), body.get("ID"))
        return {}

    def remove(body: Mapping[str, object]) -> Mapping[str, object]:
        driver.remove(body.get("Name"))
        return {}

    return {
        "Create": create,
        "Mount": mount,
        "Unmount": unmount,
        "Remove": remove,
        "Path": lambda body: {"Mountpoint": driver.mountpoint(body.get("Name"))},
        "Get": lambda body: {"Volume": driver.describe(body.get("Name"))},
        "List": lambda body: {"Volumes": driver.all()},
        "Capabilities": lambda body: {"Capabilities": {"Scope": "local"}},  # volumes are not shared between machines
    }


def _view(name: str, call: Call, calls: DockerCalls) -> Callable[[], Response]:
    def view() -> Response:
        start = time.monotonic()
        try:
            body = _body()
            if not body and name not in CALLS_WITHOUT_BODY:
                raise BodyLost
            response = _response({"Err": "", **call(body)})
        except Exception as error:
            calls.count(name, "refused" if isinstance(error, _REFUSED) else "error")
            raise
        calls.count(name, "ok")
        if name in ("Create", "Mount", "Unmount", "Remove"):
            log.info("%s %s: done in %.0f ms", name, body.get("Name"), (time.monotonic() - start) * 1000)
        return response

    return view


def _caller() -> str:
    """Return the identity of the process that made the current request."""
    connection = request.environ.get("werkzeug.socket")
    return caller(connection) if isinstance(connection, socket.socket) else UNKNOWN


def _hang_up() -> None:
    """Close the connection of the current request without a response."""
    connection = request.environ.get("werkzeug.socket")
    if isinstance(connection, socket.socket):
        with suppress(OSError):  # the client has closed it already
            connection.shutdown(socket.SHUT_RDWR)


def _activate() -> Response:
    """Tell dockerd that this is a volume plugin."""
    return _response({"Implements": ["VolumeDriver"]})


def _body() -> Mapping[str, object]:
    """Return the JSON object of the request; an empty body is an empty object. Raises VolumeRefused."""
    data = request.get_data(cache=False)
    try:
        body = json.loads(data) if data else {}
    except (ValueError, RecursionError) as error:
        raise VolumeRefused("the request body is not JSON; this socket is for dockerd") from error
    if not isinstance(body, dict):
        raise VolumeRefused("the request body is not a JSON object; this socket is for dockerd")
    return body


def _response(content: Mapping[str, object], status: int = 200) -> Response:
    return Response(json.dumps(content) + "\n", status=status, content_type=MEDIA_TYPE)


def _error_response(error: Exception) -> Response:
    """Log an error, and return it as a response. dockerd shows ``Err`` with every status."""
    match error:
        case MountError():
            message = str(error)
            status = next((_STATUSES[base] for base in type(error).__mro__ if base in _STATUSES), 500)
        case BodyLost():
            if request.endpoint == "Get":
                # dockerd interprets any response without a volume as "no such volume", and would forget the labels of the volume.
                _hang_up()
            message, status = "the call was interrupted, and dockerd repeated it without its body; try again", 400
        case OSError():
            message, status = f"{error.strerror or error}; see the log of nar-serve docker-volume", 500
        case RequestEntityTooLarge():
            message, status = f"the request body exceeds {BODY_MAX} bytes; use fewer or shorter options", 413
        case NotFound() | MethodNotAllowed():
            message, status = "there is no such call; try POST /VolumeDriver.List", error.code
        case HTTPException():
            message, status = "this is not a call of a volume plugin; this socket is for dockerd", error.code or 400
        case _:
            message, status = "internal error; see the log of nar-serve docker-volume", 500
    if isinstance(error, NoSuchVolume):
        log.debug("%s: %s", request.path, message)  # no warning: dockerd asks every driver for each new name
    elif isinstance(error, (*_REFUSED, BodyLost, HTTPException)):
        log.warning("%s: %s", request.path, message)
    else:
        log.error("%s: %s", request.path, error, exc_info=not isinstance(error, MountError))
    return _response({"Err": message}, status)
