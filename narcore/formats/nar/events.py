"""The events that represent a NAR, in the order of the NAR.

::

    nar       = node End
    node      = Regular Data*  |  Symlink  |  Directory node* DirectoryEnd

The events are named tuples, because tuples are the cheapest values to create, and a NAR may have a million events. They therefore
compare as tuples. Distinguish events by their type (``isinstance`` or ``match``), never by ``==`` alone.
"""

import enum
from typing import Final, Literal, NamedTuple


class Directory(NamedTuple):
    """The beginning of a directory. The events of its entries follow in byte order of their names, then its DirectoryEnd."""

    name: bytes  # b"" for the root of the NAR, whatever its type


class DirectoryEnd(NamedTuple):
    """The end of the innermost open directory."""

    # Among the events, only this tuple is empty. It must be true, so that `while event := ...` does not stop here.
    def __bool__(self) -> Literal[True]:
        return True


class Regular(NamedTuple):
    """A regular file. Data events of ``size`` bytes in total follow, or none if contents are skipped."""

    name: bytes
    executable: bool
    size: int
    nar_offset: int = 0  # the offset of the contents in the NAR; set by the parser, ignored by the writer


class Data(NamedTuple):
    """A part of the contents of the last Regular, never empty.

    The parser's ``data`` is a memoryview of the (immutable) chunk that it received. As long as the memoryview is
    referenced, it keeps the whole chunk in memory. To store the data, copy it with ``bytes(data)``.
    """

    data: bytes | memoryview


class Symlink(NamedTuple):
    """A symbolic link."""

    name: bytes
    target: bytes


class End(NamedTuple):
    """The end of the root node, and so of the NAR."""

    nar_size: int


NarEvent = Directory | DirectoryEnd | Regular | Data | Symlink | End


class NeedData(enum.Enum):
    """The type of NEED_DATA."""

    NEED_DATA = enum.auto()


NEED_DATA: Final = NeedData.NEED_DATA
"""The parser returns this instead of an event if it has to receive more bytes first."""
