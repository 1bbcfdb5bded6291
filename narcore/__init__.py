"""nar-serve: every file of every store path of a Nix binary cache.

One sentence: **formats say what bytes mean, streams move them, stores fetch them, the cache keeps them, BinaryCache joins them, and
``api`` speaks HTTP.** Each room imports only from those below it.

==============================  ==================================================================================================
``binarycache``                 the hall: ``BinaryCache``, the one object that every front end holds
``lookup``, ``substituter``     from a hash part to a narinfo, through one or several stores: order, trust, failures
``narsource``, ``narstream``,   where the bytes of a NAR come from: the disk, a fill under way, a part of the remote file, a stream
``remote``
``localnar``                    NARs on disk, held open for who reads from them again and again
``proof``                       are the contents what a content address says?
``accessor``, ``resolve``       the files of one NAR; what a path in it leads to
``archive/``                    a subtree as tar, zip or NAR
``cache/``                      what is kept: NARs on disk, shared by processes; one fill for many readers
``stores/``                     where bytes come from: files of a binary cache by relative path
``streams/``                    how bytes flow: iterators in, iterators out
``formats/``                    what bytes mean: pure
``settings``, ``trace``,        the environment, checked once; named events for whoever measures; every exception
``errors``
``export``                      writes a binary cache
``cli/``                        the command line
``mount/``                      a file system: every store path below one directory, filled as it is read (Linux)
``volumes/``, ``csi/``          views of such a mount for containers; Kubernetes asks for them by the CSI plugin
==============================  ==================================================================================================
"""

__version__ = "0.1.0"
