"""What an event of a REST API says of a request, as a WSGI application wants it.

https://docs.aws.amazon.com/apigateway/latest/developerguide/set-up-lambda-proxy-integrations.html
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

Event = Mapping[str, Any]


def path_variables(event: Event) -> dict[str, str]:
    """SCRIPT_NAME and PATH_INFO. The event's path is still percent-encoded, and decoded here, once, into bytes."""
    path = event["path"] or "/"
    return {
        "SCRIPT_NAME": _decoded(stage_prefix(event)),
        "PATH_INFO": _decoded(path),
        "REQUEST_URI": path,
    }


def stage_prefix(event: Event) -> str:
    """``/prod``, where the URL names the stage: on API Gateway's own host names. ``path`` is without it, this one is not."""
    context = event["requestContext"]
    prefix = f"/{context['stage']}"
    whole = context.get("path") or ""
    named = whole != event["path"] and (whole == prefix or whole.startswith(f"{prefix}/"))
    return prefix if named else ""


def headers(event: Event) -> dict[str, str]:
    """By lower-case name; a header that came more than once is joined."""
    many = event.get("multiValueHeaders") or {name: [value] for name, value in (event.get("headers") or {}).items()}
    return {name.lower(): ", ".join(values) for name, values in many.items()}


def _decoded(text: str) -> str:
    return unquote_to_bytes(text).decode("latin-1")
