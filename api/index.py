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

# gunicorn keeps restarting a worker that exits, except if the worker exits with this status (Arbiter.WORKER_BOOT_ERROR).
_BOOT_ERROR = 3


class DecodedPath:
    """WSGI middleware that decodes PATH_INFO if the server did not.

    PEP 3333 requires a decoded PATH_INFO, and all servers except Vercel's decode it. Vercel's server sets neither REQUEST_URI
    nor RAW_URI; the other servers set one of them. Decoding twice would turn the name ``%41`` into ``A``.
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
    app.wsgi_app = DecodedPath(app.wsgi_app)  # type: ignore[method-assign]  # as in Flask's documentation
    return app


app = _start()
