"""Metrics for Prometheus, and the ``/metrics`` page. Requires prometheus-client, the extra ``metrics``.

With several worker processes, each worker writes its values to files in the directory PROMETHEUS_MULTIPROC_DIR, and the worker
that answers /metrics adds up the values of all workers. The variable must be set before this module is imported; ``nar-serve
serve`` sets it.
"""

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from api.responses.base import Response, safe_headers
from api.telemetry.exchange import Exchange

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"

SOURCES = ("disk", "fill", "tier", "range", "stream")
CACHE_EVENTS = ("hit", "miss", "join", "fill", "failure", "evict")

# Upper bounds of the histogram buckets in seconds. A health check takes less than the first bound; a large file for a slow client
# takes more than the last bound.
SECONDS = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0)


class Metrics:
    """The metrics of this process, updated by its requests and by the events of ``narcore.trace``."""

    def __init__(self) -> None:
        own = CollectorRegistry()
        self._exported = own
        if MULTIPROCESS in os.environ:
            self._exported = CollectorRegistry()
            MultiProcessCollector(self._exported)  # type: ignore[no-untyped-call]  # prometheus-client has no annotation
        self._requests = _counter(own, "requests", "Completed requests.", "kind", "status")
        self._cut = _counter(own, "responses_cut", "Responses that did not reach the client completely.", "kind")
        self._sent = _counter(own, "sent_bytes", "Bytes of response bodies sent to clients.", "kind")
        self._running = Gauge(
            "nar_serve_requests_in_progress",
            "Requests in progress.",
            registry=own,
            multiprocess_mode="livesum",
        )
        self._seconds = _histogram(own, "request_seconds", "Time until the end of the response.", "kind")
        self._first_byte = _histogram(own, "first_byte_seconds", "Time until the first byte of the body.", "kind")
        self._reads = _counter(own, "nar_reads", "Reads of files in NARs, by source of the bytes.", "source")
        self._cache = _counter(own, "cache_events", "Events of the disk cache of NARs.", "event")
        self._cached = _counter(own, "cache_bytes", "Sum of the NAR sizes of disk cache events.", "event")
        self._fetches = _counter(own, "upstream_requests", "Files requested from stores.", "store", "what", "outcome")
        self._errors = _counter(own, "upstream_errors", "Failed requests to stores.", "store", "error")
        self._received = _counter(own, "received_bytes", "Bytes received from stores.", "store", "what")
        self._fetch_seconds = _histogram(
            own, "upstream_seconds", "Time from the request to a store until the end of its file.", "what"
        )
        self._create_series()

    def _create_series(self) -> None:
        """Create all series with the value 0. Otherwise a rate in Prometheus would miss the first event of each series."""
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
        self._sent.labels(kind).inc(exchange.sent)
        self._seconds.labels(kind).observe(exchange.seconds)
        if exchange.first_byte is not None:
            self._first_byte.labels(kind).observe(exchange.first_byte)
        if not exchange.complete:
            self._cut.labels(kind).inc()
        # The request is counted last. Another process may read the metrics at this moment, and the times of each request that it
        # counts must already be there.
        self._requests.labels(kind, str(exchange.status)).inc()

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
        response = Response(generate_latest(self._exported), headers=headers)
        response.kind = "metrics"
        return response


def _counter(registry: CollectorRegistry, name: str, help_text: str, *labels: str) -> Counter:
    return Counter(f"nar_serve_{name}", help_text, labels, registry=registry)


def _histogram(registry: CollectorRegistry, name: str, help_text: str, *labels: str) -> Histogram:
    return Histogram(f"nar_serve_{name}", help_text, labels, registry=registry, buckets=SECONDS)


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return value
