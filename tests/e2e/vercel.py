"""Vercel's own Python runtime around ``api/index.py``, without a build and without an account.

``python -m tests.e2e.vercel --fd N --python PATH``: PATH is an interpreter that has vercel-runtime. The runtime chooses a port
and tells it over a socket, as it would tell the platform; what comes in at N is passed on to there, byte by byte.
"""

import argparse
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from tests import ROOT

ENTRY = "api/index.py"


def environment(ipc: Path) -> dict[str, str]:
    """What Vercel's builder and platform set for the function of ``ENTRY``."""
    return os.environ | {
        "VERCEL": "1",
        "VERCEL_IPC_PATH": str(ipc),
        "__VC_HANDLER_MODULE_NAME": ENTRY.removesuffix(".py").replace("/", "."),
        "__VC_HANDLER_ENTRYPOINT": ENTRY,
        "__VC_HANDLER_ENTRYPOINT_ABS": str(ROOT / ENTRY),
        "__VC_HANDLER_VENDOR_DIR": "_vendor",
        "__VC_HANDLER_VARIABLE_NAME": "app",
        "PYTHONPATH": str(ROOT),
    }


def port_from(messages: socket.socket) -> int:
    """Read until the runtime says at which port it listens; what it says later is thrown away."""
    pending = b""
    while chunk := messages.recv(65536):
        *complete, pending = (pending + chunk).split(b"\0")
        for message in map(json.loads, complete):
            if message["type"] == "server-started":
                threading.Thread(target=_drain, args=[messages], daemon=True).start()
                return int(message["payload"]["httpPort"])
            if message["type"] == "unrecoverable-error":
                raise RuntimeError(message)
    raise RuntimeError("the runtime ended before it listened")


def _drain(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def relay(listener: socket.socket, port: int) -> None:
    """A connection to the runtime for each that comes in."""
    while True:
        outside, _ = listener.accept()
        inside = socket.create_connection(("127.0.0.1", port))
        threading.Thread(target=_exchange, args=[outside, inside], daemon=True).start()


def _exchange(outside: socket.socket, inside: socket.socket) -> None:
    """Pass on what comes, both ways, until both have said all."""
    with outside, inside, contextlib.suppress(OSError):
        open_ways = {outside: inside, inside: outside}
        while open_ways:
            for source in select.select([*open_ways], [], [])[0]:
                chunk = source.recv(256 * 1024)
                if chunk:
                    open_ways[source].sendall(chunk)
                else:
                    open_ways.pop(source).shutdown(socket.SHUT_WR)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--python", required=True)
    given = parser.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as ipc:
        ipc.bind(f"{directory}/ipc")
        ipc.listen()
        command = [given.python, "-c", "import vercel_runtime.vc_init"]
        process: subprocess.Popen[Any] = subprocess.Popen(command, cwd=ROOT, env=environment(Path(directory, "ipc")))
        messages, _ = ipc.accept()
        with messages, socket.socket(fileno=given.fd) as listener:
            port = port_from(messages)
            threading.Thread(target=relay, args=[listener, port], daemon=True).start()
            stop.wait()
            process.terminate()
            process.wait(5)
    # Not by way of the interpreter's end, which would warn of the connections that threads still hold.
    os._exit(0)


if __name__ == "__main__":
    main()
