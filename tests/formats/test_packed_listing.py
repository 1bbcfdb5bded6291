"""The packed form of a listing: the same answers as the parsed listing, without parsing, and an error for wrong sizes."""

import pytest

from narcore.errors import ListingError
from narcore.formats.listing import Kind, NarListing, Node
from narcore.formats.nar import parse_nar
from tests.builders import nar
from tests.formats.test_listing import ROOTS, TREE

LISTINGS = {name: NarListing.from_events(parse_nar([nar(tree)], contents=False)) for name, tree in ROOTS.items()}
each = pytest.mark.parametrize("parsed", LISTINGS.values(), ids=LISTINGS)


def packed(listing: NarListing) -> NarListing:
    return NarListing.from_packed(listing.to_packed(), nar_size=listing.nar_size)


def nodes(listing: NarListing) -> list[Node]:
    return [listing.node(index) for index in range(len(listing))]


@each
def test_a_packed_listing_gives_the_same_answers(parsed: NarListing) -> None:
    found = packed(parsed)
    assert found == parsed
    assert parsed == found
    assert nodes(found) == nodes(parsed)
    assert b"".join(found.json_chunks()) == b"".join(parsed.json_chunks())
    for node in nodes(parsed):
        assert found.fingerprint(node) == parsed.fingerprint(node)
        assert found.total_size(node) == parsed.total_size(node)
        assert found.contents(node.index) == parsed.contents(node.index)
        assert list(found.children(node)) == list(parsed.children(node))
        if node.kind is Kind.DIRECTORY:
            assert [found.child(node, child.name) for child in parsed.children(node)] == list(parsed.children(node))
            assert found.child(node, "missing") is None


def test_packing_a_packed_listing_changes_nothing() -> None:
    data = LISTINGS["directory"].to_packed()
    assert NarListing.from_packed(data, nar_size=1).to_packed() == data


def test_a_big_endian_machine_converts_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = LISTINGS["directory"]
    data = parsed.to_packed()
    monkeypatch.setattr("sys.byteorder", "big")
    converted = parsed.to_packed()
    assert converted != data  # this machine is little-endian
    assert NarListing.from_packed(converted, nar_size=parsed.nar_size) == parsed


def test_two_packed_listings_differ_if_their_trees_differ() -> None:
    other = NarListing.from_events(parse_nar([nar({**TREE, b"new": b""})], contents=False))
    assert packed(other) != packed(LISTINGS["directory"])


@each
def test_a_wrong_size_is_rejected(parsed: NarListing) -> None:
    data = parsed.to_packed()
    for wrong in (*(data[:size] for size in range(len(data))), data + b"x", b"\xff" * 8 + data[8:], bytes(len(data))):
        with pytest.raises(ListingError):
            NarListing.from_packed(wrong, nar_size=parsed.nar_size)
