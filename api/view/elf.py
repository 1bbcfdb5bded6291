"""Reads the interpreter, the run path and the needed libraries from an ELF file."""

from collections.abc import Callable, Iterator
from contextlib import closing
from io import SEEK_CUR, SEEK_END, SEEK_SET
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from narcore.errors import NarcoreError
from narcore.nars.accessor import NarBytes

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile

MAGIC = b"\x7fELF"

# Limits for reading one file. The file is untrusted, and its headers determine which bytes are read.
_BLOCK = 32 * 1024
_BLOCKS = 64
_READS = 50_000
_TAGS = 2000


class ElfFacts(NamedTuple):
    """Properties of an ELF file. The texts are not escaped, and the run path is split at its colons."""

    kind: str
    machine: str
    interpreter: str
    soname: str
    run_path: list[str]
    needed: list[str]


def elf_facts(read: Callable[[int, int], NarBytes], size: int) -> ElfFacts | None:
    """Read the properties of an ELF file of ``size`` bytes. ``read`` returns the bytes from start to stop.

    Returns None if the file is malformed or reading it exceeds the limits. Raises the exceptions of ``read``.
    """
    from elftools.elf.elffile import ELFFile  # imported here to keep the start fast

    try:
        return _facts(ELFFile(cast(BinaryIO, _Ranges(read, size))))
    except NarcoreError:
        raise
    except Exception:  # noqa: BLE001  elftools raises arbitrary exceptions for a damaged file
        return None


def _facts(elf: "ELFFile") -> ElfFacts:
    from elftools.elf.dynamic import DynamicSegment
    from elftools.elf.segments import InterpSegment

    dynamic: dict[str, list[str]] = {"DT_NEEDED": [], "DT_RPATH": [], "DT_RUNPATH": [], "DT_SONAME": []}
    interpreter = ""
    for segment in elf.iter_segments():
        if isinstance(segment, InterpSegment):
            interpreter = segment.get_interp_name()
        elif isinstance(segment, DynamicSegment):
            for tag in islice(segment.iter_tags(), _TAGS):
                if tag.entry.d_tag in dynamic:
                    dynamic[tag.entry.d_tag].append(_text_of(tag))
    paths = dynamic["DT_RUNPATH"] or dynamic["DT_RPATH"]
    return ElfFacts(
        kind=_KINDS.get(elf["e_type"], str(elf["e_type"])),
        machine=elf.get_machine_arch(),
        interpreter=interpreter,
        soname="".join(dynamic["DT_SONAME"][:1]),
        run_path=[path for each in paths for path in each.split(":") if path],
        needed=dynamic["DT_NEEDED"],
    )


_KINDS = {
    "ET_EXEC": "executable with a fixed address",
    "ET_DYN": "shared library or position-independent executable",
    "ET_REL": "relocatable object file",
    "ET_CORE": "core dump",
}
_ATTRIBUTES = {"DT_NEEDED": "needed", "DT_RPATH": "rpath", "DT_RUNPATH": "runpath", "DT_SONAME": "soname"}


def _text_of(tag: Any) -> str:
    text: str = getattr(tag, _ATTRIBUTES[tag.entry.d_tag])
    return text


class _Ranges:
    """A seekable file object on top of ``read``. Raises IndexError if a limit is exceeded."""

    def __init__(self, read: Callable[[int, int], NarBytes], size: int) -> None:
        self._read = read
        self._size = size
        self._position = 0
        self._blocks: dict[int, bytes] = {}
        self._reads = 0

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        base = {SEEK_SET: 0, SEEK_CUR: self._position, SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, length: int = -1) -> bytes:
        self._reads += 1
        if self._reads > _READS:
            raise IndexError("too many reads")
        stop = self._size if length < 0 else min(self._size, self._position + length)
        if stop - self._position > _BLOCK * _BLOCKS:
            raise IndexError("read too long")
        data = b"".join(self._pieces(self._position, stop))
        self._position += len(data)
        return data

    def close(self) -> None:
        self._blocks.clear()

    def _pieces(self, start: int, stop: int) -> Iterator[bytes]:
        while start < stop:
            number, offset = divmod(start, _BLOCK)
            piece = self._block(number)[offset : offset + stop - start]
            yield piece
            start += len(piece)

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            if len(self._blocks) == _BLOCKS:
                raise IndexError("too many blocks")
            start = number * _BLOCK
            with closing(self._read(start, min(self._size, start + _BLOCK))) as content:
                self._blocks[number] = b"".join(content)
        return self._blocks[number]
