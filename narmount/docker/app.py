"""The endpoints of Docker's volume plugins: JSON in, JSON out, and what is wrong in ``Err``."""

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
from narmount.docker.options import Refused
from narmount.docker.users import UNKNOWN, caller

BODY_MAX = 64 * 1024  # a name and some options; prefetch may have a hundred store paths
MEDIA_TYPE = "application/vnd.docker.plugins.v1.2+json"

NAMELESS = ("List", "Capabilities")  # the calls that need no body

OUTCOMES = ("ok", "refused", "error")

Call = Callable[[Mapping[str, object]], Mapping[str, object]]

log = logging.getLogger("narmount.docker")


class BodyLost(Exception):
    """dockerd makes a call again that broke off, since the plugin was killed in the middle of it, but without its body: that it has
    read already (moby, pkg/plugins/client.go: callWithRetry). So nobody knows what it was about.
    """


class Calls:
    """How many there were of each, by how they ended. For any thread."""

    def __init__(self, names: Iterable[str]) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, ...], float] = {(name, end): 0 for name in names for end in OUTCOMES}

    def count(self, name: str, outcome: str) -> None:
        with self._lock:
            self._counts[name, outcome] += 1

    def counts(self) -> dict[tuple[str, ...], float]:
        with self._lock:
            return dict(self._counts)


def create_docker_app(driver: Driver, status: Callable[[], Mapping[str, object]]) -> tuple[Flask, Calls]:
    """The app, and what it counts. ``status`` is what ``GET /status`` says, for people and not for dockerd."""
    app = Flask("nar-serve-docker-volume", static_folder=None, template_folder=None, root_path=".")
    app.config["MAX_CONTENT_LENGTH"] = BODY_MAX
    volume_calls = _volume_calls(driver)
    calls = Calls(volume_calls)
    for name, call in volume_calls.items():
        app.add_url_rule(f"/VolumeDriver.{name}", name, _view(name, call, calls), methods=["POST"])
    app.add_url_rule("/Plugin.Activate", "Activate", _activate, methods=["POST"])
    app.add_url_rule("/status", "status", lambda: _answer(status()), methods=["GET"])
    app.register_error_handler(Exception, _failure)
    return app, calls


def _volume_calls(driver: Driver) -> dict[str, Call]:
    """By their names in Docker's protocol."""

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
        "Capabilities": lambda body: {"Capabilities": {"Scope": "local"}},  # a volume is of this machine alone
    }


def _view(name: str, call: Call, calls: Calls) -> Callable[[], Response]:
    def view() -> Response:
        begun = time.monotonic()
        try:
            body = _body()
            if not body and name not in NAMELESS:
                raise BodyLost
            answer = _answer({"Err": "", **call(body)})
        except Refused:
            calls.count(name, "refused")
            raise
        except Exception:
            calls.count(name, "error")
            raise
        calls.count(name, "ok")
        if name in ("Create", "Mount", "Unmount", "Remove"):
            log.info("%s %s: done in %.0f ms", name, body.get("Name"), (time.monotonic() - begun) * 1000)
        return answer

    return view


def _caller() -> str:
    connection = request.environ.get("werkzeug.socket")
    return caller(connection) if isinstance(connection, socket.socket) else UNKNOWN


def _hang_up() -> None:
    connection = request.environ.get("werkzeug.socket")
    if isinstance(connection, socket.socket):
        with suppress(OSError):  # it has gone already
            connection.shutdown(socket.SHUT_RDWR)


def _activate() -> Response:
    """Which of Docker's kinds of plugin this is."""
    return _answer({"Implements": ["VolumeDriver"]})


def _body() -> Mapping[str, object]:
    """An object of JSON; dockerd sends no body at all where there is nothing to say. Raises Refused."""
    data = request.get_data(cache=False)
    try:
        body = json.loads(data) if data else {}
    except (ValueError, RecursionError) as error:
        raise Refused("the body is not JSON; is it dockerd that calls?") from error
    if not isinstance(body, dict):
        raise Refused("the body is not an object of JSON; is it dockerd that calls?")
    return body


def _answer(content: Mapping[str, object], status: int = 200) -> Response:
    return Response(json.dumps(content) + "\n", status=status, content_type=MEDIA_TYPE)


def _failure(error: Exception) -> Response:
    """dockerd shows ``Err``, whatever the status."""
    match error:
        case Refused():
            message, status = str(error), error.status
        case BodyLost():
            if request.endpoint == "Get":
                # To dockerd, any answer but a volume means that there is none: it would forget its labels.
                _hang_up()
            message, status = "the call broke off before, and dockerd has repeated it without its body; try again", 400
        case MountError():
            message, status = str(error), 500
        case OSError():
            message, status = f"{error.strerror or error}; the log of nar-serve docker-volume has the details", 500
        case RequestEntityTooLarge():
            message, status = f"the body of a call has {BODY_MAX} bytes at most; use fewer or shorter options", 413
        case NotFound() | MethodNotAllowed():
            message, status = "there is no such call; POST /VolumeDriver.List is one", error.code
        case HTTPException():
            message, status = "this is not a call of a volume plugin; is it dockerd that calls?", error.code or 400
        case _:
            message, status = "something went wrong; the log of nar-serve docker-volume has the details", 500
    if isinstance(error, Refused) and error.status == 404:
        log.debug("%s: %s", request.path, message)  # dockerd asks every driver whether a new name is one of its own
    elif isinstance(error, Refused | BodyLost | HTTPException):
        log.warning("%s: %s", request.path, message)
    else:
        log.error("%s: %s", request.path, error, exc_info=not isinstance(error, MountError))
    return _answer({"Err": message}, status)
