"""Finds the store paths in a text and turns them into links."""

import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple

from markupsafe import Markup, escape

from api.http.text import quote_path
from narcore.formats.nixbase32 import ALPHABET

# Characters that are invisible or change the displayed order of other characters ("Trojan Source"), and other control characters.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
_PUNCTUATION = ".,:;!?"  # at the end of a path, these characters belong to the sentence around the path


class Link(NamedTuple):
    label: str
    href: str


def visible(text: str) -> str:
    """Replace the invisible characters of ``text`` by their names, except line feeds and tabs."""
    return _INVISIBLE.sub(lambda match: f"⟨{_name(match[0])}⟩", text)


def _name(character: str) -> str:
    code = ord(character)
    return f"{code:02X}" if code < 0x100 else f"U+{code:04X} {unicodedata.name(character, '')}".rstrip()


class StoreLinks:
    """Makes links to the store paths of one store dir. ``prefix`` is the percent-encoded prefix of their URLs."""

    def __init__(self, store_dir: str, prefix: str) -> None:
        self.prefix = prefix
        self.store_dir = store_dir
        self._path = _pattern(store_dir)

    def linked(self, text: str) -> Markup:
        """Return ``text``, escaped, with a link to the page of each path in it."""
        if self.store_dir not in text:
            return escape(text)
        parts: list[str] = []
        end = 0
        for match in self._path.finditer(text):
            path = match[0].rstrip(_PUNCTUATION)
            parts += (escape(text[end : match.start()]), self._anchor(path))
            end = match.start() + len(path)
        return Markup("".join([*parts, escape(text[end:])]))  # noqa: S704  each part is escaped

    def paths(self, text: str) -> list[Link]:
        """Return links to the paths in ``text``, without duplicates, in the order of their first occurrence."""
        found = dict.fromkeys(match[0].rstrip(_PUNCTUATION) for match in self._path.finditer(text))
        return [Link(path, self.href(path)) for path in found]

    def href(self, path: str) -> str:
        return f"{self.prefix}{quote_path(path)}?view"

    def _anchor(self, path: str) -> Markup:
        return Markup('<a href="{}">{}</a>').format(self.href(path), path)


@lru_cache(maxsize=16)
def _pattern(store_dir: str) -> re.Pattern[str]:
    name = rf"[{ALPHABET}]{{32}}-[0-9A-Za-z+\-._?=]{{1,211}}"
    return re.compile(rf"""{re.escape(store_dir)}/{name}(?:/[^\s"'<>()\[\]{{}}|&$`\\:;,*]{{1,1000}})*""")
