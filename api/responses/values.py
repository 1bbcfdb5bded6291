"""The response for a value as JSON, such as a narinfo or the OpenAPI document."""

import json

from werkzeug.wrappers import Request

from api.http.conditional import Validators, make_etag
from api.http.negotiation import JSON
from api.responses.base import Response, not_modified, safe_headers, set_validators

# These change where a store path does not: a narinfo gets signatures, its NAR is compressed anew, another store has it.
CACHED_SECONDS = 300


def json_response(request: Request, value: object) -> Response:
    """200 or 304. Raises PreconditionFailed."""
    text = json.dumps(value) + "\n"
    validators = Validators(make_etag(text))
    headers = safe_headers()
    headers["Cache-Control"] = f"public, max-age={CACHED_SECONDS}"
    headers["Content-Type"] = JSON
    set_validators(headers, validators)
    return not_modified(request, validators, headers) or Response(text, headers=headers)
