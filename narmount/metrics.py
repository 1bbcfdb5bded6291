"""Prometheus metrics of mounts and volumes. Serving them needs prometheus-client, the extra ``metrics``."""

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from narcore.errors import SettingsError, how_to_install
from narcore.settings import parse_address

if TYPE_CHECKING:
    from prometheus_client.core import Metric

EVERY_INTERFACE = "0.0.0.0"  # noqa: S104  an address without a host means all addresses


class Family(NamedTuple):
    """A metric, with one value for each combination of label values. The name of a counter lacks its suffix ``_total``."""

    name: str
    help: str
    kind: Literal["counter", "gauge"]
    labels: tuple[str, ...]
    values: Mapping[tuple[str, ...], float]


Collect = Callable[[], Iterable[Family]]


def check_metrics(address: str) -> tuple[str, int]:
    """Parse ``[HOST]:PORT``. Raises SettingsError if the address is invalid or prometheus-client is not installed."""
    host, port = parse_address("--metrics", address)
    if importlib.util.find_spec("prometheus_client") is None:
        raise SettingsError(f"--metrics needs prometheus-client; {how_to_install('metrics')}")
    return host or EVERY_INTERFACE, port


def serve_metrics(address: str, collect: Collect) -> int:
    """Serve ``/metrics`` in background threads, and return the port. Each request calls ``collect``. Raises SettingsError."""
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
        """Return nothing, so that registration does not call ``collect``."""
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
    """Return the metrics of the status of a mount. Fields that the status lacks are omitted."""
    families = [
        Family(
            "nar_mount_info",
            "Target and mode of the mount.",
            "gauge",
            ("target", "mode"),
            {_texts(status, "target", "mode"): 1},
        ),
        _labelled(status, "counts", "requests", "Requests of the kernel by opcode.", "opcode"),
        _labelled(status, "lookups", "lookups", "Lookups of store paths by outcome.", "outcome"),
    ]
    for key, (kind, name, help_text) in _PLAIN.items():
        value = status.get(key)
        if isinstance(value, int | float):
            families.append(Family(f"nar_mount_{name}", help_text, kind, (), {(): value}))
    cache = status.get("cache")
    if isinstance(cache, Mapping):
        for key, help_text in (("bytes", "Size of the disk cache."), ("limit", "Size limit of the disk cache.")):
            value = cache.get(key)
            if isinstance(value, int | float):
                name = "nar_mount_cache_bytes" if key == "bytes" else "nar_mount_cache_limit_bytes"
                families.append(Family(name, help_text, "gauge", (), {(): value}))
    return [family for family in families if family.values]


_PLAIN: dict[str, tuple[Literal["counter", "gauge"], str, str]] = {
    "restarts": ("counter", "restarts", "Restarts of the worker."),
    "interrupts": ("counter", "interrupts", "Requests interrupted by a signal to the waiting process."),
    "errors": ("counter", "errors", "Requests that failed."),
    "read_bytes": ("counter", "read_bytes", "Bytes read through the worker."),
    "passthrough_opens": ("counter", "passthrough_opens", "Opened files that the kernel reads itself."),
    "waiting": ("gauge", "waiting", "Requests waiting for a store."),
    "paths_known": ("gauge", "paths_known", "Store paths with an inode number."),
    "prefetch_pending": ("gauge", "prefetch_pending", "Store paths waiting to be prefetched."),
    "since": ("gauge", "start_time_seconds", "Time of mounting in seconds since 1970."),
}


def volume_metrics(published: Mapping[str, int]) -> list[Family]:
    """Return the metrics of volumes. ``published`` has the number of mounted volumes by mode."""
    values: dict[tuple[str, ...], float] = {(mode,): count for mode, count in published.items()}
    return [Family("nar_volumes_published", "Mounted volumes.", "gauge", ("mode",), values)]


def _labelled(status: Mapping[str, object], key: str, name: str, help_text: str, label: str) -> Family:
    counts = status.get(key)
    values: dict[tuple[str, ...], float] = (
        {(str(kind),): count for kind, count in counts.items()} if isinstance(counts, Mapping) else {}
    )
    return Family(f"nar_mount_{name}", help_text, "counter", (label,), values)


def _texts(status: Mapping[str, object], *keys: str) -> tuple[str, ...]:
    return tuple(str(status.get(key, "")) for key in keys)
