"""Metrics for Prometheus, of mounts and of volumes. They need prometheus-client, the extra ``metrics``, once they are served."""

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from narcore.errors import SettingsError, how_to_install
from narcore.settings import parse_address

if TYPE_CHECKING:
    from prometheus_client.core import Metric

EVERY_INTERFACE = "0.0.0.0"  # noqa: S104  what an address without a host means


class Family(NamedTuple):
    """One metric: its values, by what its labels are. A counter is named without ``_total``."""

    name: str
    help: str
    kind: Literal["counter", "gauge"]
    labels: tuple[str, ...]
    values: Mapping[tuple[str, ...], float]


Collect = Callable[[], Iterable[Family]]


def check_metrics(address: str) -> tuple[str, int]:
    """The host and the port of ``[HOST]:PORT``. Raises SettingsError, also if prometheus-client is not installed."""
    host, port = parse_address("--metrics", address)
    if importlib.util.find_spec("prometheus_client") is None:
        raise SettingsError(f"--metrics needs prometheus-client; {how_to_install('metrics')}")
    return host or EVERY_INTERFACE, port


def serve_metrics(address: str, collect: Collect) -> int:
    """Answer ``/metrics`` in threads of its own, by what ``collect`` gives each time; the port. Raises SettingsError."""
    host, port = check_metrics(address)
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry()
    registry.register(_Collector(collect))
    try:
        server, _ = start_http_server(port, host, registry)
    except OSError as error:
        raise SettingsError(f"--metrics {address}: can't listen there: {error.strerror or error}") from error
    return int(server.server_address[1])


class _Collector:
    def __init__(self, collect: Collect) -> None:
        self._collect = collect

    def describe(self) -> "Iterable[Metric]":
        """Nothing is collected only to be registered."""
        return ()

    def collect(self) -> "Iterable[Metric]":
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}
        for family in self._collect():
            metric = kinds[family.kind](family.name, family.help, labels=family.labels)
            for labels, value in family.values.items():
                metric.add_metric(labels, value)
            yield metric


def mount_metrics(status: Mapping[str, object]) -> list[Family]:
    """What a mount says of itself. What its status lacks is left out."""
    families = [
        Family(
            "nar_mount_info", "How it is mounted.", "gauge", ("target", "mode"), {_texts(status, "target", "mode"): 1}
        ),
        _labelled(status, "counts", "requests", "Requests of the kernel.", "opcode"),
        _labelled(status, "lookups", "lookups", "Look-ups of store paths, by their outcome.", "outcome"),
    ]
    for key, (kind, name, help_text) in _PLAIN.items():
        value = status.get(key)
        if isinstance(value, int | float):
            families.append(Family(f"nar_mount_{name}", help_text, kind, (), {(): value}))
    cache = status.get("cache")
    if isinstance(cache, Mapping):
        for key, help_text in (("bytes", "Size of the disk cache."), ("limit", "How large the disk cache may grow.")):
            value = cache.get(key)
            if isinstance(value, int | float):
                name = "nar_mount_cache_bytes" if key == "bytes" else "nar_mount_cache_limit_bytes"
                families.append(Family(name, help_text, "gauge", (), {(): value}))
    return [family for family in families if family.values]


_PLAIN: dict[str, tuple[Literal["counter", "gauge"], str, str]] = {
    "restarts": ("counter", "restarts", "Workers that took another's place."),
    "interrupts": ("counter", "interrupts", "Requests of processes that got a signal while they waited."),
    "errors": ("counter", "errors", "Requests that failed."),
    "read_bytes": ("counter", "read_bytes", "Bytes read by way of the worker."),
    "passthrough_opens": ("counter", "passthrough_opens", "Files opened that the kernel reads by itself."),
    "waiting": ("gauge", "waiting", "Requests that are waiting for a store."),
    "paths_known": ("gauge", "paths_known", "Store paths that have a number."),
    "prefetch_pending": ("gauge", "prefetch_pending", "Store paths that are still to be fetched ahead."),
    "since": ("gauge", "start_time_seconds", "When it was mounted, in seconds since 1970."),
}


def volume_metrics(published: Mapping[str, int]) -> list[Family]:
    """``published``: how many volumes there are, by mode."""
    values: dict[tuple[str, ...], float] = {(mode,): count for mode, count in published.items()}
    return [Family("nar_volumes_published", "Volumes that are published.", "gauge", ("mode",), values)]


def _labelled(status: Mapping[str, object], key: str, name: str, help_text: str, label: str) -> Family:
    counts = status.get(key)
    values: dict[tuple[str, ...], float] = (
        {(str(kind),): count for kind, count in counts.items()} if isinstance(counts, Mapping) else {}
    )
    return Family(f"nar_mount_{name}", help_text, "counter", (label,), values)


def _texts(status: Mapping[str, object], *keys: str) -> tuple[str, ...]:
    return tuple(str(status.get(key, "")) for key in keys)
