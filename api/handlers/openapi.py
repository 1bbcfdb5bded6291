"""The view of ``/openapi.json``."""

from flask import request

from api.responses.base import Response
from api.responses.redirects import script_root
from api.responses.values import json_response
from narcore.binarycache import BinaryCache
from narcore.settings import Settings


class Description:
    """The OpenAPI document for these settings and for the store dirs of this cache."""

    def __init__(self, settings: Settings, cache: BinaryCache) -> None:
        self._settings = settings
        self._cache = cache

    def openapi(self) -> Response:
        from api.openapi import document  # imported here to keep the start fast

        store_dirs = self._cache.store_dirs(ask=False)
        return json_response(request, document(self._settings, store_dirs, script_root(request)))
