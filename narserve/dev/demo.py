"""A demo binary cache, made from files of this checkout, so that the development server has content without a network.

It has three store paths: the documents, a tree with every kind of node and of link, and a small web site. They are made at each
start and signed with a temporary key. Their hashes are derived from their contents, so the URLs change only if the files change.
"""

import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from narcore.export import write_binary_cache
from narcore.formats.signature import SecretKey
from narcore.formats.storepath import StorePath

DOCS, TREE, SITE = "nar-serve-docs", "nar-serve-demo", "nar-serve-site"

PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>A page from a NAR</title>
<link rel="stylesheet" href="style.css">
<h1><img src="images/logo.svg" alt="A box with an arrow" width="96" height="96"> A page from a NAR</h1>
<p>This page, its style sheet and the picture are files of one store path in a binary cache. The relative link to the
picture works because the URL of a directory ends with a slash.</p>
<p>The <a href="../{docs}/README.md">documents</a> are in another store path.</p>
</html>
"""
STYLE = "body { font: 1.1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 3rem auto; padding: 0 1rem }\n"


class Demo(NamedTuple):
    """The examples for the landing page, as pairs of label and URL path, and the public key of the demo cache."""

    examples: list[tuple[str, str]]
    public_key: str


def build_demo(root: Path, directory: Path) -> Demo:
    """Write the demo cache into ``directory``, from the checkout at ``root``. The URL of the store is ``file://DIRECTORY``."""
    key = SecretKey.generate("nar-serve-demo-1")
    with tempfile.TemporaryDirectory(prefix="nar-serve-demo-") as scratch:
        trees = {name: Path(scratch, name) for name in (DOCS, TREE, SITE)}
        make_docs(root, trees[DOCS])
        # The other trees refer to the documents, and the hash of the documents is known only now. The documents are written again
        # together with the other trees, because references are found only among paths that are written together.
        (docs,) = write_binary_cache(directory, {DOCS: trees[DOCS]}, secret_key=key)
        make_tree(root, trees[TREE], docs)
        make_site(root, trees[SITE], docs)
        return Demo(examples(*write_binary_cache(directory, trees, secret_key=key)), str(key.public_key))


def make_docs(root: Path, docs: Path) -> None:
    docs.mkdir()
    for path in (*root.glob("*.md"), root / "LICENSE"):
        shutil.copy(path, docs)


def make_tree(root: Path, tree: Path, docs: StorePath) -> None:
    shutil.copytree(root / "narcore", tree / "lib" / "narcore", ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "bin").mkdir()
    shutil.copy(root / "start-dev", tree / "bin" / "start-dev")
    (tree / "bin" / "dev").symlink_to("start-dev")
    (tree / "share").mkdir()
    (tree / "share" / "doc").symlink_to(str(docs))
    (tree / "share" / "nowhere").symlink_to("../lib/no such file")
    (tree / "share" / "a name with spaces.txt").write_text(
        "The URL of this file is percent-encoded; its name is not.\n"
    )


def make_site(root: Path, site: Path, docs: StorePath) -> None:
    (site / "images").mkdir(parents=True)
    shutil.copy(root / "public" / "favicon.svg", site / "images" / "logo.svg")
    (site / "style.css").write_text(STYLE)
    (site / "index.html").write_text(PAGE.format(docs=docs.base_name))


def examples(docs: StorePath, tree: StorePath, site: StorePath) -> list[tuple[str, str]]:
    found = (
        ("a directory", tree, "/"),
        ("a file, some folders down", tree, "/lib/narcore/formats/nixbase32.py"),
        ("an executable", tree, "/bin/start-dev"),
        ("a link within the store path", tree, "/bin/dev"),
        ("a link into another store path", tree, "/share/doc"),
        ("a link that leads nowhere", tree, "/share/nowhere"),
        ("a name with spaces", tree, "/share/a name with spaces.txt"),
        ("a web page with an image", site, "/"),
        ("a document", docs, "/README.md"),
    )
    return [(label, quote(f"{store_path}{path}")) for label, store_path, path in found]
