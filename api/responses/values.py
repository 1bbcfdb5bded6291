"""A response that contains a value as JSON, such as a narinfo or the OpenAPI document."""

import json

from werkzeug.wrappers import Request

from api.http.conditional import Validators, make_etag
from api.http.negotiation import JSON
from api.responses.base import Response, not_modified, safe_headers, set_validators

# These values can change, unlike a store path: a narinfo can get more signatures, or its NAR can get another compression.
CACHED_SECONDS = 300


def json_response(request: Request, value: object) -> Response:
    """Make the response: 200 or 304. Raises PreconditionFailed (412)."""
    text = json.dumps(value) + "\n"
    validators = Validators(make_etag(text))
    headers = safe_headers()
    headers["Cache-Control"] = f"public, max-age={CACHED_SECONDS}"
    headers["Content-Type"] = JSON
    set_validators(headers, validators)
    return not_modified(request, validators, headers) or Response(text, headers=headers)
