"""Attaches the access log and the metrics to the app if they are turned on."""

from typing import TYPE_CHECKING

import flask
from flask import Flask

from api.responses.base import Response
from api.telemetry.accesslog import log_access
from api.telemetry.exchange import Observed, Observer, current_exchange, record_source
from narcore.errors import SettingsError, how_to_install
from narcore.settings import Settings
from narcore.trace import Trace, silent

if TYPE_CHECKING:
    from api.telemetry.metrics import Metrics


class Instruments:
    """The access log and the metrics. ``trace`` is the trace listener for the BinaryCache that the app serves.

    Raises SettingsError if metrics are on but prometheus-client is not installed.
    """

    def __init__(self, settings: Settings, *, access_log: bool) -> None:
        self._metrics = _open_metrics() if settings.metrics else None
        self._observers: list[Observer] = [log_access] if access_log else []
        self.trace: Trace = record_source if access_log else silent
        if self._metrics is not None:
            self._observers.append(self._metrics.ended)
            self.trace = _both(record_source, self._metrics.trace)

    def attach(self, app: Flask) -> None:
        """Attach the observers to the app. Without observers, the app stays unwrapped."""
        if not self._observers:
            return
        on_start: list[Observer] = []
        if self._metrics is not None:
            on_start.append(self._metrics.started)
            app.add_url_rule("/metrics", view_func=self._metrics.view, methods=["GET"])
        app.after_request(_note_kind)
        app.wsgi_app = Observed(app.wsgi_app, self._observers, on_start=on_start)  # type: ignore[method-assign]  # as in Flask's documentation


def _open_metrics() -> "Metrics":
    try:
        from api.telemetry.metrics import Metrics  # imported here because it takes as long as the rest of api
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("prometheus_client"):
            raise
        raise SettingsError(f"NAR_METRICS needs prometheus-client; {how_to_install('metrics')}") from error
    return Metrics()


def _both(one: Trace, other: Trace) -> Trace:
    def trace(event: str, fields: dict[str, object]) -> None:
        one(event, fields)
        other(event, fields)

    return trace


def _note_kind(response: flask.Response) -> flask.Response:
    exchange = current_exchange()
    if exchange is not None and isinstance(response, Response):
        exchange.response_kind = response.kind
    return response
