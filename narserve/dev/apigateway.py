"""Emulates a REST API of API Gateway in front of a Lambda function: turns requests into events, and envelopes into responses.

Used by ``start-dev --target lambda`` and by the tests, which run Lambda's own runtime client behind this emulation.
https://docs.aws.amazon.com/apigateway/latest/developerguide/set-up-lambda-proxy-integrations.html
"""

import base64
import json
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

# Size limit of a response that is not streamed, in bytes of JSON: Lambda's "6 MB", plus the overhead that it allows.
ENVELOPE_LIMIT = 6_291_556

# In a response to HEAD, the gateway renames the function's Content-Length to this header.
REMAPPED_LENGTH = "x-amzn-Remapped-Content-Length"

STAGE = "prod"
_REGION_HOST = "execute-api.us-east-1.amazonaws.com"

Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request of a client. ``target`` is the path as the client sent it, with its query."""

    method: str
    target: str
    headers: Headers = ()
    body: bytes = b""
    client: str = "127.0.0.1"

    @property
    def is_acceptable(self) -> bool:
        """False if the gateway itself would refuse the request with status 400."""
        return self.target.startswith("/") and self.target.isascii() and self.target.isprintable()


class HttpAnswer(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes


class EnvelopeError(Exception):
    """The function's envelope is invalid. The gateway answers with status 502 and no explanation."""


def event_of(request: HttpRequest, *, stage: str = STAGE) -> dict[str, Any]:
    """Return the event of a request.

    If the path begins with the stage, the request is treated as sent to the gateway's own host name, otherwise to a custom domain.
    """
    full_path, _, query = request.target.partition("?")
    has_stage = full_path == f"/{stage}" or full_path.startswith(f"/{stage}/")
    path = (full_path.removeprefix(f"/{stage}") or "/") if has_stage else full_path
    resource = "/" if path == "/" else "/{proxy+}"
    all_headers, all_parameters = _grouped(request.headers), _grouped(parse_qsl(query, keep_blank_values=True))
    return {
        "resource": resource,
        "path": path,
        "httpMethod": request.method,
        "headers": _last(all_headers),
        "multiValueHeaders": all_headers,
        "queryStringParameters": _last(all_parameters),
        "multiValueQueryStringParameters": all_parameters,
        "pathParameters": None if path == "/" else {"proxy": unquote(path[1:])},
        "stageVariables": None,
        "requestContext": _context(request, resource, full_path, stage),
        "body": base64.b64encode(request.body).decode() if request.body else None,
        "isBase64Encoded": bool(request.body),  # binaryMediaTypes is */*
    }


def _context(request: HttpRequest, resource: str, path: str, stage: str) -> dict[str, Any]:
    now = time.time()
    return {
        "accountId": "123456789012",
        "apiId": "abcdefghij",
        "domainName": f"abcdefghij.{_REGION_HOST}",
        "domainPrefix": "abcdefghij",
        "extendedRequestId": "AbCdEfGhIjKlMnO=",
        "httpMethod": request.method,
        "identity": {"sourceIp": request.client, "userAgent": dict(request.headers).get("User-Agent")},
        "path": path,
        "protocol": "HTTP/1.1",
        "requestId": str(uuid.uuid4()),
        "requestTime": time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(now)),
        "requestTimeEpoch": int(now * 1000),
        "resourceId": "abc123",
        "resourcePath": resource,
        "stage": stage,
    }


def answer_of(request: HttpRequest, envelope: bytes) -> HttpAnswer:
    """Return the response that the client gets for the function's envelope. Raises EnvelopeError."""
    if len(envelope) > ENVELOPE_LIMIT:
        raise EnvelopeError(f"the response has {len(envelope)} bytes of JSON, but Lambda allows {ENVELOPE_LIMIT}")
    try:
        values = json.loads(envelope)
        body = values.get("body") or ""
        raw = base64.b64decode(body, validate=True) if values.get("isBase64Encoded") else body.encode()
        return HttpAnswer(int(values["statusCode"]), response_headers(request, values, len(raw)), raw)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise EnvelopeError(f"the function returned an invalid response: {error!r}") from error


def response_headers(request: HttpRequest, envelope: dict[str, Any], length: int | None) -> list[tuple[str, str]]:
    """Return the headers that the client gets.

    ``envelope`` may also be the prelude of a stream. ``length`` is the length of the body, or None if it is unknown. Raises
    EnvelopeError.
    """
    all_headers = {name: [value] for name, value in (envelope.get("headers") or {}).items()} | (
        envelope.get("multiValueHeaders") or {}
    )
    headers = [(name, str(value)) for name, values in all_headers.items() for value in values]
    if any(not value.isascii() for _, value in headers):
        raise EnvelopeError("the response has a header that is not ASCII")
    lengths = [value for name, value in headers if name.lower() == "content-length"]
    others = [(name, value) for name, value in headers if name.lower() != "content-length"]
    if request.method == "HEAD":
        return others + [(REMAPPED_LENGTH, value) for value in lengths]
    if length is not None:
        return [*others, ("Content-Length", str(length))]
    return others + [("Content-Length", value) for value in lengths]


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]] | None:
    grouped: dict[str, list[str]] = {}
    for name, value in pairs:
        grouped.setdefault(name, []).append(value)
    return grouped or None


def _last(grouped: dict[str, list[str]] | None) -> dict[str, str] | None:
    return {name: values[-1] for name, values in grouped.items()} if grouped else None
