"""The application as the two ways to run it on Lambda want it."""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from wsgiref.types import WSGIApplication

from api.factory import create_app
from api.telemetry.logs import configure_logging
from narcore.errors import SettingsError
from narcore.settings import Settings

log = logging.getLogger("api")


def load_application(carries: int, examples: Sequence[tuple[str, str]] = ()) -> WSGIApplication:
    """The app for what the environment says, with no answer of more than ``carries`` bytes.

    Ends the process, with a line for people, if a setting can't be used.
    """
    try:
        settings = Settings.from_environ(os.environ)
        configure_logging(settings.log_format)
        return create_app(_limited(settings, carries), examples=examples)
    except SettingsError as error:
        sys.exit(f"nar-serve: {error}")


def _limited(settings: Settings, carries: int) -> Settings:
    wanted = settings.max_response
    if wanted is not None and wanted > carries:
        log.warning("NAR_MAX_RESPONSE: the platform carries %d bytes, so %d can't be", carries, wanted)
    return replace(settings, max_response=min(wanted or carries, carries))
