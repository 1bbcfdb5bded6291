"""What is known of a store path as an answer: the narinfo, as Nix's JSON form."""

import json

from werkzeug.wrappers import Request

from api.responses.base import Response, not_modified, safe_headers, set_validators
from api.responses.conditional import Validators, make_etag
from api.responses.negotiation import JSON
from narcore.pathinfo import PathInfo

# A narinfo changes where its store path does not: it gets signatures, its NAR is compressed anew, another store has it.
KEPT_SECONDS = 300


def narinfo_response(request: Request, info: PathInfo) -> Response:
    """200 or 304; the same at every URL of the store path. Raises PreconditionFailed."""
    text = json.dumps(info.to_json()) + "\n"
    validators = Validators(make_etag(text))
    headers = safe_headers()
    headers["Cache-Control"] = f"public, max-age={KEPT_SECONDS}"
    headers["Content-Type"] = JSON
    set_validators(headers, validators)
    return not_modified(request, validators, headers) or Response(text, headers=headers)
