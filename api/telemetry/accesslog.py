"""The access log: one line for each request, written to standard output when the answer has ended.

::

    192.0.2.7 "GET /nix/store/...-hello/bin/hello" 200 38400 B 3.1 ms disk 5f0c...e1
    192.0.2.7 "GET /nix/store/...-big/big.iso" 200 7340032 B 812.0 ms fill cut 91ab...77

Client, request, status, bytes of the body, time until its end, where the bytes came from (disk, fill, range, stream; nothing for
what is not of a file), ``cut`` if the client did not get all of it, and the id of the request.
"""

import logging
import sys

from api.telemetry.exchange import Exchange
from api.telemetry.logs import JsonFormatter, LogFormat

log = logging.getLogger("api.access")

# A path is what the client sent: what would end a line, or a quoted part of one, or start a terminal's escape sequence, is spelled
# out.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x21), 0x22, 0x5C, *range(0x7F, 0x100))}


def configure_access_log(log_format: LogFormat) -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter() if log_format == "json" else logging.Formatter("%(message)s"))
    log.handlers = [handler]
    log.propagate = False


def log_access(exchange: Exchange) -> None:
    """An observer: see ``api.telemetry.exchange``."""
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
    """What a line in JSON has, in numbers; it needs no sentence."""
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
