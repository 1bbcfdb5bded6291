"""The values of ``?format=``: the one list for the handlers, the error message and the OpenAPI document."""

from werkzeug.exceptions import BadRequest
from werkzeug.wrappers import Request

from api.responses.archives import ARCHIVES

LISTING = "json"
NARINFO = "narinfo"
FORMATS = (LISTING, NARINFO, *ARCHIVES)


def requested_format(request: Request) -> str | None:
    """What ``?format=`` asks for, or None. Raises BadRequest with the formats that there are."""
    wanted = request.args.get("format")
    if wanted is not None and wanted not in FORMATS:
        raise BadRequest(f"There is no format {wanted!r}. What can be asked for: {', '.join(FORMATS)}.")
    return wanted
