"""What ``nar-serve mount --status`` shows: what the workers say of themselves, for people or for programs."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import click

from narcore.errors import MountError
from narcore.sizes import human_size
from narmount.daemon.control import control_path, is_abandoned, read_status
from narmount.fuse.mountinfo import is_ours, mounts, ours_at
from narserve.terminal.exits import TROUBLE, print_message
from narserve.terminal.output import StandardOutput

STATUS_SECONDS = 5.0
UPGRADE = (
    "an earlier version of nar-serve started this mount; unmount it and mount it again, since its worker can't restart"
)

_EARLIER = b"narcore.mount."  # the modules of the holder and the worker were there, and `python -m` names them


def mode_text(mode: object, reason: object) -> str:
    """Who reads the files, and why if it is not the kernel."""
    return f"{mode} ({reason})" if reason else f"{mode}"


def show_status(run_dir: Path, target: Path | None, *, as_json: bool) -> None:
    """Of the mount at ``target``, or of all; ends with TROUBLE if one does not answer."""
    if target is not None:
        found = [_status_at(run_dir, target)]
    else:
        found = [_status(path, name) for path, name in _sockets(run_dir).items()]
    out = StandardOutput()
    if as_json:
        out.write(json.dumps(found if target is None else found[0]).encode() + b"\n")
    elif not found:
        print_message(_nothing(run_dir))
    else:
        out.write("\n".join(map(_for_people, found)))
    out.flush()
    if any("error" in one for one in found):
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
        return f"nothing of nar-serve is mounted there; nar-serve mount {target} does"
    return f"it is mounted, but not with the NAR_RUN_DIR {run_dir}; --run-dir DIR names another, such as its user's"


def _nothing(run_dir: Path) -> str:
    """What to say if no socket is there. A mount of another user, or of a service, has another run_dir."""
    others = sorted({str(mounted.target) for mounted in mounts() if is_ours(mounted)})
    if not others:
        return "nothing is mounted; nar-serve mount DIR does"
    return f"nothing is mounted with the NAR_RUN_DIR {run_dir}; with another one (--run-dir DIR): {' '.join(others)}"


def _sockets(run_dir: Path) -> dict[Path, str]:
    """The control sockets in it, and what each of them is for. One that was left behind by what is mounted no more is not."""
    targets = {control_path(run_dir, mounted.target): str(mounted.target) for mounted in mounts() if is_ours(mounted)}
    sockets = sorted((run_dir / "mounts").glob("*.sock"))
    return {path: targets.get(path, str(path)) for path in sockets if path in targets or not is_abandoned(path)}


def _status(path: Path, name: str) -> dict[str, object]:
    try:
        return with_upgrade(read_status(path, STATUS_SECONDS))
    except MountError as error:
        return with_upgrade({"target": name, "dead": is_abandoned(path), "error": str(error)})


def with_upgrade(status: dict[str, object], proc: Path = Path("/proc")) -> dict[str, object]:
    """Add ``upgrade``, what to do, to the status of a mount whose holder or worker has the earlier module layout.

    A mount that does not answer names no processes: its holder is found by its command line.
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
    """Return whether an argument of the process begins with ``prefix``, and ``text`` is in its command line."""
    try:
        data = cmdline.read_bytes()
    except OSError:  # the process has ended, or /proc is mounted with hidepid
        return False
    return text in data and any(argument.startswith(prefix) for argument in data.split(b"\0"))


def _for_people(status: Mapping[str, object]) -> str:
    if "error" in status:
        label = "dead" if status.get("dead") else "no answer"
        return f"{status['target']}\n  {label:12} {status.get('upgrade') or status['error']}\n"
    rows = {
        "mode": mode_text(status.get("mode"), status.get("mode_reason")),
        "stores": " ".join(map(str, _list(status, "stores"))),
        "cache": _cache(_mapping(status, "cache")),
        "since": _since(status),
        "processes": f"holder {status.get('holder_pid')}, worker {status.get('worker_pid')}",
        "store paths": f"{status.get('paths_known')} known, {status.get('prefetch_pending')} to be fetched ahead",
        "look-ups": ", ".join(f"{count} {outcome}" for outcome, count in _mapping(status, "lookups").items()),
        "reads": f"{_size(status.get('read_bytes'))}; files left to the kernel to read: {status.get('passthrough_opens')}",
        "requests": f"{sum(_counts(status))}; waiting for a store: {status.get('waiting')}, "
        f"failed: {status.get('errors')}, interrupted by a signal: {status.get('interrupts')}",
    }
    if failed := _mapping(status, "last_error"):
        rows["last failure"] = f"{_moment(failed.get('at'))}, {failed.get('text')}"
    if status.get("early"):
        rows["early"] = "files are read before all of the archive has been verified"
    if upgrade := status.get("upgrade"):
        rows["upgrade"] = str(upgrade)
    if not status.get("resend"):
        rows["restart"] = (
            "this kernel can't send requests again (Linux 6.9 can): those under way hang when the worker dies"
        )
    return f"{status.get('target')}\n" + "".join(f"  {label:12} {text}\n" for label, text in rows.items() if text)


def _since(status: Mapping[str, object]) -> str:
    when, restarts = _moment(status.get("since")), status.get("restarts")
    return f"{when}; restarts of the worker: {restarts}" if restarts else when


def _moment(seconds: object) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if isinstance(seconds, int | float) else "?"


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
