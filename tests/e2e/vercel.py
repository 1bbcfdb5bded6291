"""Runs ``api/index.py`` in the Python runtime of Vercel, without a build and without an account.

``python -m tests.e2e.vercel --fd N --python PATH``: PATH is an interpreter that has vercel-runtime. The runtime chooses a port
and reports it over a socket, as it does on the platform. Connections to the listening socket N are relayed to that port.
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
    """Return the environment that the builder and the platform of Vercel set for the function of ``ENTRY``."""
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
    """Read messages until the runtime reports its port, and return the port. Later messages are read and discarded.

    Raises RuntimeError if the runtime fails to start.
    """
    pending = b""
    while chunk := messages.recv(65536):
        *complete, pending = (pending + chunk).split(b"\0")
        for message in map(json.loads, complete):
            if message["type"] == "server-started":
                threading.Thread(target=_drain, args=[messages], daemon=True).start()
                return int(message["payload"]["httpPort"])
            if message["type"] == "unrecoverable-error":
                raise RuntimeError(message)
    raise RuntimeError("the runtime ended before it reported its port")


def _drain(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def relay(listener: socket.socket, port: int) -> None:
    """Accept connections forever, and relay each one to a new connection to the runtime."""
    while True:
        client, _ = listener.accept()
        runtime = socket.create_connection(("127.0.0.1", port))
        threading.Thread(target=_exchange, args=[client, runtime], daemon=True).start()


def _exchange(client: socket.socket, runtime: socket.socket) -> None:
    """Copy bytes in both directions until both sides have closed theirs."""
    with client, runtime, contextlib.suppress(OSError):
        destinations = {client: runtime, runtime: client}
        while destinations:
            for source in select.select([*destinations], [], [])[0]:
                chunk = source.recv(256 * 1024)
                if chunk:
                    destinations[source].sendall(chunk)
                else:
                    destinations.pop(source).shutdown(socket.SHUT_WR)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--python", required=True)
    arguments = parser.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as ipc:
        ipc.bind(f"{directory}/ipc")
        ipc.listen()
        command = [arguments.python, "-c", "import vercel_runtime.vc_init"]
        process: subprocess.Popen[Any] = subprocess.Popen(command, cwd=ROOT, env=environment(Path(directory, "ipc")))
        messages, _ = ipc.accept()
        with messages, socket.socket(fileno=arguments.fd) as listener:
            port = port_from(messages)
            threading.Thread(target=relay, args=[listener, port], daemon=True).start()
            stop.wait()
            process.terminate()
            process.wait(5)
    # Exit without interpreter shutdown, which would warn about connections that threads still have open.
    os._exit(0)


if __name__ == "__main__":
    main()
