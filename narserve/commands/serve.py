"""``nar-serve serve``"""

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import click

from api.factory import create_app
from api.telemetry.accesslog import configure_access_log
from api.telemetry.logs import configure_logging
from narcore.errors import SettingsError, how_to_install
from narcore.settings import Settings
from narserve.server.listener import explain, listen, url_host
from narserve.session.session import read_settings

log = logging.getLogger("narserve.server")

# A client that takes no byte for so long is let go: it would keep a thread for ever.
STALL_SECONDS = 300

_VARIABLES = {"listen_on": "HTTP_ADDR", "workers": "NAR_WORKERS", "threads": "NAR_THREADS"}


@click.command(short_help="Serve every file of every store path over HTTP.")
@click.option("--store", "stores", multiple=True, metavar="URL", help="A binary cache.  [env: NAR_CACHE_URL]")
@click.option("--cache-dir", metavar="DIR|off", help="Where unpacked archives are kept.  [env: NAR_CACHE_DIR]")
@click.option("--listen", "listen_on", metavar="[HOST]:PORT", help="Where to listen.  [env: HTTP_ADDR; default: :8383]")
@click.option("--workers", metavar="N", help="Processes.  [env: NAR_WORKERS; default: 2]")
@click.option("--threads", metavar="N", help="Requests at once in each of them.  [env: NAR_THREADS; default: 32]")
def serve(stores: tuple[str, ...], cache_dir: str | None, **options: str | None) -> None:
    """Serve every file of every store path of the binary caches, until a signal ends it.

    \b
      nar-serve serve --store https://cache.example.org --store https://cache.nixos.org
      NAR_METRICS=on NAR_LOG_FORMAT=json nar-serve serve --listen 127.0.0.1:8383

    One line a request goes to standard output, and what is wrong to standard error. All other settings are environment
    variables.

    SIGTERM and Ctrl-C let what is under way be sent to its end, for 60 seconds at most (NAR_STOP_SECONDS); a second one
    ends it at once. SIGHUP starts new workers, and lets the old ones finish.
    """
    for option, text in options.items():
        if text is not None:
            os.environ[_VARIABLES[option]] = text
    settings = replace(read_settings(stores, cache_dir), warnings=())  # they have been said
    run = _server()
    configure_logging(settings.log_format)
    configure_access_log(settings.log_format)
    _try_out(settings)
    listener = _listener(settings)
    with _metrics_directory(settings):
        log.info("%s", _greeting(settings, listener))
        run(settings, listener)


def _server() -> Callable[[Settings, socket.socket], NoReturn]:
    try:
        from narserve.server.master import run
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("gunicorn"):
            raise
        raise SettingsError(f"nar-serve serve needs gunicorn; {how_to_install('server')}") from error
    return run


def _try_out(settings: Settings) -> None:
    """Raise SettingsError for what a worker could not start with, and log what is to be warned of: once, not once a worker.

    In a child of its own, so that no thread or connection of a library is there when the workers are forked.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            create_app(settings)
        except SettingsError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        problem = answer.read().decode()
    os.waitpid(child, 0)
    if problem:
        raise SettingsError(problem)


def _listener(settings: Settings) -> socket.socket:
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        raise SettingsError(explain(error, settings.host, settings.port)) from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; connections that are accepted have it from here
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALL_SECONDS * 1000)
    return listener


def _greeting(settings: Settings, listener: socket.socket) -> str:
    url = f"http://{url_host(settings.host)}:{listener.getsockname()[1]}/"
    return f"{url} is served by {settings.workers} workers with {settings.threads} threads each"


@contextmanager
def _metrics_directory(settings: Settings) -> Iterator[None]:
    """A directory for the numbers of the workers, which each of them adds up for /metrics. In memory, if there can be one."""
    if not settings.metrics:
        yield
        return
    shared_memory = Path("/dev/shm")  # noqa: S108  only as the parent of a directory of our own
    parent = shared_memory if os.access(shared_memory, os.W_OK) else None
    directory = tempfile.mkdtemp(prefix="nar-serve-metrics-", dir=parent)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
    owner = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == owner:  # a worker comes by here as well when it ends
            shutil.rmtree(directory, ignore_errors=True)
