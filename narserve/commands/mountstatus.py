"""``nar-serve mount --status``: shows what the workers of mounts report, as text or as JSON."""

import json
from collections.abc import Mapping
from pathlib import Path

import click

from narcore.errors import MountError
from narcore.sizes import human_size
from narmount.daemon.control import control_path, is_abandoned, read_status
from narmount.fuse.mountinfo import is_ours, mounts, ours_at
from narserve.terminal.exits import TROUBLE, print_message
from narserve.terminal.statusoutput import STATUS_SECONDS, local_time, print_status

UPGRADE = (
    "an earlier version of nar-serve started this mount; unmount it and mount it again, since its worker can't restart"
)

# The holder and the worker of an earlier version were started with `python -m` and a module of this package.
_EARLIER = b"narcore.mount."


def mode_text(mode: object, reason: object) -> str:
    """Return how files are read. If the kernel does not read them itself, the text contains the reason."""
    return f"{mode} ({reason})" if reason else f"{mode}"


def show_status(run_dir: Path, target: Path | None, *, as_json: bool) -> None:
    """Print the status of the mount at ``target``, or of all mounts. Exits with TROUBLE if a mount does not answer."""
    if target is not None:
        found = [_status_at(run_dir, target)]
    else:
        found = [_status(path, name) for path, name in _sockets(run_dir).items()]
    if not found and not as_json:
        print_message(_nothing(run_dir))
    print_status(found if target is None else found[0], "\n".join(map(_mount_text, found)), as_json=as_json)
    if any("error" in status for status in found):
        raise click.exceptions.Exit(TROUBLE)


def _status_at(run_dir: Path, target: Path) -> dict[str, object]:
    path = control_path(run_dir, target)
    try:
        return with_upgrade(read_status(path, STATUS_SECONDS))
    except MountError as error:
        is_missing = isinstance(error.__cause__, FileNotFoundError)
        why = _why_missing(run_dir, target) if is_missing else str(error)
        return with_upgrade({"target": str(target), "dead": is_abandoned(path), "error": why})


def _why_missing(run_dir: Path, target: Path) -> str:
    if ours_at(target) is None:
        return f"nar-serve has not mounted anything there; mount it: nar-serve mount {target}"
    return f"it is mounted, but its NAR_RUN_DIR is not {run_dir}; use --run-dir with the NAR_RUN_DIR of that mount"


def _nothing(run_dir: Path) -> str:
    """Return the message if no socket was found. Mounts of other users and of services have another ``run_dir``."""
    others = sorted({str(mounted.target) for mounted in mounts() if is_ours(mounted)})
    if not others:
        return "nothing is mounted; mount a directory: nar-serve mount DIR"
    found = f"nothing is mounted with NAR_RUN_DIR={run_dir}"
    return f"{found}; set --run-dir to the NAR_RUN_DIR of one of these mounts: {' '.join(others)}"


def _sockets(run_dir: Path) -> dict[Path, str]:
    """Return the control sockets, each with the target of its mount. Sockets of mounts that have ended are omitted."""
    targets = {control_path(run_dir, mounted.target): str(mounted.target) for mounted in mounts() if is_ours(mounted)}
    sockets = sorted((run_dir / "mounts").glob("*.sock"))
    return {path: targets.get(path, str(path)) for path in sockets if path in targets or not is_abandoned(path)}


def _status(path: Path, name: str) -> dict[str, object]:
    try:
        return with_upgrade(read_status(path, STATUS_SECONDS))
    except MountError as error:
        return with_upgrade({"target": name, "dead": is_abandoned(path), "error": str(error)})


def with_upgrade(status: dict[str, object], proc: Path = Path("/proc")) -> dict[str, object]:
    """Add ``upgrade``, the next step for the user, to the status of a mount that an earlier version of nar-serve started.

    If a mount does not answer, its process ids are unknown, so its holder is found by the command line.
    """
    if "error" in status:
        is_earlier = bool(earlier_holders(str(status["target"]), proc))
    else:
        pids = (status.get("holder_pid"), status.get("worker_pid"))
        is_earlier = any(_has_argument(proc / str(pid) / "cmdline", _EARLIER) for pid in pids)
    return {**status, "upgrade": UPGRADE} if is_earlier else status


def earlier_holders(target: str, proc: Path = Path("/proc")) -> list[int]:
    """Return the process ids of holders that an earlier version started for ``target``. Their options are an argument in JSON."""
    option = f'"target": {json.dumps(target)}'.encode()
    found = [path for path in proc.glob("[0-9]*/cmdline") if _has_argument(path, _EARLIER + b"holder", option)]
    return [int(path.parent.name) for path in found]


def _has_argument(cmdline: Path, prefix: bytes, text: bytes = b"") -> bool:
    """Return whether the process has an argument that begins with ``prefix``, and its command line contains ``text``."""
    try:
        data = cmdline.read_bytes()
    except OSError:  # the process has ended, or /proc is mounted with hidepid
        return False
    return text in data and any(argument.startswith(prefix) for argument in data.split(b"\0"))


def _mount_text(status: Mapping[str, object]) -> str:
    if "error" in status:
        label = "dead" if status.get("dead") else "no answer"
        return f"{status['target']}\n  {label:12} {status.get('upgrade') or status['error']}\n"
    rows = {
        "mode": mode_text(status.get("mode"), status.get("mode_reason")),
        "stores": " ".join(map(str, _list(status, "stores"))),
        "cache": _cache(_mapping(status, "cache")),
        "since": _since(status),
        "processes": f"holder {status.get('holder_pid')}, worker {status.get('worker_pid')}",
        "store paths": f"{status.get('paths_known')} known, {status.get('prefetch_pending')} to prefetch",
        "lookups": ", ".join(f"{count} {outcome}" for outcome, count in _mapping(status, "lookups").items()),
        "reads": f"{_size(status.get('read_bytes'))}; files read by the kernel itself: {status.get('passthrough_opens')}",
        "requests": f"{sum(_counts(status))}; waiting for a store: {status.get('waiting')}, "
        f"failed: {status.get('errors')}, interrupted by a signal: {status.get('interrupts')}",
    }
    if failed := _mapping(status, "last_error"):
        rows["last failure"] = f"{local_time(failed.get('at'))}, {failed.get('text')}"
    if status.get("early"):
        rows["early"] = "files are readable before the whole archive is verified"
    if upgrade := status.get("upgrade"):
        rows["upgrade"] = str(upgrade)
    if not status.get("resend"):
        rows["restart"] = (
            "this kernel can't resend requests (Linux 6.9 can), so requests in progress hang when the worker dies"
        )
    return f"{status.get('target')}\n" + "".join(f"  {label:12} {text}\n" for label, text in rows.items() if text)


def _since(status: Mapping[str, object]) -> str:
    when, restarts = local_time(status.get("since")), status.get("restarts")
    return f"{when}; restarts of the worker: {restarts}" if restarts else when


def _cache(cache: Mapping[str, object]) -> str:
    return f"{_size(cache.get('bytes'))} of {_size(cache.get('limit'))} in {cache.get('directory')}" if cache else ""


def _counts(status: Mapping[str, object]) -> list[int]:
    return [count for count in _mapping(status, "counts").values() if isinstance(count, int)]


def _size(value: object) -> str:
    return human_size(value) if isinstance(value, int) else "?"


def _mapping(status: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = status.get(key)
    return value if isinstance(value, dict) else {}


def _list(status: Mapping[str, object], key: str) -> list[object]:
    value = status.get(key)
    return value if isinstance(value, list) else []
