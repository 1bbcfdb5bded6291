"""The kernel's FUSE protocol, as far as a read-only file system needs it (Linux: include/uapi/linux/fuse.h, 7.9 to 7.45).

A request is a header and a body; so is an answer, whose header says how long it is, which request it is for and, negated, an errno.
All numbers are in the machine's byte order.
"""

import enum
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass

from narcore.errors import MountError

MAJOR, MINOR = 7, 41  # the newest version whose answers are made here; a kernel that is older or newer gets on with it
MINOR_MIN = 23  # Linux 3.15: answers have had the same size since

REQUEST = struct.Struct("=IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding
ANSWER = struct.Struct("=IiQ")  # len, -errno (of a notification: its code), unique (of a notification: 0)
ATTR = struct.Struct("=QQQQQQIIIIIIIIII")
ENTRY = struct.Struct("=QQQQII")  # nodeid, generation, how long the name and the attributes are valid (s, s, ns, ns)
ATTR_VALID = struct.Struct("=QII")
READ = struct.Struct("=QQIIQII")  # fh, offset, size, ...
RELEASE = struct.Struct("=QIIQ")  # fh, ...
OPENED = struct.Struct("=QIi")  # fh, flags, backing id
DIRENT = struct.Struct("=QQII")  # ino, offset of the next one, length of the name, type
INTERRUPT = struct.Struct("=Q")  # unique of the request that nobody waits for any more
BATCH_FORGET = struct.Struct("=II")  # how many follow
FORGET_ONE = struct.Struct("=QQ")  # nodeid, how often
STATFS = struct.Struct("=QQQQQIIII24x")
INIT_IN = struct.Struct("=IIIII")  # major, minor, max_readahead, flags, flags2
INIT_OUT = struct.Struct("=IIIIHHIIHHIIH22x")
INVAL_INODE = struct.Struct("=Qqq")
PRUNE = struct.Struct("=I12x")  # how many node ids follow

PRUNE_MINOR = 45  # Linux 6.18

ROOT_ID = 1

# No answer to a read of the device is larger than max_write and the headers; the kernel refuses a smaller buffer (EINVAL).
MAX_WRITE = 64 * 1024
BUFFER_SIZE = MAX_WRITE + 4096
MAX_PAGES = 256  # so much of a file is asked for at most in one go, if the kernel reads so far ahead
MAX_BACKGROUND = 64  # requests that nobody waits for yet (read-ahead) at once


class Opcode(enum.IntEnum):
    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    READLINK = 5
    OPEN = 14
    READ = 15
    STATFS = 17
    RELEASE = 18
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    INTERRUPT = 36
    DESTROY = 38
    IOCTL = 39
    BATCH_FORGET = 42
    READDIRPLUS = 44


class Notify(enum.IntEnum):
    INVAL_INODE = 2
    RESEND = 7
    PRUNE = 9


NotifyKernel = Callable[[Notify, bytes], None]
"""Sends the kernel a notification with this body."""


class Open(enum.IntFlag):
    KEEP_CACHE = 1 << 1
    PASSTHROUGH = 1 << 7


class Flag(enum.IntFlag):
    """What kernel and file system may agree on."""

    ASYNC_READ = 1 << 0
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    INIT_EXT = 1 << 30
    PASSTHROUGH = 1 << 37  # Linux 6.9
    HAS_RESEND = 1 << 39  # Linux 6.9


_WANTED = (
    Flag.ASYNC_READ
    | Flag.DO_READDIRPLUS
    | Flag.READDIRPLUS_AUTO
    | Flag.NO_OPEN_SUPPORT
    | Flag.PARALLEL_DIROPS
    | Flag.MAX_PAGES
    | Flag.CACHE_SYMLINKS
    | Flag.NO_OPENDIR_SUPPORT
    | Flag.INIT_EXT
    | Flag.HAS_RESEND
)


@dataclass(frozen=True, slots=True)
class Agreed:
    """What was agreed on when the file system was mounted. ``minor`` is the kernel's."""

    minor: int
    passthrough: bool
    resend: bool

    @property
    def prune(self) -> bool:
        """Whether the kernel can be told to forget nodes that nobody uses."""
        return self.minor >= PRUNE_MINOR


def agree(request: bytes, *, passthrough: bool) -> tuple[Agreed, bytes]:
    """The answer to the kernel's first request, INIT. Raises MountError for a kernel that is too old, or not one at all."""
    _length, opcode, unique, *_ = REQUEST.unpack_from(request)
    body = request[REQUEST.size :].ljust(INIT_IN.size, b"\0")
    major, minor, readahead, low, high = INIT_IN.unpack_from(body)
    if opcode != Opcode.INIT or major != MAJOR or minor < MINOR_MIN:
        raise MountError(f"the kernel speaks FUSE {major}.{minor}, and {MAJOR}.{MINOR_MIN} is needed (Linux 3.15)")
    offered = Flag(low | (high << 32 if low & Flag.INIT_EXT else 0))
    flags = offered & (_WANTED | Flag.PASSTHROUGH if passthrough else _WANTED)
    depth = 1 if Flag.PASSTHROUGH in flags else 0  # of file systems below: the backing files' own, and no other
    body = INIT_OUT.pack(
        MAJOR, min(minor, MINOR), readahead, flags & 0xFFFFFFFF, MAX_BACKGROUND, MAX_BACKGROUND * 3 // 4, MAX_WRITE,
        1, MAX_PAGES, 0, flags >> 32, depth, 0,
    )  # fmt: skip
    agreed = Agreed(minor, Flag.PASSTHROUGH in flags, Flag.HAS_RESEND in flags)
    return agreed, answer(unique, 0, len(body)) + body


def answer(unique: int, errno: int, length: int) -> bytes:
    """The header of an answer with a body of ``length`` bytes."""
    return ANSWER.pack(ANSWER.size + length, -errno, unique)


def notification(code: Notify, body: bytes = b"") -> bytes:
    return ANSWER.pack(ANSWER.size + len(body), code, 0) + body


def prune(node_ids: list[int]) -> bytes:
    """The body of a notification: forget these nodes, but for those in use."""
    return PRUNE.pack(len(node_ids)) + struct.pack(f"={len(node_ids)}Q", *node_ids)


def attributes(node_id: int, mode: int, size: int) -> bytes:
    """Everything is root's, of one second after the epoch as in a Nix store, and never changes.

    One link, also for a directory: that says that its subdirectories have not been counted.
    """
    return ATTR.pack(node_id, size, (size + 511) // 512, 1, 1, 1, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def entry(node_id: int, seconds: int, attrs: bytes) -> bytes:
    """The answer to a look-up. Both the name and the attributes are valid for so long."""
    return ENTRY.pack(node_id, 0, seconds, seconds, 0, 0) + attrs


def no_entry(seconds: int) -> bytes:
    """There is no such name, for so long."""
    return ENTRY.pack(0, 0, seconds, 0, 0, 0) + bytes(ATTR.size)


def attr_answer(seconds: int, attrs: bytes) -> bytes:
    return ATTR_VALID.pack(seconds, 0, 0) + attrs


def dirent(node_id: int, offset: int, name: bytes, mode: int) -> bytes:
    """``offset``: where to go on behind this one."""
    head = DIRENT.pack(node_id, offset, len(name), stat.S_IFMT(mode) >> 12)
    return head + name + bytes(-(len(head) + len(name)) % 8)


def forgotten(opcode: int, node_id: int, body: bytes) -> list[int]:
    """The nodes that the kernel has forgotten."""
    if opcode == Opcode.FORGET:
        return [node_id]
    (count, _) = BATCH_FORGET.unpack_from(body)
    first = BATCH_FORGET.size
    return [FORGET_ONE.unpack_from(body, first + place * FORGET_ONE.size)[0] for place in range(count)]
