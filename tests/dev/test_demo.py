"""The demo cache is a valid binary cache, and contains all of its examples."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from narcore.formats.narinfo import NarInfo
from narcore.formats.signature import PublicKey
from narserve.dev.demo import build_demo
from tests import ROOT


def node_at(listing: dict[str, Any], path: str) -> dict[str, Any]:
    node = listing["root"]
    for name in filter(None, path.split("/")):
        node = node["entries"][name]
    return dict(node)


def test_every_example_exists(tmp_path: Path) -> None:
    nodes = {}
    for label, url in build_demo(ROOT, tmp_path).examples:
        base_name, _, inside = unquote(url).removeprefix("/nix/store/").partition("/")
        listing = json.loads((tmp_path / f"{base_name[:32]}.ls").read_bytes())
        nodes[label] = node_at(listing, inside)
    assert [node["type"] for node in nodes.values()].count("directory") == 2
    assert nodes["an executable"]["executable"] is True
    assert nodes["a link within the store path"]["target"] == "start-dev"
    assert nodes["a link into another store path"]["target"].endswith("-nar-serve-docs")
    assert "index.html" in nodes["a web page with an image"]["entries"]


def test_the_paths_are_signed_refer_to_each_other_and_keep_their_hashes(tmp_path: Path) -> None:
    once = build_demo(ROOT, tmp_path / "a")
    assert build_demo(ROOT, tmp_path / "b").examples == once.examples
    narinfos = [NarInfo.parse(path.read_bytes()) for path in (tmp_path / "a").glob("*.narinfo")]
    assert all(narinfo.signed_by([PublicKey.parse(once.public_key)]) for narinfo in narinfos)
    references = {narinfo.store_path.name: [name[33:] for name in narinfo.references] for narinfo in narinfos}
    assert references == {
        "nar-serve-docs": [],
        "nar-serve-demo": ["nar-serve-docs"],
        "nar-serve-site": ["nar-serve-docs"],
    }
