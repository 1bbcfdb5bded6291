"""The library of nar-serve: reads every file of every store path of a Nix binary cache. No Flask, no FUSE, no terminal.

A module imports only from modules below it in this table.

===================================  =============================================================================================
``binarycache``                      ``BinaryCache``: the one object that every front end holds
``export``                           writes a binary cache
``settings``                         the environment variables, checked once at startup
``archive/``                         a subtree as tar, zip or NAR
``nars/``                            PathInfo -> bytes: the disk cache, a fill, a part of the remote file, or a stream
``lookup/``                          hash part -> PathInfo: substituters, circuit breaker, trust, content addresses
``cache/``                           the disk cache: verified NARs, shared by processes
``stores/``                          the files of a binary cache: HTTP, buckets, a directory, memory
``streams/``                         decompresses, verifies and slices streams of bytes
``formats/``                         what bytes mean: NAR, narinfo, listing, hashes, signatures; pure
``concurrency/``                     building blocks for threads and iterators
``errors``, ``trace``, ``sizes``     every exception; named events for metrics and logs; chunk size and human-readable sizes
===================================  =============================================================================================
"""

__version__ = "0.1.0"
