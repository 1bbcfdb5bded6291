"""Named events, fired where something happens; whoever wants metrics or logs listens.

There is no metrics library here: a listener is any callable that takes the event's name and its fields. Events are fired on
the thread where they happen, so a listener must be quick and must not raise.

==================  ==============================================  =====================================================
event               fields                                          fired when
==================  ==============================================  =====================================================
``narinfo``         hash_part, hit                                  a narinfo was looked up
``listing``         nar_hash, source: nar, store                    a listing was made available
``nar``             nar_hash, bytes, source: disk, fill, range,     bytes of a NAR were asked for
                    stream
``cache.hit``       nar_hash, nar_size                              a NAR was opened that is on disk
``cache.miss``      the same                                        a fill was begun
``cache.join``      the same                                        a fill under way got one more reader
``cache.fill``      the same                                        a fill has ended, and the NAR is on disk
``cache.failure``   the same                                        a fill has failed
``cache.evict``     the same                                        a NAR went, to make room
``fetch``           store, what: info, narinfo, listing, nar;       a file of a store was read, or could not be; fired when
                    outcome: whole, left, missing, error;           it is closed. ``left`` was closed before its end.
                    bytes, seconds, error (a class's name, or "")
==================  ==============================================  =====================================================
"""

from collections.abc import Callable

Trace = Callable[[str, dict[str, object]], None]


def silent(event: str, fields: dict[str, object]) -> None:
    """No-op listener."""
