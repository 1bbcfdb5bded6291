"""The metrics for Prometheus, and the ``/metrics`` page. Needs prometheus-client, the extra ``metrics``.

With several worker processes each keeps its numbers in files of the directory PROMETHEUS_MULTIPROC_DIR, and whichever is asked
adds them all up. The variable has to be set before this module is imported: ``nar-serve serve`` does that.
"""

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from api.responses.base import Response, safe_headers
from api.telemetry.exchange import Exchange

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"

SOURCES = ("disk", "fill", "range", "stream")
CACHE_EVENTS = ("hit", "miss", "join", "fill", "failure", "evict")

# A health check takes less than the first, a large file to a slow client more than the last.
SECONDS = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0)


class Metrics:
    """The numbers of this process, kept up by its requests and by the events of ``narcore.trace``."""

    def __init__(self) -> None:
        own = CollectorRegistry()
        self._shown = own
        if MULTIPROCESS in os.environ:
            self._shown = CollectorRegistry()
            MultiProcessCollector(self._shown)  # type: ignore[no-untyped-call]  # the library's
        self._requests = _counter(own, "requests", "Requests that have ended.", "kind", "status")
        self._cut = _counter(own, "responses_cut", "Answers that did not reach the client whole.", "kind")
        self._sent = _counter(own, "sent_bytes", "Bytes of bodies sent to clients.", "kind")
        self._running = Gauge(
            "nar_serve_requests_in_progress",
            "Requests that are being answered.",
            registry=own,
            multiprocess_mode="livesum",
        )
        self._seconds = _histogram(own, "request_seconds", "Time until an answer has ended.", "kind")
        self._first_byte = _histogram(own, "first_byte_seconds", "Time until a body begins.", "kind")
        self._reads = _counter(own, "nar_reads", "Reads of files in NARs, by where the bytes come from.", "source")
        self._cache = _counter(own, "cache_events", "What the disk cache of NARs has done.", "event")
        self._cached = _counter(own, "cache_bytes", "The sizes of the NARs of these events.", "event")
        self._fetches = _counter(own, "upstream_requests", "Files asked of stores.", "store", "what", "outcome")
        self._errors = _counter(own, "upstream_errors", "Files that a store failed to give.", "store", "error")
        self._received = _counter(own, "received_bytes", "Bytes received from stores.", "store", "what")
        self._fetch_seconds = _histogram(
            own, "upstream_seconds", "Time from asking a store until its file ended.", "what"
        )
        self._show_zeros()

    def _show_zeros(self) -> None:
        """A rate can only be taken of what has been there before it first happened."""
        for source in SOURCES:
            self._reads.labels(source)
        for event in CACHE_EVENTS:
            self._cache.labels(event)
            self._cached.labels(event)

    # --- observers of api.telemetry.exchange

    def started(self, exchange: Exchange) -> None:
        self._running.inc()

    def ended(self, exchange: Exchange) -> None:
        kind = exchange.kind
        self._running.dec()
        self._requests.labels(kind, str(exchange.status)).inc()
        self._sent.labels(kind).inc(exchange.sent)
        self._seconds.labels(kind).observe(exchange.seconds)
        if exchange.first_byte is not None:
            self._first_byte.labels(kind).observe(exchange.first_byte)
        if not exchange.complete:
            self._cut.labels(kind).inc()

    # --- a listener of narcore.trace

    def trace(self, event: str, fields: dict[str, object]) -> None:
        if event == "nar":
            self._reads.labels(fields["source"]).inc()
        elif event == "fetch":
            self._fetched(fields)
        elif event.startswith("cache."):
            name = event.removeprefix("cache.")
            self._cache.labels(name).inc()
            self._cached.labels(name).inc(_number(fields["nar_size"]))

    def _fetched(self, fields: dict[str, object]) -> None:
        store, what = fields["store"], fields["what"]
        self._fetches.labels(store, what, fields["outcome"]).inc()
        self._received.labels(store, what).inc(_number(fields["bytes"]))
        self._fetch_seconds.labels(what).observe(_number(fields["seconds"]))
        if fields["outcome"] == "error":
            self._errors.labels(store, fields["error"]).inc()

    # --- the view

    def view(self) -> Response:
        headers = safe_headers()
        headers["Cache-Control"] = "no-store"
        headers["Content-Type"] = CONTENT_TYPE_LATEST
        response = Response(generate_latest(self._shown), headers=headers)
        response.kind = "metrics"
        return response


def _counter(registry: CollectorRegistry, name: str, help_text: str, *labels: str) -> Counter:
    return Counter(f"nar_serve_{name}", help_text, labels, registry=registry)


def _histogram(registry: CollectorRegistry, name: str, help_text: str, *labels: str) -> Histogram:
    return Histogram(f"nar_serve_{name}", help_text, labels, registry=registry, buckets=SECONDS)


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return value
