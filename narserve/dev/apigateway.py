"""What a REST API of API Gateway does around a Lambda function: requests into events, and what comes back into answers.

Used by ``start-dev --target lambda`` and by the tests, which run the platform's own runtime client between the two.
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

# Lambda's "6 MB" and what it allows around them: bytes of JSON in an answer that is not streamed.
ENVELOPE_LIMIT = 6_291_556

# The gateway's own header for a length that it does not pass on as such: to HEAD, it sends none.
REMAPPED_LENGTH = "x-amzn-Remapped-Content-Length"

STAGE = "prod"
_REGION_HOST = "execute-api.us-east-1.amazonaws.com"

Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """``target`` is the path as it was sent, with its query."""

    method: str
    target: str
    headers: Headers = ()
    body: bytes = b""
    client: str = "127.0.0.1"

    @property
    def is_acceptable(self) -> bool:
        """What is not, the gateway refuses with 400 by itself."""
        return self.target.startswith("/") and self.target.isascii() and self.target.isprintable()


class HttpAnswer(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes


class EnvelopeError(Exception):
    """What a function gave is not an answer: the client sees 502 and nothing else."""


def event_of(request: HttpRequest, *, stage: str = STAGE) -> dict[str, Any]:
    """The event. A path that begins with the stage came by the gateway's own host name, any other by a domain of one's own."""
    whole, _, query = request.target.partition("?")
    named = whole == f"/{stage}" or whole.startswith(f"/{stage}/")
    path = (whole.removeprefix(f"/{stage}") or "/") if named else whole
    resource = "/" if path == "/" else "/{proxy+}"
    many_headers, many_values = _grouped(request.headers), _grouped(parse_qsl(query, keep_blank_values=True))
    return {
        "resource": resource,
        "path": path,
        "httpMethod": request.method,
        "headers": _last(many_headers),
        "multiValueHeaders": many_headers,
        "queryStringParameters": _last(many_values),
        "multiValueQueryStringParameters": many_values,
        "pathParameters": None if path == "/" else {"proxy": unquote(path[1:])},
        "stageVariables": None,
        "requestContext": _context(request, resource, whole, stage),
        "body": base64.b64encode(request.body).decode() if request.body else None,
        "isBase64Encoded": bool(request.body),  # every type is a binary one
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
    """What the client gets for what the function gave. Raises EnvelopeError."""
    if len(envelope) > ENVELOPE_LIMIT:
        raise EnvelopeError(f"an answer of {len(envelope)} bytes of JSON, and Lambda takes {ENVELOPE_LIMIT}")
    try:
        given = json.loads(envelope)
        body = given.get("body") or ""
        raw = base64.b64decode(body, validate=True) if given.get("isBase64Encoded") else body.encode()
        return HttpAnswer(int(given["statusCode"]), passed_on(request, given, len(raw)), raw)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise EnvelopeError(f"no answer of a function: {error!r}") from error


def passed_on(request: HttpRequest, given: dict[str, Any], length: int | None) -> list[tuple[str, str]]:
    """The headers of ``given``, an envelope or the prelude of a stream. ``length`` of the body, if it is known."""
    many = {name: [value] for name, value in (given.get("headers") or {}).items()} | (
        given.get("multiValueHeaders") or {}
    )
    headers = [(name, str(value)) for name, values in many.items() for value in values]
    if any(not value.isascii() for _, value in headers):
        raise EnvelopeError("a header that is not ASCII")
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
