"""Imports modules in the master, so that no worker imports them during its first request.

The program imports them at first use, because a serverless platform pays for each import at every cold start. The workers are
forked from the master and share the memory of its modules.
"""

import importlib
from contextlib import suppress

from narcore.settings import Settings

# socket.getaddrinfo encodes host names with idna. Many caches compress NARs with zstd.
_ALWAYS = ("encodings.idna", "zstandard")
_SIGNATURES = ("cryptography.exceptions", "cryptography.hazmat.primitives.asymmetric.ed25519")
_HTTP = ("narcore.stores.http.client", "netrc")


def preload(settings: Settings) -> None:
    """Import what requests to the stores of ``settings`` need. Starts no thread and opens no connection.

    A package that is not installed is skipped: the request that needs it gets the error. The clients of buckets are not imported,
    because their runtime has threads.
    """
    names = [*_ALWAYS]
    if settings.trusted_public_keys:
        names += _SIGNATURES
    if any(url.lower().startswith(("http:", "https:")) for url in settings.cache_urls):
        names += _HTTP
    for name in names:
        with suppress(ImportError):
            importlib.import_module(name)
