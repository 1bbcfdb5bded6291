"""Logging setup: each record is a line of text or a JSON object on standard error.

A record that is logged while a request is being answered carries the request id.
"""

import json
import logging
import sys
import time
from typing import Literal

from api.telemetry.exchange import current_exchange

LogFormat = Literal["text", "json"]


class TextFormatter(logging.Formatter):
    """Formats a record as one line of text, plus a traceback if there is one."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  overrides logging.Formatter
        exchange = current_exchange()
        return super().formatMessage(record) + (f" [{exchange.request_id}]" if exchange else "")


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object. ``extra={"fields": {...}}`` adds fields."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        exchange = current_exchange()
        if exchange is not None:
            fields["request_id"] = exchange.request_id
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields | getattr(record, "fields", {}))


def formatter(log_format: LogFormat) -> logging.Formatter:
    return JsonFormatter() if log_format == "json" else TextFormatter()


def configure_logging(log_format: LogFormat) -> None:
    """Send the log records of this project, and no others, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(log_format))
    for name in ("api", "narcore", "narmount", "narserve"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
