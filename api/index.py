"""The WSGI entry: ``api.index:app`` for Vercel, gunicorn and every other WSGI server."""

import os
import sys
from collections.abc import Iterable
from urllib.parse import unquote_to_bytes
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from api.factory import create_app
from api.telemetry.logs import configure_logging
from narcore.errors import SettingsError
from narcore.settings import Settings

# gunicorn starts a worker that has ended anew, for ever, unless it has ended with this (its Arbiter.WORKER_BOOT_ERROR).
_BOOT_ERROR = 3


class DecodedPath:
    """Decode PATH_INFO where the server did not.

    PEP 3333 wants it decoded, and all servers but Vercel's do so. That one sets neither REQUEST_URI nor RAW_URI, which the
    others do; decoding twice would turn the name ``%41`` into ``A``.
    """

    def __init__(self, application: WSGIApplication) -> None:
        self._application = application

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if "REQUEST_URI" not in environ and "RAW_URI" not in environ:
            raw = environ.get("PATH_INFO", "").encode("latin-1")
            environ["PATH_INFO"] = unquote_to_bytes(raw).decode("latin-1")
        return self._application(environ, start_response)


def _start() -> WSGIApplication:
    try:
        settings = Settings.from_environ(os.environ)
        configure_logging(settings.log_format)
        app = create_app(settings)
    except SettingsError as error:
        sys.stderr.write(f"nar-serve: {error}\n")
        sys.exit(_BOOT_ERROR)
    app.wsgi_app = DecodedPath(app.wsgi_app)  # type: ignore[method-assign]  # as Flask's documentation says to
    return app


app = _start()
