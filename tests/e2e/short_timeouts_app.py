"""The application of `api.index`, with upstream timeouts of 1 second: for tests of timeouts."""

import os

from api.factory import create_app
from narcore.binarycache import BinaryCache
from narcore.settings import Settings
from narcore.stores.http.store import HttpBinaryCacheStore

_SETTINGS = Settings.from_environ(os.environ)

app = create_app(
    _SETTINGS,
    BinaryCache(
        [HttpBinaryCacheStore(url, connect_timeout=1, read_timeout=1, retries=1) for url in _SETTINGS.cache_urls]
    ),
)
