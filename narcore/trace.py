"""Named events, fired where something happens; whoever wants metrics or logs listens.

There is no metrics library here: a listener is any callable that takes the event's name and its fields. Events are fired on
the thread where they happen, so a listener must be quick and must not raise.

===================  ==================================================  ==========================================
event                fields                                              fired when
===================  ==================================================  ==========================================
``narinfo``          hash_part, hit                                      a narinfo was looked up
``listing``          nar_hash, source                                    a listing was made available
``nar``              nar_hash, source, start, stop                       bytes of a NAR were asked for
===================  ==================================================  ==========================================
"""

from collections.abc import Callable

Trace = Callable[[str, dict[str, object]], None]


def silent(event: str, fields: dict[str, object]) -> None:
    """The listener of those who don't listen."""
