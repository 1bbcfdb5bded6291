"""The events that a NAR is made of, in the order in which they stand in it.

::

    nar       = node End
    node      = Regular Data*  |  Symlink  |  Directory node* DirectoryEnd

The events are named tuples, because a tuple is the cheapest value that there is to make, and a NAR can hold a million.
They therefore compare as tuples: tell events apart by their type (``isinstance`` or ``match``), never by ``==`` alone.
"""

import enum
from typing import Final, Literal, NamedTuple


class Directory(NamedTuple):
    """A directory begins; the events of its entries follow in byte order of their names, then its DirectoryEnd."""

    name: bytes  # b"" for the root of the NAR, whatever its type


class DirectoryEnd(NamedTuple):
    """The directory that was begun last, and not yet ended, ends."""

    def __bool__(
        self,
    ) -> Literal[True]:  # the only empty tuple among the events; `while event := ...` must not stop at it
        return True


class Regular(NamedTuple):
    """A regular file. Data events of ``size`` bytes in all follow, or none if contents are skipped."""

    name: bytes
    executable: bool
    size: int
    nar_offset: int = 0  # where the contents begin in the NAR; found by the parser, not looked at by the writer


class Data(NamedTuple):
    """Some of the contents of the last Regular, never empty.

    The parser's ``data`` is a memoryview of the (immutable) chunk that it was given. It stays valid for as long as it
    is held, and keeps that whole chunk in memory for as long: take ``bytes(data)`` of what is to be kept.
    """

    data: bytes | memoryview


class Symlink(NamedTuple):
    """A symbolic link."""

    name: bytes
    target: bytes


class End(NamedTuple):
    """The root node is complete, and so is the NAR."""

    nar_size: int


NarEvent = Directory | DirectoryEnd | Regular | Data | Symlink | End


class NeedData(enum.Enum):
    """The type of NEED_DATA."""

    NEED_DATA = enum.auto()


NEED_DATA: Final = NeedData.NEED_DATA
"""What the parser answers instead of an event when it has to receive more bytes first."""
