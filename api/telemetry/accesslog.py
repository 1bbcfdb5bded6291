"""The access log: one line per request, written to standard output when the response ends.

::

    192.0.2.7 "GET /nix/store/...-hello/bin/hello" 200 38400 B 3.1 ms disk 5f0c...e1
    192.0.2.7 "GET /nix/store/...-big/big.iso" 200 7340032 B 812.0 ms fill cut 91ab...77

The fields are: client, request, status, bytes of the body, time until the end of the body, sources of the bytes, ``cut``, and the
request id. The sources are disk, fill, tier, range and stream; the field is absent if no file was read. The field ``cut`` is
present only if the client did not get the whole body.
"""

import logging
import sys

from api.telemetry.exchange import Exchange
from api.telemetry.logs import JsonFormatter, LogFormat

log = logging.getLogger("api.access")

# The client chooses the path. Characters that would end a line or a quoted string, or start a terminal escape sequence, are
# escaped.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x21), 0x22, 0x5C, *range(0x7F, 0x100))}


def configure_access_log(log_format: LogFormat) -> None:
    """Send the access log to standard output."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter() if log_format == "json" else logging.Formatter("%(message)s"))
    log.handlers = [handler]
    log.propagate = False


def log_access(exchange: Exchange) -> None:
    """Log one exchange. This is an observer, see ``api.telemetry.exchange``."""
    path = exchange.path.translate(_ESCAPES)
    text = [
        f'{exchange.client} "{exchange.method} {path}" {exchange.status}',
        f"{exchange.sent} B {exchange.seconds * 1000:.1f} ms",
        *exchange.sources,
        *([] if exchange.complete else ["cut", *filter(None, [exchange.error])]),
        exchange.request_id,
    ]
    log.info("%s", " ".join(text), extra={"fields": _fields(exchange)})


def _fields(exchange: Exchange) -> dict[str, object]:
    """Return the fields of a JSON line. They replace the message of the text format."""
    first_byte = exchange.first_byte
    return {
        "message": "request",
        "request_id": exchange.request_id,
        "client": exchange.client,
        "method": exchange.method,
        "path": exchange.path,
        "status": exchange.status,
        "kind": exchange.kind,
        "bytes": exchange.sent,
        "ms": round(exchange.seconds * 1000, 1),
        "first_byte_ms": None if first_byte is None else round(first_byte * 1000, 1),
        "complete": exchange.complete,
        "error": exchange.error,
        "sources": list(exchange.sources),
    }
