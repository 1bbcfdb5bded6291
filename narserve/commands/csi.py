"""``nar-serve csi``: the CSI plugin for Kubernetes, and its status."""

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

from narcore.errors import MountError, SettingsError, how_to_install
from narmount.fuse.mountinfo import mounts
from narmount.metrics import check_metrics, serve_metrics, volume_metrics
from narmount.volumes import OverlayFlusher, Volume, Volumes
from narmount.volumes.caches import parse_caches
from narserve.session.pluginoptions import cache_option, json_option, metrics_option, run_dir_option
from narserve.session.session import read_settings
from narserve.terminal.exits import NO, TROUBLE
from narserve.terminal.statusoutput import STATUS_SECONDS, cache_statuses, plugin_text, print_status

DRIVER_NAME = "store.nar-serve.dev"
STATE_DIR = Path("/var/lib/nar-serve/csi")
KUBELET_DIR = Path("/var/lib/kubelet")

# CSI, GetPluginInfoResponse.name: 63 characters of domain names.
_DRIVER = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9.-]{0,61}[a-zA-Z0-9])?")
_NODE = re.compile(r"[!-~]{1,192}")

HELP = """Run a CSI plugin until a signal stops it. The plugin provides volumes of store paths to the pods of this Kubernetes node.

\b
  nar-serve mount --allow-other /var/lib/nar-serve/main
  nar-serve csi --cache main=/var/lib/nar-serve/main
  nar-serve csi --cache main=/var/lib/nar-serve/main --status

Each --cache is a directory where nar-serve mount shows a binary cache. A volume shows the first cache, unless its pod selects
another cache. Each volume is a CSI ephemeral volume: it exists as long as its pod, and only this pod sees the files that it writes.

\b
A pod can set these volumeAttributes:
  cache: NAME         the cache to show; the default is the first
  mode: MODE          ro (read-only), or overlay (writes are removed with the pod); the default is overlay, unless the
                      volume has readOnly: true
  group: "GID"        the group that may write, besides root; the default is the fsGroup of the pod
  prefetch: PATHS     store paths to fetch in advance, together with all store paths that they refer to; separated by
                      white space or commas

The name of the plugin (--driver-name) must be the name of the CSIDriver object. The plugin needs root, and its
mounts must be visible to the node (mountPropagation: Bidirectional); deploy/kubernetes sets this up. Running pods are not affected
when the plugin stops or restarts.
"""


@click.command(short_help="Run the CSI plugin for Kubernetes, or show its status.", help=HELP)
@cache_option
@click.option("--driver-name", default=DRIVER_NAME, show_default=True, help="The name of the CSIDriver object.")
@click.option(
    "--endpoint",
    envvar="CSI_ENDPOINT",
    metavar="unix://PATH",
    help="The socket path that kubelet uses.  [env: CSI_ENDPOINT; default: plugins/DRIVER-NAME/csi.sock below --kubelet-dir]",
)
@click.option(
    "--node-id",
    envvar=["NODE_NAME", "KUBE_NODE_NAME"],
    metavar="NAME",
    help="The name of this node.  [env: NODE_NAME; default: the host name]",
)
@click.option(
    "--kubelet-dir",
    type=click.Path(path_type=Path),
    default=KUBELET_DIR,
    show_default=True,
    help="The directory of kubelet.",
)
@click.option(
    "--no-register",
    is_flag=True,
    help="Don't register with kubelet. Use this option if another program registers the plugin, or if there is no kubelet.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    default=STATE_DIR,
    show_default=True,
    help="The directory for the state of volumes and for the files that pods write. It must be on ext4, xfs or similar.",
)
@run_dir_option
@metrics_option
@click.option(
    "--status",
    is_flag=True,
    help="Show the status of the running plugin; the exit code is 1 if it is not ready, and 3 if it does not answer.",
)
@json_option
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
        raise click.UsageError("--json needs --status")
    if run_dir:
        os.environ["NAR_RUN_DIR"] = run_dir
    settings = read_settings((), None)
    _need_grpc()
    if not _DRIVER.fullmatch(driver_name):
        raise SettingsError(f"--driver-name {driver_name!r} is not a domain name of at most 63 characters")
    path = _socket(endpoint) if endpoint else kubelet_dir.absolute() / "plugins" / driver_name / "csi.sock"
    directories = parse_caches(caches)
    volumes = Volumes(state_dir.absolute(), directories, settings.run_dir, within=kubelet_dir)
    if status:
        _show(path, volumes, directories, settings.run_dir, as_json=as_json)
        return
    node = node_id or socket.gethostname()
    if not _NODE.fullmatch(node):
        raise SettingsError(f"--node-id {node!r} is not a valid node name")
    if os.geteuid() != 0:
        raise MountError("mounting volumes needs root; in Kubernetes, run the container as privileged")
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
    stop = _stop_event()
    calls = CsiCalls()
    server = csi_server(path, CsiPlugin(name, node_id, kubelet_dir, caches), volumes, calls)
    with ExitStack() as stack:
        volumes.recover()
        volumes.warn_of_dead_caches()
        if metrics:
            port = serve_metrics(metrics, lambda: [*volume_metrics(volumes.published()), *calls.families()])
            log.info("serving metrics on port %d", port)
        for cache in caches:
            flusher = OverlayFlusher(volumes, cache)
            flusher.start()
            stack.callback(flusher.close)
        server.start()
        stack.callback(server.stop)
        if registry is not None:
            registration = registration_server(registration_path(registry, name), name, path, calls)
            registration.start()
            stack.callback(registration.stop)  # stops before the other server
        log.info("%s: serving volumes of the caches %s for node %s at %s", name, ", ".join(caches), node_id, path)
        stop.wait()
        log.info("stopping; running pods keep their volumes")
    if calls.running():
        log.warning("stopping although %d calls are still running", calls.running())
        os._exit(0)  # Python would wait for their threads, which may wait for a mount that hangs


def _stop_event() -> threading.Event:
    """Return an event that SIGTERM or Ctrl-C sets. A second signal ends the process immediately."""
    stop = threading.Event()

    def end(number: int, _: object) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    return stop


def _need_grpc() -> None:
    try:
        import grpc  # noqa: F401
        from google import protobuf  # noqa: F401
    except ModuleNotFoundError as error:
        raise SettingsError(f"nar-serve csi needs grpcio and protobuf; {how_to_install('csi')}") from error


def _socket(endpoint: str) -> Path:
    """Return the path of an endpoint: unix:///path or unix:/path, as in the specification. Raises SettingsError."""
    path = endpoint.removeprefix("unix://") if endpoint.startswith("unix://") else endpoint.removeprefix("unix:")
    if not path.startswith("/"):
        raise SettingsError(f"--endpoint {endpoint!r} is not unix://PATH with an absolute path")
    return Path(path)


def _log_to_stderr() -> None:
    """Log to standard error, with a line for each volume that is published or unpublished."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    for name in ("narcore", "narmount"):
        logging.getLogger(name).handlers.clear()  # the handlers of the command line would repeat the lines
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
