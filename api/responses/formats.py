"""The values of ``?format=``. The handlers, the error message and the OpenAPI document use this list."""

from werkzeug.exceptions import BadRequest
from werkzeug.wrappers import Request

from api.responses.archives import ARCHIVES

LISTING = "json"
NARINFO = "narinfo"
FORMATS = (LISTING, NARINFO, *ARCHIVES)


def requested_format(request: Request) -> str | None:
    """Return the value of ``?format=``, or None. Raises BadRequest if it is not one of FORMATS."""
    name = request.args.get("format")
    if name is not None and name not in FORMATS:
        raise BadRequest(f"Unknown format {name!r}. Supported formats: {', '.join(FORMATS)}.")
    return name
