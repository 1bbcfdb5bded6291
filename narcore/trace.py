"""Named events for metrics and logs.

narcore uses no metrics library: a listener is any callable that takes an event's name and its fields. A listener is called on
the thread that fires the event, so it must be quick and must not raise.

==================  ==============================================  =====================================================
event               fields                                          fired when
==================  ==============================================  =====================================================
``narinfo``         hash_part, hit                                  a narinfo was looked up
``listing``         nar_hash, source: nar, store                    a listing was read
``nar``             nar_hash, bytes, source: disk, fill, tier,      bytes of a NAR were requested
                    range, stream
``cache.hit``       nar_hash, nar_size                              a cached NAR was opened
``cache.miss``      the same                                        a fill started
``cache.join``      the same                                        a reader joined a running fill
``cache.fill``      the same                                        a fill completed, and the NAR is cached
``cache.failure``   the same                                        a fill failed
``cache.evict``     the same                                        a NAR was evicted to free space
``fetch``           store, what: info, narinfo, listing, nar;       a store's file was closed after a complete, partial or
                    outcome: whole, left, missing, error;           failed read. ``left``: closed before its end.
                    bytes, seconds, error (a class's name, or "")
==================  ==============================================  =====================================================
"""

from collections.abc import Callable

Trace = Callable[[str, dict[str, object]], None]


def silent(event: str, fields: dict[str, object]) -> None:
    """No-op listener."""
