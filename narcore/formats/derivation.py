"""Derivations, the ``.drv`` files that describe Nix builds (Nix: src/libstore/derivations.cc, parseDerivation).

A file is one ATerm: ``Derive([outputs],[input derivations],[input sources],"system","builder",[arguments],[environment])``, without
white space. The newer form ``DrvWithVersion(...)``, which belongs to an experimental feature of Nix, is not supported.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, Self, TypeVar

from narcore.errors import FormatError
from narcore.formats.names import to_text

SIZE_MAX = 16 << 20
"""The size limit of a file in bytes. The largest known files have about 3 MB."""

_STRING = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"', re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_UNESCAPED = {"n": "\n", "r": "\r", "t": "\t"}
_SPECIAL = re.compile(r'["\\\n\r\t]')
_ESCAPED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}

T = TypeVar("T")


class DerivationOutput(NamedTuple):
    """An output of a derivation.

    ``path`` is "" if the output path is known only after the build; ``hash_algorithm`` and ``hash`` are "" unless the hash is fixed
    in advance.
    """

    name: str
    path: str
    hash_algorithm: str
    hash: str


class Input(NamedTuple):
    """An input derivation, and the names of those of its outputs that the build needs."""

    path: str
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Derivation:
    """One derivation. Text is UTF-8 with surrogateescape. The environment keeps the order of the file, which Nix writes sorted."""

    outputs: tuple[DerivationOutput, ...]
    input_derivations: tuple[Input, ...]
    input_sources: tuple[str, ...]
    system: str
    builder: str
    arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a ``.drv`` file. Raises FormatError, with the offset, if it is invalid or has more than SIZE_MAX bytes."""
        if len(data) > SIZE_MAX:
            raise FormatError(f"the derivation has more than {SIZE_MAX} bytes")
        reader = _Reader(to_text(data))
        reader.expect("Derive(")
        outputs = reader.list(reader.output)
        reader.expect(",")
        input_derivations = reader.list(reader.input)
        reader.expect(",")
        input_sources = reader.list(reader.string)
        reader.expect(",")
        system = reader.string()
        reader.expect(",")
        builder = reader.string()
        reader.expect(",")
        arguments = reader.list(reader.string)
        reader.expect(",")
        environment = reader.list(reader.variable)
        reader.expect(")")
        reader.expect_end()
        return cls(outputs, input_derivations, input_sources, system, builder, arguments, environment)

    def to_text(self) -> str:
        """Return the derivation as Nix writes it."""
        parts = (
            _list(_tuple(*map(_quoted, output)) for output in self.outputs),
            _list(_tuple(_quoted(path), _list(map(_quoted, names))) for path, names in self.input_derivations),
            _list(map(_quoted, self.input_sources)),
            _quoted(self.system),
            _quoted(self.builder),
            _list(map(_quoted, self.arguments)),
            _list(_tuple(_quoted(name), _quoted(value)) for name, value in self.environment),
        )
        return "Derive" + _tuple(*parts)


class _Reader:
    """The text of a file, and the position up to which it has been read."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0

    def expect(self, literal: str) -> None:
        if not self._text.startswith(literal, self._position):
            raise FormatError(f"expected {literal!r}", where=f"offset {self._position}")
        self._position += len(literal)

    def expect_end(self) -> None:
        if self._position != len(self._text):
            raise FormatError("data after the end", where=f"offset {self._position}")

    def string(self) -> str:
        match = _STRING.match(self._text, self._position)
        if match is None:
            raise FormatError("expected a string", where=f"offset {self._position}")
        self._position = match.end()
        return _ESCAPE.sub(lambda escape: _UNESCAPED.get(escape[1], escape[1]), match[1])

    def list(self, item: Callable[[], T]) -> tuple[T, ...]:
        self.expect("[")
        items: list[T] = []
        while not self._text.startswith("]", self._position):
            if items:
                self.expect(",")
            items.append(item())
        self.expect("]")
        return tuple(items)

    def output(self) -> DerivationOutput:
        return DerivationOutput(*self._strings(4))

    def input(self) -> Input:
        self.expect("(")
        path = self.string()
        self.expect(",")
        outputs = self.list(self.string)
        self.expect(")")
        return Input(path, outputs)

    def variable(self) -> tuple[str, str]:
        name, value = self._strings(2)
        return name, value

    def _strings(self, count: int) -> Iterable[str]:
        self.expect("(")
        strings = []
        for index in range(count):
            if index:
                self.expect(",")
            strings.append(self.string())
        self.expect(")")
        return strings


def _quoted(text: str) -> str:
    return '"' + _SPECIAL.sub(lambda special: _ESCAPED.get(special[0], "\\" + special[0]), text) + '"'


def _list(items: Iterable[str]) -> str:
    return f"[{','.join(items)}]"


def _tuple(*items: str) -> str:
    return f"({','.join(items)})"
