"""``nar-serve docker-volume``: the volume plugin for Docker, and its status."""

import json
import logging
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import click

from api.telemetry.logs import configure_logging
from narcore.errors import MountError
from narmount.docker.app import create_docker_app
from narmount.docker.driver import Driver
from narmount.docker.records import Records
from narmount.docker.service import Service, ask, block_signals, sole_owner, wait_for_signal
from narmount.metrics import check_metrics, serve_metrics, volume_metrics
from narmount.volumes import OverlayFlusher, Volumes
from narmount.volumes.caches import parse_caches
from narserve.session.pluginoptions import cache_option, json_option, metrics_option, run_dir_option
from narserve.session.session import read_settings
from narserve.terminal.statusoutput import STATUS_SECONDS, cache_statuses, local_time, plugin_text, print_status

SOCKET = Path("/run/docker/plugins/nar-serve.sock")
STATE_DIR = Path("/var/lib/nar-serve/docker")

HELP = f"""Run a volume plugin until a signal stops it. The plugin provides volumes of store paths to Docker containers.

\b
  nar-serve mount --allow-other /srv/nix-store
  nar-serve docker-volume --cache main=/srv/nix-store
  docker run --rm --volume-driver nar-serve -v /nix/store debian /nix/store/<hash>-hello-2.12/bin/hello

Each --cache is a directory where nar-serve mount shows a binary cache. A volume shows the first cache, unless its options select
another cache. The files that a container writes stay in its volume.

\b
Options of docker volume create -d nar-serve:
  -o cache=NAME       the cache to show; the default is the first
  -o mode=ro          a read-only volume; use it with -v NAME:/nix/store:ro,nocopy
  -o group=GID        the group that may write, besides root
  -o prefetch=PATHS   store paths to fetch in advance, together with all store paths that they refer to;
                      separated by commas

The plugin needs root, and must share its mounts with dockerd (no PrivateMounts= or similar in its systemd unit). Volumes are stored
in {STATE_DIR}. Running containers are not affected when the plugin stops or restarts.
"""


@click.command("docker-volume", short_help="Run the Docker volume plugin, or show its status.", help=HELP)
@cache_option
@click.option(
    "--socket",
    "path",
    type=click.Path(path_type=Path),
    default=SOCKET,
    show_default=True,
    help="The socket that dockerd connects to.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    default=STATE_DIR,
    show_default=True,
    help="The directory of the volumes.",
)
@run_dir_option
@metrics_option
@click.option("--status", is_flag=True, help="Show the caches and volumes of the running plugin.")
@json_option
def docker_volume(
    caches: tuple[str, ...],
    path: Path,
    state_dir: Path,
    run_dir: str | None,
    metrics: str,
    status: bool,
    as_json: bool,
) -> None:
    path, state_dir = path.absolute(), state_dir.absolute()
    if as_json and not status:
        raise click.UsageError("--json needs --status")
    if status:
        _show(path, as_json=as_json)
        return
    if run_dir:
        os.environ["NAR_RUN_DIR"] = run_dir
    settings = read_settings((), None)
    directories = parse_caches(caches)
    if os.geteuid() != 0:
        raise MountError("mounting volumes and serving dockerd need root; use sudo")
    if metrics:
        check_metrics(metrics)
    configure_logging(settings.log_format)
    _run(path, state_dir, settings.run_dir, directories, metrics)


def _run(path: Path, state_dir: Path, run_dir: Path, directories: Mapping[str, Path], metrics: str) -> None:
    block_signals()
    with ExitStack() as stack:
        stack.enter_context(sole_owner(state_dir))
        volumes = Volumes(state_dir / "volumes", directories, run_dir)
        driver = Driver(volumes, Records(state_dir / "records"), state_dir / "mounts", tuple(directories))
        driver.recover()
        volumes.warn_of_dead_caches()
        since = time.time()

        def status() -> Mapping[str, object]:
            return {
                "pid": os.getpid(),
                "since": since,
                "state_dir": str(state_dir),
                "caches": cache_statuses(directories, run_dir),
                "volumes": driver.status(),
            }

        app, calls = create_docker_app(driver, status)
        if metrics:
            serve_metrics(metrics, lambda: [*volume_metrics(driver.published()), *calls.families()])
        for name in directories:
            flusher = OverlayFlusher(volumes, name)
            flusher.start()
            stack.callback(flusher.close)
        service = Service(path)
        service.start(app)
        stack.callback(service.close)
        _log(f"serving volumes of {', '.join(f'{name} ({where})' for name, where in directories.items())} at {path}")
        _log(f"{wait_for_signal().name}: stopping; running containers keep their volumes")


def _log(text: str) -> None:
    logging.getLogger("narmount.docker").info("%s", text)


# --- the status


def _show(path: Path, *, as_json: bool) -> None:
    answer = ask(path, STATUS_SECONDS)
    try:
        status = json.loads(answer)
        title = f"process {status['pid']}, since {local_time(status['since'])}, volumes in {status['state_dir']}"
        text = plugin_text(title, status, _volume_line)
        if not status["volumes"]:
            text += "no volumes; create one: docker volume create -d nar-serve\n"
    except (ValueError, KeyError, TypeError) as error:
        raise MountError(
            f"the program at {path} is not nar-serve docker-volume of this version; restart the plugin"
        ) from error
    print_status(status, text, as_json=as_json)


def _volume_line(volume: Mapping[str, object]) -> str:
    return f"volume {volume['name']}  {volume['mode']} of {volume['cache']}, {volume['users']} users"
