"""Output of the status of ``mount``, ``csi`` and ``docker-volume``."""

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from narcore.errors import MountError
from narmount.daemon.control import control_path, read_status
from narserve.terminal.output import StandardOutput

STATUS_SECONDS = 5.0  # how long --status waits for a plugin or a mount
CACHE_SECONDS = 2.0  # how long a plugin waits for each of its mounts, which answer immediately or hang


def print_status(status: object, text: str, *, as_json: bool) -> None:
    """Write a status to standard output: ``status`` as one line of JSON, or ``text``."""
    out = StandardOutput()
    out.write(json.dumps(status) + "\n" if as_json else text)
    out.flush()


def plugin_text(
    title: str, status: Mapping[str, list[dict[str, object]]], volume_line: Callable[[Mapping[str, object]], str]
) -> str:
    """Return the status of a plugin for people: a line for the plugin, one for each cache, and one for each volume."""
    lines = [title, *map(_cache_line, status["caches"]), *map(volume_line, status["volumes"])]
    return "".join(f"{line}\n" for line in lines)


def _cache_line(cache: Mapping[str, object]) -> str:
    stores = cache.get("stores")
    names = " ".join(map(str, stores if isinstance(stores, list) else ()))
    text = cache.get("error") or f"{cache['mode']}, {names}"
    return f"cache {cache['name']}  {cache['directory']}  {text}"


def cache_statuses(caches: Mapping[str, Path], run_dir: Path) -> list[dict[str, object]]:
    """Return the status of each mount. All mounts are asked at the same time, so several hanging mounts take no longer than one."""

    def status(name: str) -> dict[str, object]:
        fields: dict[str, object] = {"name": name, "directory": str(caches[name])}
        try:
            answer = read_status(control_path(run_dir, caches[name]), CACHE_SECONDS)
        except MountError as error:
            return fields | {"error": str(error)}
        return fields | {"mode": answer.get("mode"), "stores": answer.get("stores")}

    with ThreadPoolExecutor(len(caches)) as executor:
        return list(executor.map(status, caches))


def local_time(seconds: object) -> str:
    """Return a time, in seconds since the epoch, as people read it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if isinstance(seconds, int | float) else "?"
