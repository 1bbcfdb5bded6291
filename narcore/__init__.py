"""The library of nar-serve: reads every file of every store path of a Nix binary cache. No Flask, no FUSE, no terminal.

::

    from narcore import BinaryCache

    with BinaryCache.connect("https://cache.nixos.org") as cache:
        nar = cache.open(cache.path_info("/nix/store/<hash>-hello-2.12"))
        readme = b"".join(nar.read("share/doc/README"))

``__all__`` lists the public names; ``narcore.errors`` has the exceptions. ``import narcore`` loads only
``narcore.version``; the first use of a public name loads the module that defines it.

A module imports only from modules below it in this table.

===================================  =============================================================================================
``binarycache``                      ``BinaryCache``: the one object that every front end holds
``export``                           writes a binary cache
``opening``                          opens the disk cache and the shared tier as the settings say
``settings``                         the environment variables, checked once at startup
``archive/``                         a subtree as tar, zip or NAR
``nars/``                            PathInfo -> bytes: from the disk cache, a fill, the tier, a range of the remote file, a stream
``tier/``                            NARs in a shared bucket, in a form that can be read in parts
``lookup/``                          hash part -> PathInfo: substituters, circuit breaker, trust, content addresses
``cache/``                           the disk cache: verified NARs, shared by processes
``stores/``                          the files of a binary cache: HTTP, buckets, a directory, memory
``streams/``                         decompresses, verifies and slices streams of bytes
``formats/``                         parses and writes NARs, narinfos, listings, hashes and signatures; no I/O
``concurrency/``                     building blocks for threads and iterators
``errors``, ``trace``, ``sizes``     all exceptions; named events for metrics and logs; the chunk size, human-readable sizes
===================================  =============================================================================================
"""

from importlib import import_module
from typing import TYPE_CHECKING

from narcore.version import __version__

if TYPE_CHECKING:
    from narcore.binarycache import BinaryCache
    from narcore.errors import NarcoreError
    from narcore.export import write_binary_cache
    from narcore.formats.listing import Kind, NarListing, Node
    from narcore.formats.narinfo import NarInfo
    from narcore.formats.storepath import StorePath
    from narcore.lookup.pathinfo import PathInfo, Trust
    from narcore.nars.accessor import NarAccessor, NarBytes
    from narcore.settings import Settings

__all__ = [
    "BinaryCache",
    "Kind",
    "NarAccessor",
    "NarBytes",
    "NarInfo",
    "NarListing",
    "NarcoreError",
    "Node",
    "PathInfo",
    "Settings",
    "StorePath",
    "Trust",
    "__version__",
    "write_binary_cache",
]

_MODULES = {
    "BinaryCache": "binarycache",
    "Kind": "formats.listing",
    "NarAccessor": "nars.accessor",
    "NarBytes": "nars.accessor",
    "NarInfo": "formats.narinfo",
    "NarListing": "formats.listing",
    "NarcoreError": "errors",
    "Node": "formats.listing",
    "PathInfo": "lookup.pathinfo",
    "Settings": "settings",
    "StorePath": "formats.storepath",
    "Trust": "lookup.pathinfo",
    "write_binary_cache": "export",
}


def __getattr__(name: str) -> object:
    """Import a public name at its first use (PEP 562), so that importing only ``narcore.errors`` does not load the rest."""
    if name not in _MODULES:
        raise AttributeError(f"module 'narcore' has no attribute {name!r}")
    return getattr(import_module(f"narcore.{_MODULES[name]}"), name)
