"""``nar-serve serve``: starts the HTTP server."""

import logging
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
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
from narserve.server.listener import address_setting, explain, listen, url_host
from narserve.session.session import read_settings

log = logging.getLogger("narserve.server")

# The kernel closes a connection if the client acknowledges no byte for this long, even after the server has closed the socket.
STALL_SECONDS = 300

_OPTIONS = {"listen_on": "--listen", "workers": "--workers", "threads": "--threads"}
_VARIABLES = {"listen_on": "HTTP_ADDR", "workers": "NAR_WORKERS", "threads": "NAR_THREADS"}


@click.command(short_help="Serve every file of every store path over HTTP.")
@click.option(
    "--store", "stores", multiple=True, metavar="URL", help="A binary cache. May be repeated.  [env: NAR_CACHE_URL]"
)
@click.option("--cache-dir", metavar="DIR|off", help="Directory that caches unpacked archives.  [env: NAR_CACHE_DIR]")
@click.option(
    "--listen", "listen_on", metavar="[HOST]:PORT", help="Address to listen on.  [env: HTTP_ADDR; default: :8383]"
)
@click.option("--workers", metavar="N", help="Number of worker processes.  [env: NAR_WORKERS; default: 2]")
@click.option("--threads", metavar="N", help="Concurrent requests per worker.  [env: NAR_THREADS; default: 32]")
def serve(stores: tuple[str, ...], cache_dir: str | None, **options: str | None) -> None:
    """Serve every file of every store path of the binary caches, until stopped by a signal.

    \b
      nar-serve serve --store https://cache.example.org --store https://cache.nixos.org
      NAR_METRICS=on NAR_LOG_FORMAT=json nar-serve serve --listen 127.0.0.1:8383

    Each request is logged to standard output, and problems to standard error. All other settings are environment
    variables.

    After SIGTERM or Ctrl-C, responses in progress may take up to 60 seconds to complete (NAR_STOP_SECONDS); a second
    signal stops immediately. SIGHUP starts new workers, and lets the old workers finish their requests.
    """
    settings = _read_settings(stores, cache_dir, options)
    run = _server()
    configure_logging(settings.log_format)
    configure_access_log(settings.log_format)
    _try_out(settings)
    listener = _listener(settings, _address_setting(options))
    with _metrics_directory(settings):
        log.info("%s", _greeting(settings, listener))
        run(settings, listener)


def _read_settings(stores: tuple[str, ...], cache_dir: str | None, options: Mapping[str, str | None]) -> Settings:
    """Read the settings, with the options in place of their environment variables.

    Raises SettingsError, which names the option instead of the variable if the user gave the option.
    """
    given = {name: text for name, text in options.items() if text is not None}
    os.environ.update({_VARIABLES[name]: text for name, text in given.items()})
    try:
        return replace(read_settings(stores, cache_dir), warnings=())  # read_settings has printed the warnings
    except SettingsError as error:
        message = str(error)
        for name in given:
            if re.match(rf"{_VARIABLES[name]}\b", message):
                message = _OPTIONS[name] + message.removeprefix(_VARIABLES[name])
        raise SettingsError(message) from error


def _address_setting(options: Mapping[str, str | None]) -> str:
    """Return the option or variable that determines the address."""
    if options["listen_on"] is not None:
        return _OPTIONS["listen_on"]
    return address_setting(os.environ)


def _server() -> Callable[[Settings, socket.socket], NoReturn]:
    try:
        from narserve.server.master import run
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("gunicorn"):
            raise
        raise SettingsError(f"nar-serve serve needs gunicorn; {how_to_install('server')}") from error
    return run


def _try_out(settings: Settings) -> None:
    """Make the application once, to raise SettingsError and log warnings once instead of in every worker.

    This happens in a child process, so that no thread or connection of a library exists when the workers are forked.
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


def _listener(settings: Settings, setting: str) -> socket.socket:
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        raise SettingsError(explain(error, settings.host, settings.port, setting)) from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # only on Linux; accepted connections inherit it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALL_SECONDS * 1000)
    return listener


def _greeting(settings: Settings, listener: socket.socket) -> str:
    url = f"http://{url_host(settings.host)}:{listener.getsockname()[1]}/"
    return f"serving {url} with {settings.workers} workers of {settings.threads} threads"


@contextmanager
def _metrics_directory(settings: Settings) -> Iterator[None]:
    """Provide a directory, in memory if possible, where the workers store their metrics. /metrics adds these up."""
    if not settings.metrics:
        yield
        return
    shared_memory = Path("/dev/shm")  # noqa: S108  only the parent of a private directory
    parent = shared_memory if os.access(shared_memory, os.W_OK) else None
    directory = tempfile.mkdtemp(prefix="nar-serve-metrics-", dir=parent)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
    owner = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == owner:  # workers run this too when they end
            shutil.rmtree(directory, ignore_errors=True)
