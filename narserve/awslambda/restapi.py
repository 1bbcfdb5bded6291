"""Reads the event of a REST API into WSGI variables.

https://docs.aws.amazon.com/apigateway/latest/developerguide/set-up-lambda-proxy-integrations.html
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

Event = Mapping[str, Any]


def path_variables(event: Event) -> dict[str, str]:
    """Return SCRIPT_NAME, PATH_INFO and REQUEST_URI. The event's path is percent-encoded; it is decoded here, once, to bytes."""
    path = event["path"] or "/"
    return {
        "SCRIPT_NAME": _decoded(stage_prefix(event)),
        "PATH_INFO": _decoded(path),
        "REQUEST_URI": path,
    }


def stage_prefix(event: Event) -> str:
    """Return the stage as a path prefix, such as ``/prod``, if the URL contains it, else "".

    URLs on API Gateway's own host names contain the stage. The event's ``path`` does not contain the stage; the context's
    ``path`` does.
    """
    context = event["requestContext"]
    prefix = f"/{context['stage']}"
    full_path = context.get("path") or ""
    has_stage = full_path != event["path"] and (full_path == prefix or full_path.startswith(f"{prefix}/"))
    return prefix if has_stage else ""


def headers(event: Event) -> dict[str, str]:
    """Return the headers by lower-case name. The values of a repeated header are joined with commas."""
    many = event.get("multiValueHeaders") or {name: [value] for name, value in (event.get("headers") or {}).items()}
    return {name.lower(): ", ".join(values) for name, values in many.items()}


def _decoded(text: str) -> str:
    return unquote_to_bytes(text).decode("latin-1")
