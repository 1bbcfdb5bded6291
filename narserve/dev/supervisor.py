"""``./start-dev``: holds the listening socket, and replaces the child process when a file of the project changes.

The socket outlives the children, so a request that arrives during a reload waits in the queue of the socket instead of being
refused. A child that is replaced stops accepting immediately, and has ``child.DRAIN_SECONDS`` to finish its requests.
"""

import argparse
import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from watchfiles import DefaultFilter, watch

from narcore.errors import SettingsError
from narcore.settings import DEFAULT_CACHE_URL, DEFAULT_PUBLIC_KEY, Settings
from narserve.dev.child import BAD_SETTING, DRAIN_SECONDS
from narserve.dev.demo import build_demo
from narserve.dev.routing import Deployment, VercelJsonError
from narserve.server.listener import address_setting, explain, listen, url_host

ROOT = Path(__file__).resolve().parents[2]
TREES = ("api", "narcore", "narserve", "public")
FILES = ("vercel.json", "pyproject.toml")

# A child that ends by itself is restarted. To avoid a tight loop, a child that ran for fewer seconds restarts only on a change.
WORTH_RESTARTING_SECONDS = 2.0


class Stop:
    """Event: the supervisor got SIGINT or SIGTERM."""


@dataclass(slots=True)
class Child:
    process: subprocess.Popen[bytes]
    started: float = field(default_factory=time.monotonic)

    @property
    def age(self) -> float:
        return time.monotonic() - self.started

    def release(self) -> None:
        """Ask the child to finish its requests and exit; see child.py."""
        assert self.process.stdin is not None
        self.process.stdin.close()


class Supervisor:
    """Runs the current child, and waits for earlier children that still answer a request."""

    def __init__(
        self, listener: socket.socket, target: str, environ: Mapping[str, str], examples: Sequence[tuple[str, str]]
    ) -> None:
        self.listener = listener
        self.target = target
        self.environ = {**environ, "PYTHONDONTWRITEBYTECODE": "1"}  # a .pyc can't distinguish two saves within a second
        self.examples = examples
        # A SimpleQueue, because a signal handler may call put() while this thread is inside get().
        self.events: queue.SimpleQueue[list[str] | Stop] = queue.SimpleQueue()
        self.leaving: list[Child] = []

    def run(self) -> int:
        """Serve until a signal arrives. Returns the exit status."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self.events.put(Stop()))
        with watching(self.events):
            self.child = self.spawn("--strict")
            status = self.loop()
            self.stop()
        return status

    def loop(self) -> int:
        waiting = False
        while True:
            try:
                event = self.events.get(timeout=0.2)
            except queue.Empty:
                self.forget_ended()
                if self.child.process.poll() == BAD_SETTING:
                    return BAD_SETTING
                waiting = waiting or self.look_after_child()
                continue
            if isinstance(event, Stop):
                return 0
            self.reload(event)
            waiting = False

    def spawn(self, *options: str) -> Child:
        fd = self.listener.fileno()
        command: list[str | Path] = [sys.executable, ROOT / "narserve" / "dev" / "child.py", "--fd", str(fd)]
        command += ["--host", self.listener.getsockname()[0], "--target", self.target]
        command += ["--examples", json.dumps(self.examples), *options]
        # Each child has its own process group, so that Ctrl-C reaches only the supervisor, which stops the children gracefully.
        return Child(
            subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[fd], env=self.environ, cwd=ROOT, process_group=0)
        )

    def reload(self, changed: Sequence[str]) -> None:
        say(f"changed: {', '.join(changed)}")
        if "pyproject.toml" in changed:
            say("pyproject.toml changed; restart ./start-dev to install its dependencies")
        self.child.release()
        self.leaving.append(self.child)
        self.child = self.spawn()

    def look_after_child(self) -> bool:
        """Replace a child that ended by itself. Returns True if the replacement has to wait for a change."""
        if (status := self.child.process.poll()) is None:
            return False
        say(f"the server process exited with status {status}")
        self.child.release()
        if self.child.age < WORTH_RESTARTING_SECONDS:
            say("it restarts when a file is saved; requests wait until then")
            return True
        self.child = self.spawn()
        return False

    def forget_ended(self) -> None:
        self.leaving = [child for child in self.leaving if child.process.poll() is None]

    def stop(self) -> None:
        """Let the children finish. A second signal or a timeout kills them."""
        self.child.release()
        self.leaving.append(self.child)
        deadline = time.monotonic() + DRAIN_SECONDS + 2
        while self.leaving and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                if isinstance(self.events.get(timeout=0.02), Stop):
                    break
            self.forget_ended()
        for child in self.leaving:
            child.process.kill()
            child.process.wait()


@contextlib.contextmanager
def watching(events: queue.SimpleQueue[list[str] | Stop]) -> Iterator[None]:
    """Put an event for every change of the project: a list of paths below ROOT."""
    stop = threading.Event()

    def report(paths: Iterable[Path], only: Sequence[str], *, recursive: bool) -> None:
        watcher = watch(
            *paths, watch_filter=DefaultFilter(), debounce=100, step=25, stop_event=stop, recursive=recursive
        )
        for changes in watcher:
            names = sorted({Path(path).relative_to(ROOT).as_posix() for _, path in changes})
            if names := [name for name in names if not only or name in only]:
                events.put(names)

    # Files are watched through their directory: if an editor saves by renaming, a watch on the file would stay on the old one.
    threads = [
        threading.Thread(target=report, args=[[ROOT / name for name in TREES], ()], kwargs={"recursive": True}),
        threading.Thread(target=report, args=[[ROOT], FILES], kwargs={"recursive": False}),
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def public_url(url: str) -> str:
    """Return a store URL to print: without user, password, and the query, which may contain a token."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def say(line: str) -> None:
    sys.stdout.write(f"start-dev: {line}\n")
    sys.stdout.flush()


def fail(line: str) -> NoReturn:
    sys.stderr.write(f"start-dev: {line}\n")
    sys.exit(2)


def main() -> int:
    parser = argparse.ArgumentParser(description="Serve this checkout, and restart on every change.")
    parser.add_argument("--target", choices=("vercel", "lambda"), default="vercel")
    target = parser.parse_args().target
    try:
        settings = Settings.from_environ(os.environ)
        Deployment.read(ROOT)
        listener = listen(settings.host, settings.port)
    except (SettingsError, VercelJsonError) as error:
        fail(str(error))
    except OSError as error:
        fail(explain(error, settings.host, settings.port, address_setting(os.environ)))
    with listener:
        if is_set("NAR_CACHE_URL") or is_set("NIX_CACHE_URL"):
            return serve(listener, target, settings.host, settings.cache_urls)
        with tempfile.TemporaryDirectory(prefix="nar-serve-demo-") as directory:
            demo = build_demo(ROOT, Path(directory))
            # With two stores there is no default key. Both keys are set, so that signatures are checked as in a deployment.
            os.environ.setdefault("NAR_TRUSTED_PUBLIC_KEYS", f"{demo.public_key} {DEFAULT_PUBLIC_KEY}")
            urls = (Path(directory).as_uri(), DEFAULT_CACHE_URL)
            return serve(listener, target, settings.host, urls, demo.examples)


def is_set(name: str) -> bool:
    return bool(os.environ.get(name, "").strip())


def serve(
    listener: socket.socket,
    target: str,
    host: str,
    cache_urls: Sequence[str],
    examples: Sequence[tuple[str, str]] = (),
) -> int:
    origin = f"http://{url_host(host)}:{listener.getsockname()[1]}"
    say(f"{origin}/ serves {', '.join(map(public_url, cache_urls))}")
    for _, path in examples[:1]:
        say(f"{origin}{path} is in the demo cache")
    if target == "lambda":
        say("emulating AWS Lambda behind API Gateway; responses are limited to 4 MiB")
    say("press Ctrl-C to stop")
    return Supervisor(listener, target, {**os.environ, "NAR_CACHE_URL": " ".join(cache_urls)}, examples).run()


if __name__ == "__main__":
    sys.exit(main())
