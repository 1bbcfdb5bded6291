"""Derivations: conversion between text and value, and invalid input."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narcore.errors import FormatError
from narcore.formats import derivation as derivation_module
from narcore.formats.derivation import Derivation, DerivationOutput, Input

TEXT = (
    r'Derive([("out","/nix/store/z-x","r:sha256","00")],[("/nix/store/b.drv",["dev","out"]),("/nix/store/c.drv",["out"])],'
    r'["/nix/store/s-builder.sh"],"x86_64-linux","/bin/sh",["-e","a\"b\\c"],[("buildPhase","make\n\tall\r"),("out","/nix/store/z-x")])'
)
VALUE = Derivation(
    outputs=(DerivationOutput("out", "/nix/store/z-x", "r:sha256", "00"),),
    input_derivations=(Input("/nix/store/b.drv", ("dev", "out")), Input("/nix/store/c.drv", ("out",))),
    input_sources=("/nix/store/s-builder.sh",),
    system="x86_64-linux",
    builder="/bin/sh",
    arguments=("-e", 'a"b\\c'),
    environment=(("buildPhase", "make\n\tall\r"), ("out", "/nix/store/z-x")),
)
texts = st.text(st.characters(codec="utf-8") | st.sampled_from('"\\\n\t\r,)](['), max_size=12)
names = st.lists(texts, max_size=3).map(tuple)
derivations = st.builds(
    Derivation,
    outputs=st.lists(st.builds(DerivationOutput, texts, texts, texts, texts), max_size=3).map(tuple),
    input_derivations=st.lists(st.builds(Input, texts, names), max_size=3).map(tuple),
    input_sources=names,
    system=texts,
    builder=texts,
    arguments=names,
    environment=st.lists(st.tuples(texts, texts), max_size=3).map(tuple),
)


def test_text_and_value_are_those_of_nix() -> None:
    assert Derivation.parse(TEXT.encode()) == VALUE
    assert VALUE.to_text() == TEXT


@given(derivations)
def test_a_written_derivation_is_read_back(derivation: Derivation) -> None:
    assert Derivation.parse(derivation.to_text().encode("utf-8", "surrogateescape")) == derivation


def test_a_truncated_or_extended_derivation_is_refused() -> None:
    data = TEXT.encode()
    for length in range(len(data)):
        with pytest.raises(FormatError):
            Derivation.parse(data[:length])
    with pytest.raises(FormatError, match="after the end"):
        Derivation.parse(data + b"\n")


@given(st.integers(0, len(TEXT) - 1), st.binary(min_size=1, max_size=1))
def test_a_derivation_with_a_changed_byte_is_read_or_refused(place: int, byte: bytes) -> None:
    data = TEXT.encode()
    changed = data[:place] + byte + data[place + 1 :]
    with suppress(FormatError):
        found = Derivation.parse(changed)
        assert Derivation.parse(found.to_text().encode("utf-8", "surrogateescape")) == found


def test_a_derivation_above_the_size_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derivation_module, "SIZE_MAX", len(TEXT) - 1)
    with pytest.raises(FormatError, match="more than"):
        Derivation.parse(TEXT.encode())


def test_bytes_that_are_not_utf_8_are_preserved() -> None:
    data = TEXT.encode().replace(b"make", b"\xff\xfe")
    assert Derivation.parse(data).to_text().encode("utf-8", "surrogateescape") == data
