"""The part of the kernel's FUSE protocol that a read-only file system needs (Linux: include/uapi/linux/fuse.h, 7.9 to 7.45).

Requests and answers consist of a header and a body. The header of an answer has its length, the number of the request, and a
negated errno. All numbers are in the byte order of the machine.
"""

import enum
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass

from narcore.errors import MountError

MAJOR, MINOR = 7, 41  # the protocol version of the answers; older and newer kernels accept it
MINOR_MIN = 23  # Linux 3.15; the sizes of answers have not changed since that version

REQUEST = struct.Struct("=IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding
ANSWER = struct.Struct("=IiQ")  # len, -errno (in a notification: its code), unique (in a notification: 0)
ATTR = struct.Struct("=QQQQQQIIIIIIIIII")
ENTRY = struct.Struct("=QQQQII")  # nodeid, generation, cache times of name and attributes (s, s, ns, ns)
ATTR_VALID = struct.Struct("=QII")
READ = struct.Struct("=QQIIQII")  # fh, offset, size, ...
RELEASE = struct.Struct("=QIIQ")  # fh, ...
OPENED = struct.Struct("=QIi")  # fh, flags, backing id
DIRENT = struct.Struct("=QQII")  # ino, offset of the next record, length of the name, type
INTERRUPT = struct.Struct("=Q")  # the number of the request whose process got a signal
BATCH_FORGET = struct.Struct("=II")  # how many nodes follow
FORGET_ONE = struct.Struct("=QQ")  # nodeid, number of lookups
STATFS = struct.Struct("=QQQQQIIII24x")
INIT_IN = struct.Struct("=IIIII")  # major, minor, max_readahead, flags, flags2
INIT_OUT = struct.Struct("=IIIIHHIIHHIIH22x")
INVAL_INODE = struct.Struct("=Qqq")
PRUNE = struct.Struct("=I12x")  # how many node ids follow

PRUNE_MINOR = 45  # Linux 6.18

ROOT_ID = 1

# A request has at most max_write bytes of data and its headers. If the buffer is smaller, read(2) fails with EINVAL.
MAX_WRITE = 64 * 1024
BUFFER_SIZE = MAX_WRITE + 4096
MAX_PAGES = 256  # the most that one READ requests
MAX_BACKGROUND = 64  # concurrent requests for which no process waits yet (read-ahead)


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
"""A function that sends the kernel a notification with this code and body."""


class Open(enum.IntFlag):
    KEEP_CACHE = 1 << 1
    PASSTHROUGH = 1 << 7


class Flag(enum.IntFlag):
    """Features that this file system wants, if the kernel offers them in INIT."""

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


@dataclass(frozen=True, slots=True)
class Agreed:
    """The result of INIT when the file system was mounted. ``minor`` is the protocol version of the kernel."""

    minor: int
    passthrough: bool
    resend: bool

    @property
    def prune(self) -> bool:
        """Whether the kernel supports Notify.PRUNE, which asks it to forget nodes that no process uses."""
        return self.minor >= PRUNE_MINOR


def agree(request: bytes, *, passthrough: bool) -> tuple[Agreed, bytes]:
    """Return the agreed features and the answer to INIT, the kernel's first request. Raises MountError if the kernel is too old."""
    _length, opcode, unique, *_ = REQUEST.unpack_from(request)
    body = request[REQUEST.size :].ljust(INIT_IN.size, b"\0")
    major, minor, readahead, low, high = INIT_IN.unpack_from(body)
    if opcode != Opcode.INIT or major != MAJOR or minor < MINOR_MIN:
        raise MountError(
            f"the kernel has FUSE {major}.{minor}; Linux 3.15 or newer is needed (FUSE {MAJOR}.{MINOR_MIN})"
        )
    offered = Flag(low | (high << 32 if low & Flag.INIT_EXT else 0))
    flags = Flag(offered & (sum(Flag) if passthrough else sum(Flag) - Flag.PASSTHROUGH))
    depth = 1 if Flag.PASSTHROUGH in flags else 0  # stacking depth: the backing files are one level below
    body = INIT_OUT.pack(
        MAJOR, min(minor, MINOR), readahead, flags & 0xFFFFFFFF, MAX_BACKGROUND, MAX_BACKGROUND * 3 // 4, MAX_WRITE,
        1, MAX_PAGES, 0, flags >> 32, depth, 0,
    )  # fmt: skip
    agreed = Agreed(minor, Flag.PASSTHROUGH in flags, Flag.HAS_RESEND in flags)
    return agreed, answer(unique, 0, len(body)) + body


def answer(unique: int, errno: int, length: int) -> bytes:
    """Return the header of an answer with a body of ``length`` bytes."""
    return ANSWER.pack(ANSWER.size + length, -errno, unique)


def notification(code: Notify, body: bytes = b"") -> bytes:
    return ANSWER.pack(ANSWER.size + len(body), code, 0) + body


def prune(node_ids: list[int]) -> bytes:
    """Return the body of Notify.PRUNE. Of these nodes, the kernel forgets the ones that no process uses."""
    return PRUNE.pack(len(node_ids)) + struct.pack(f"={len(node_ids)}Q", *node_ids)


def attributes(node_id: int, mode: int, size: int) -> bytes:
    """Return the attributes of a node. The owner is root. All times are one second after the epoch, as in a Nix store.

    Directories have a link count of 1. This tells programs such as find that the link count says nothing about subdirectories.
    """
    return ATTR.pack(node_id, size, (size + 511) // 512, 1, 1, 1, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def entry(node_id: int, seconds: int, attrs: bytes) -> bytes:
    """Return the answer to LOOKUP. The kernel may cache name and attributes for ``seconds``."""
    return ENTRY.pack(node_id, 0, seconds, seconds, 0, 0) + attrs


def no_entry(seconds: int) -> bytes:
    """Return the answer to LOOKUP for a name that does not exist. The kernel may cache this answer for ``seconds``."""
    return ENTRY.pack(0, 0, seconds, 0, 0, 0) + bytes(ATTR.size)


def attr_answer(seconds: int, attrs: bytes) -> bytes:
    return ATTR_VALID.pack(seconds, 0, 0) + attrs


def dirent(node_id: int, offset: int, name: bytes, mode: int) -> bytes:
    """Return the record of one directory entry. ``offset`` is the position after the record, where reading continues."""
    head = DIRENT.pack(node_id, offset, len(name), stat.S_IFMT(mode) >> 12)
    return head + name + bytes(-(len(head) + len(name)) % 8)


def forgotten(opcode: int, node_id: int, body: bytes) -> list[int]:
    """Return the nodes that the kernel has forgotten, from a FORGET or BATCH_FORGET request."""
    if opcode == Opcode.FORGET:
        return [node_id]
    (count, _) = BATCH_FORGET.unpack_from(body)
    first = BATCH_FORGET.size
    return [FORGET_ONE.unpack_from(body, first + place * FORGET_ONE.size)[0] for place in range(count)]
