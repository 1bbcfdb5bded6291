"""The client of the control socket of a mount: where the socket is, and what can be asked there.

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

NAMES_MAX = 1000  # of one request, and of one line of news
ANSWER_MAX = 4 << 20  # bytes of an answer that a client accepts

SOCKET_PATH_MAX = 107  # unix(7): sun_path, without the NUL


def control_path(run_dir: Path, target: Path) -> Path:
    """Where the socket of the mount at ``target`` is. Raises MountError if it would be too long for a socket."""
    digest = hashlib.sha256(os.fsencode(absolute(target))).hexdigest()
    path = run_dir / "mounts" / f"{digest[:16]}.sock"
    if len(os.fsencode(path)) > SOCKET_PATH_MAX:
        raise MountError(f"{run_dir} is too long a path for sockets; NAR_RUN_DIR or --run-dir names a shorter one")
    return path


def make_run_dir(run_dir: Path) -> None:
    """Make it, for its owner alone, or see that it is ours: the name of one in the temp dir is known to everybody.

    Raises MountError.
    """
    sockets = run_dir / "mounts"
    try:
        sockets.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise MountError(
            f"can't make {sockets}: {error.strerror}; NAR_RUN_DIR or --run-dir names another directory"
        ) from error
    _see_owner(sockets)


def encode_line(value: dict[str, object]) -> bytes:
    """Return ``value`` as one line of JSON, as both sides send it."""
    return json.dumps(value).encode() + b"\n"


def read_status(path: Path, timeout: float) -> dict[str, object]:
    """The status of a mount, by its control socket. ``timeout`` is in seconds. Raises MountError if nobody answers."""
    return _ask(path, {"do": "status"}, timeout)


def ask_prefetch(path: Path, names: Sequence[str], timeout: float) -> None:
    """Have the closures of these store paths, given by their base names, fetched in the background. Raises MountError."""
    for at in range(0, len(names), NAMES_MAX):
        _ask(path, {"do": "prefetch", "names": list(names[at : at + NAMES_MAX])}, timeout)


def watch(path: Path) -> Iterator[list[str]]:
    """Names that were denied and are there now, as they appear.

    The first list is empty, and comes when the watching begins: what appeared before may have been missed. It ends when the
    worker does; then connect again, which waits until there is another one. Raises MountError if nobody listens.
    """
    with _connected(path, None) as connection:
        _send(connection, path, {"do": "watch"})
        with suppress(ConnectionError), connection.makefile("rb") as lines:
            while (line := lines.readline(ANSWER_MAX)).endswith(b"\n"):
                names = _checked(path, line).get("names")
                if not isinstance(names, list):
                    raise MountError(f"{path} answers, but not as a mount of this version does")
                yield names


def is_abandoned(path: Path) -> bool:
    """Whether the socket is there and nobody listens on it: its mount has died, holder and worker."""
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
    with _connected(path, timeout) as connection:
        _send(connection, path, request)
        while not answer.endswith(b"\n"):
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = connection.recv(65536)
            except TimeoutError as error:
                raise _silent(path, f"has not answered within {timeout:g} seconds") from error
            except OSError as error:
                raise _silent(path, f"broke off: {error.strerror}") from error
            answer += data
            if not data or len(answer) > ANSWER_MAX:
                break
    return _checked(path, bytes(answer))


def _connected(path: Path, timeout: float | None) -> socket.socket:
    _see_owner(path.parent)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        if isinstance(error, FileNotFoundError):
            step = "; is nar-serve mount running for that directory?"
        elif isinstance(error, ConnectionRefusedError):
            step = ": nar-serve mount has died; run it again for that directory"
        else:
            raise _silent(path, f"can't be reached: {error.strerror or error}") from error
        raise MountError(f"nobody answers at {path}{step}") from error
    return connection


def _send(connection: socket.socket, path: Path, request: dict[str, object]) -> None:
    try:
        connection.sendall(encode_line(request))
    except OSError as error:
        raise _silent(path, f"broke off: {error.strerror or error}") from error


def _checked(path: Path, line: bytes) -> dict[str, object]:
    if not line:
        raise _silent(path, "broke off")
    try:
        answer = json.loads(line)
    except ValueError as error:
        raise _silent(path, "gave no whole answer") from error
    if not isinstance(answer, dict):
        raise MountError(f"{path} answers, but not as a mount of this version does")
    if "error" in answer:
        raise MountError(f"the mount refuses: {answer['error']}")
    return answer


def _silent(path: Path, what: str) -> MountError:
    return MountError(
        f"the mount behind {path} {what}; if it stays so, its worker hangs: kill that, and the holder starts another"
    )


def _see_owner(directory: Path) -> None:
    """Whoever else can write to it could answer in the place of a mount. Raises MountError."""
    try:
        status = directory.stat()
    except OSError:  # it is not there: connecting says so
        return
    if status.st_uid not in (0, os.geteuid()):
        raise MountError(f"{directory} is not yours; NAR_RUN_DIR or --run-dir names another directory")
    if status.st_mode & stat.S_IWOTH:
        raise MountError(f"everybody may write to {directory}; chmod o-w mends that")
