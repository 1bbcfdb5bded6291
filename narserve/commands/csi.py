"""The command line of ``nar-serve csi``. ``narserve.program`` finds it by the entry point in pyproject.toml."""

import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import click

from narcore.errors import MountError, SettingsError
from narmount.fuse.mountinfo import mounts
from narmount.metrics import check_metrics, serve_metrics, volume_metrics
from narmount.volumes import Volume, Volumes, Watcher
from narmount.volumes.caches import parse_caches
from narserve.commands.statusoutput import STATUS_SECONDS, cache_statuses, plugin_text, print_status
from narserve.session.session import read_settings
from narserve.terminal.exits import NO, TROUBLE

DRIVER_NAME = "store.nar-serve.dev"
STATE_DIR = Path("/var/lib/nar-serve/csi")
KUBELET_DIR = Path("/var/lib/kubelet")

# CSI, GetPluginInfoResponse.name: 63 characters of domain names.
_DRIVER = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9.-]{0,61}[a-zA-Z0-9])?")
_NODE = re.compile(r"[!-~]{1,192}")

HELP = """Store paths as volumes of Kubernetes: a CSI plugin for the pods of this node, until a signal ends it.

\b
  nar-serve mount --allow-other /var/lib/nar-serve/main
  nar-serve csi --cache main=/var/lib/nar-serve/main
  nar-serve csi --cache main=/var/lib/nar-serve/main --status

Each cache is a directory where nar-serve mount shows a binary cache; volumes are of the first one, unless a pod names another. A
pod has its volume as long as it lives (a CSI ephemeral volume), and what it writes there is its own.

\b
What a pod can say, as volumeAttributes:
  cache: NAME         another cache than the first one
  mode: ro            nothing can be written (overlay: what is written is gone with the pod; the default, without readOnly)
  group: "GID"        who may write besides root; by default the fsGroup of the pod
  prefetch: PATHS     store paths, with white space or commas between them, to be fetched ahead with all that they refer to

The name of the plugin has to be that of the CSIDriver object. It needs root, and to mount where the node sees it
(mountPropagation: Bidirectional); deploy/kubernetes has all that. Pods go on when this is stopped or started again.
"""


@click.command(short_help="Store paths as volumes of Kubernetes (CSI), or show which there are.", help=HELP)
@click.option("--cache", "caches", multiple=True, metavar="NAME=DIR", help="A mount to make volumes of; repeatable.")
@click.option("--driver-name", default=DRIVER_NAME, show_default=True, help="As the CSIDriver object has it.")
@click.option(
    "--endpoint",
    envvar="CSI_ENDPOINT",
    metavar="unix://PATH",
    help="The socket, as kubelet sees it.  [env: CSI_ENDPOINT; default: plugins/DRIVER-NAME/csi.sock below --kubelet-dir]",
)
@click.option(
    "--node-id", envvar=["NODE_NAME", "KUBE_NODE_NAME"], metavar="NAME", help="[env: NODE_NAME; default: the host name]"
)
@click.option(
    "--kubelet-dir",
    type=click.Path(path_type=Path),
    default=KUBELET_DIR,
    show_default=True,
    help="Where kubelet mounts.",
)
@click.option("--no-register", is_flag=True, help="Something else tells kubelet, or there is none.")
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    default=STATE_DIR,
    show_default=True,
    help="Where it is kept which volumes there are, and what pods write; on ext4, xfs or the like.",
)
@click.option("--run-dir", metavar="DIR", help="Where the control sockets of mounts are.  [env: NAR_RUN_DIR]")
@click.option("--metrics", metavar="[HOST]:PORT", default="", help="Serve /metrics for Prometheus there.")
@click.option(
    "--status",
    is_flag=True,
    help="Show the plugin that is running; exit code 1: it is not ready, 3: it does not answer.",
)
@click.option("--json", "as_json", is_flag=True, help="With --status: as a JSON object.")
def csi(
    caches: tuple[str, ...],
    driver_name: str,
    endpoint: str | None,
    node_id: str | None,
    kubelet_dir: Path,
    no_register: bool,
    state_dir: Path,
    run_dir: str | None,
    metrics: str,
    status: bool,
    as_json: bool,
) -> None:
    if as_json and not status:
        raise click.UsageError("--json goes with --status")
    if run_dir:
        os.environ["NAR_RUN_DIR"] = run_dir
    settings = read_settings((), None)
    _need_grpc()
    if not _DRIVER.fullmatch(driver_name):
        raise SettingsError(f"--driver-name {driver_name!r} is not a domain name of 63 characters at most")
    path = _socket(endpoint) if endpoint else kubelet_dir.absolute() / "plugins" / driver_name / "csi.sock"
    directories = parse_caches(caches)
    volumes = Volumes(state_dir.absolute(), directories, settings.run_dir, within=kubelet_dir)
    if status:
        _show(path, volumes, directories, settings.run_dir, as_json=as_json)
        return
    node = node_id or socket.gethostname()
    if not _NODE.fullmatch(node):
        raise SettingsError(f"--node-id {node!r} is not the name of a node")
    if os.geteuid() != 0:
        raise MountError("mounting volumes needs root; in Kubernetes, a container that is privileged")
    if metrics:
        check_metrics(metrics)
    _log_to_stderr()
    registry = None if no_register else kubelet_dir.absolute()
    _run(volumes, directories, driver_name, node, path, kubelet_dir.absolute(), registry, metrics)


def _run(
    volumes: Volumes,
    caches: Mapping[str, Path],
    name: str,
    node_id: str,
    path: Path,
    kubelet_dir: Path,
    registry: Path | None,
    metrics: str,
) -> None:
    from narmount.csi.node import CsiPlugin
    from narmount.csi.registration import registration_path, registration_server
    from narmount.csi.server import CsiCalls, csi_server

    log = logging.getLogger("narmount.csi")
    ending = _ending()
    calls = CsiCalls()
    server = csi_server(path, CsiPlugin(name, node_id, kubelet_dir, caches), volumes, calls)
    with ExitStack() as stack:
        volumes.recover()
        volumes.warn_of_dead_caches()
        if metrics:
            port = serve_metrics(metrics, lambda: [*volume_metrics(volumes.published()), *calls.families()])
            log.info("metrics at port %d", port)
        for cache in caches:
            watcher = Watcher(volumes, cache)
            watcher.start()
            stack.callback(watcher.close)
        server.start()
        stack.callback(server.stop)
        if registry is not None:
            registration = registration_server(registration_path(registry, name), name, path, calls)
            registration.start()
            stack.callback(registration.stop)  # the first to go
        log.info("%s: volumes of %s for node %s at %s", name, ", ".join(caches), node_id, path)
        ending.wait()
        log.info("stopping; pods that run go on")
    if calls.under_way():
        log.warning("calls that have not ended are left: %d", calls.under_way())
        os._exit(0)  # Python would wait for their threads, and they may wait for a mount that hangs


def _ending() -> threading.Event:
    """Set by SIGTERM or Ctrl-C. A second one ends the process at once."""
    ending = threading.Event()

    def end(number: int, _: object) -> None:
        if ending.is_set():
            os._exit(128 + number)
        ending.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    return ending


def _need_grpc() -> None:
    try:
        import grpc  # noqa: F401
        from google import protobuf  # noqa: F401
    except ModuleNotFoundError as error:
        raise SettingsError("nar-serve csi needs grpcio and protobuf: pip install 'nar-serve[csi]'") from error


def _socket(endpoint: str) -> Path:
    """As the specification has it: unix:///path, or unix:/path. Raises SettingsError."""
    path = endpoint.removeprefix("unix://") if endpoint.startswith("unix://") else endpoint.removeprefix("unix:")
    if not path.startswith("/"):
        raise SettingsError(f"--endpoint {endpoint!r} is not unix://PATH with an absolute path")
    return Path(path)


def _log_to_stderr() -> None:
    """What is worth a line in a pod's log: each volume that comes and goes."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    for name in ("narcore", "narmount"):
        logging.getLogger(name).handlers.clear()  # those of a command line, which say the same
    for name in ("narmount.csi", "narmount.volumes"):
        logging.getLogger(name).setLevel(logging.INFO)


# --- the status


def _show(path: Path, volumes: Volumes, caches: Mapping[str, Path], run_dir: Path, *, as_json: bool) -> None:
    targets = {mounted.target for mounted in mounts()}
    state = _state(path)
    lists = {
        "caches": cache_statuses(caches, run_dir),
        "volumes": [_volume_status(volume, volume.target in targets) for volume in volumes.list()],
    }
    text = plugin_text(f"plugin {path}  {state}", lists, _volume_line)
    print_status({"endpoint": str(path), "state": state, **lists}, text, as_json=as_json)
    if state != "ready":
        raise click.exceptions.Exit(NO if state == "not ready" else TROUBLE)


def _state(path: Path) -> str:
    from narmount.csi.server import is_ready

    try:
        return "ready" if is_ready(path, STATUS_SECONDS) else "not ready"
    except MountError:
        return "does not answer"


def _volume_status(volume: Volume, is_mounted: bool) -> dict[str, object]:
    fields = {"id": volume.id, "target": str(volume.target), "cache": volume.cache, "mode": volume.mode}
    return fields | {"group": volume.group, "mounted": is_mounted}


def _volume_line(volume: Mapping[str, object]) -> str:
    state = "" if volume["mounted"] else ", not mounted"
    return f"volume {volume['id']}  {volume['cache']}, {volume['mode']}{state}  {volume['target']}"
