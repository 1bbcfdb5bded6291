"""The client of a mount's control socket.

``controlserver`` describes the requests and their answers.
"""

import hashlib
import json
import os
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from narcore.errors import MountError
from narmount.fuse.mountinfo import absolute

NAMES_MAX = 1000  # the most names in one request or in one line of news
ANSWER_MAX = 4 << 20  # bytes; a client refuses longer answers

SOCKET_PATH_MAX = 107  # bytes, without the NUL; sun_path in unix(7)


def control_path(run_dir: Path, target: Path) -> Path:
    """Return the path of the control socket of the mount at ``target``. Raises MountError if it is too long for a socket."""
    digest = hashlib.sha256(os.fsencode(absolute(target))).hexdigest()
    path = run_dir / "mounts" / f"{digest[:16]}.sock"
    if len(os.fsencode(path)) > SOCKET_PATH_MAX:
        raise MountError(
            f"the path {run_dir} is too long for a socket; choose a shorter one with --run-dir or NAR_RUN_DIR"
        )
    return path


def make_run_dir(run_dir: Path) -> None:
    """Make the directory for sockets, with access for its owner only. If the directory exists, check that it belongs to this user.

    Raises MountError. The check is needed since another user can guess a name in the temporary directory, and create it first.
    """
    sockets = run_dir / "mounts"
    try:
        sockets.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise MountError(
            f"can't make {sockets}: {error.strerror}; choose another directory with --run-dir or NAR_RUN_DIR"
        ) from error
    _check_owner(sockets)


def encode_line(value: dict[str, object]) -> bytes:
    """Return ``value`` as one line of JSON, the format of requests and answers."""
    return json.dumps(value).encode() + b"\n"


def read_status(path: Path, timeout: float) -> dict[str, object]:
    """Ask the control socket of a mount for its status. ``timeout`` is in seconds. Raises MountError if it does not answer."""
    return _ask(path, {"do": "status"}, timeout)


def ask_prefetch(path: Path, names: Sequence[str], timeout: float) -> None:
    """Have the mount fetch the closures of these store paths (base names) in the background. Raises MountError."""
    for at in range(0, len(names), NAMES_MAX):
        _ask(path, {"do": "prefetch", "names": list(names[at : at + NAMES_MAX])}, timeout)


def watch(path: Path) -> Iterator[list[str]]:
    """Return lists of names that were missing and have appeared, as they appear.

    The first list is empty and comes when watching begins. Names that appeared earlier are not reported. The iterator ends when
    the worker ends. Calling `watch` again waits for the next worker. Raises MountError if no process listens.
    """
    with _connect(path, None) as connection:
        _send(connection, path, {"do": "watch"})
        with suppress(ConnectionError), connection.makefile("rb") as lines:
            while (line := lines.readline(ANSWER_MAX)).endswith(b"\n"):
                names = _parse_answer(path, line).get("names")
                if not isinstance(names, list):
                    raise MountError(f"{path} gave an answer that this version of nar-serve does not understand")
                yield names


def is_abandoned(path: Path) -> bool:
    """Return whether the socket exists and no process listens on it. If so, the holder and the worker of its mount have died."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        try:
            connection.connect(str(path))
        except OSError as error:
            return isinstance(error, ConnectionRefusedError)
    return False


def _ask(path: Path, request: dict[str, object], timeout: float) -> dict[str, object]:
    deadline = time.monotonic() + timeout
    answer = bytearray()
    with _connect(path, timeout) as connection:
        _send(connection, path, request)
        while not answer.endswith(b"\n"):
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = connection.recv(65536)
            except TimeoutError as error:
                raise _unresponsive(path, f"has not answered within {timeout:g} seconds") from error
            except OSError as error:
                raise _unresponsive(path, f"closed the connection: {error.strerror}") from error
            answer += data
            if not data or len(answer) > ANSWER_MAX:
                break
    return _parse_answer(path, bytes(answer))


def _connect(path: Path, timeout: float | None) -> socket.socket:
    _check_owner(path.parent)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        if isinstance(error, FileNotFoundError):
            step = "; is nar-serve mount running for that directory?"
        elif isinstance(error, ConnectionRefusedError):
            step = ": nar-serve mount has died; mount that directory again; nar-serve mount --status lists it"
        else:
            raise _unresponsive(path, f"can't be reached: {error.strerror or error}") from error
        raise MountError(f"no process answers at {path}{step}") from error
    return connection


def _send(connection: socket.socket, path: Path, request: dict[str, object]) -> None:
    try:
        connection.sendall(encode_line(request))
    except OSError as error:
        raise _unresponsive(path, f"closed the connection: {error.strerror or error}") from error


def _parse_answer(path: Path, line: bytes) -> dict[str, object]:
    if not line:
        raise _unresponsive(path, "closed the connection")
    try:
        answer = json.loads(line)
    except ValueError as error:
        raise _unresponsive(path, "sent an incomplete answer") from error
    if not isinstance(answer, dict):
        raise MountError(f"{path} gave an answer that this version of nar-serve does not understand")
    if "error" in answer:
        raise MountError(f"the mount refused the request: {answer['error']}")
    return answer


def _unresponsive(path: Path, what: str) -> MountError:
    step = "if this persists, its worker hangs: kill the worker, and the holder starts another"
    return MountError(f"the mount with the control socket {path} {what}; {step}")


def _check_owner(directory: Path) -> None:
    """Check that no other user can write to the directory and then answer instead of the mount. Raises MountError."""
    try:
        status = directory.stat()
    except OSError:  # the directory does not exist; connecting to the socket reports that
        return
    if status.st_uid not in (0, os.geteuid()):
        raise MountError(f"{directory} belongs to another user; choose another directory with --run-dir or NAR_RUN_DIR")
    if status.st_mode & stat.S_IWOTH:
        raise MountError(f"every user may write to {directory}; run chmod o-w {directory}")
