"""Content-Type from a fixed table of file name extensions, or from the first bytes of a file.

The table of the machine (``mimetypes``) is not used: a response must not depend on the machine, especially a response that is
cached for a year. A compressed file has the type of its compression and never a Content-Encoding, so a client gets the bytes as
they are in the store.
"""

import codecs
import re

PLAIN = "text/plain; charset=utf-8"
BINARY = "application/octet-stream"

# If the file name does not determine the type, this many bytes at the beginning of the file do.
SNIFF_LENGTH = 1024

_TYPES: dict[str, str] = {
    # the web
    "text/html; charset=utf-8": "html htm",
    "application/xhtml+xml": "xhtml xht",
    "text/css; charset=utf-8": "css",
    "text/javascript; charset=utf-8": "js mjs cjs",
    "application/json": "json map webmanifest ipynb",
    "application/ld+json": "jsonld",
    "application/geo+json": "geojson",
    "application/wasm": "wasm",
    "application/xml": "xml xsl xslt xsd rng dtd",
    "application/atom+xml": "atom",
    "application/rss+xml": "rss",
    # Text that a browser should show. A browser would download files with a more specific type such as text/markdown.
    PLAIN: (
        "txt text md markdown rst org adoc log nfo diff patch asc pub c h cc cpp cxx hh hpp hxx inc m mm rs "
        "go java kt kts scala groovy gradle cs fs fsi fsx vb swift zig nim d v sv vhd vhdl py pyi pyx pl pm "
        "pod t rb erb php lua tcl r jl ex exs erl hrl clj cljs edn lisp lsp el scm ss rkt hs lhs ml mli elm "
        "purs agda idr lean coq asm s f f90 f95 for pas ada adb ads awk sed sh bash zsh fish csh ksh ps1 bat "
        "cmd ts tsx jsx vue svelte scss sass less coffee sql graphql proto thrift nix drv toml yaml yml ini "
        "cfg conf cnf properties env service socket timer target rules desktop mk mak cmake am ac m4 in pc la "
        "spec def bzl bazel ninja meson dockerfile tf hcl tex sty cls bib ltx dot gv y l yy ll po pot strings "
        "vim lock sum"
    ),
    "text/csv; charset=utf-8": "csv",
    "text/tab-separated-values; charset=utf-8": "tsv",
    "text/vtt; charset=utf-8": "vtt",
    "text/calendar; charset=utf-8": "ics",
    "text/x-nix-narinfo; charset=utf-8": "narinfo",
    # documents
    "application/pdf": "pdf",
    "application/postscript": "ps eps ai",
    "application/rtf": "rtf",
    "application/epub+zip": "epub",
    "application/msword": "doc",
    "application/vnd.ms-excel": "xls",
    "application/vnd.ms-powerpoint": "ppt",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": "pptx",
    "application/vnd.oasis.opendocument.text": "odt",
    "application/vnd.oasis.opendocument.spreadsheet": "ods",
    "application/vnd.oasis.opendocument.presentation": "odp",
    # images
    "image/png": "png",
    "image/apng": "apng",
    "image/jpeg": "jpg jpeg jpe jfif",
    "image/gif": "gif",
    "image/webp": "webp",
    "image/avif": "avif",
    "image/heic": "heic",
    "image/jxl": "jxl",
    "image/svg+xml": "svg",
    "image/bmp": "bmp",
    "image/tiff": "tif tiff",
    "image/vnd.microsoft.icon": "ico cur",
    "image/vnd.djvu": "djvu djv",
    # audio and video
    "audio/mpeg": "mp3",
    "audio/mp4": "m4a",
    "audio/aac": "aac",
    "audio/ogg": "oga ogg opus spx",
    "audio/flac": "flac",
    "audio/wav": "wav",
    "audio/midi": "mid midi",
    "video/mp4": "mp4 m4v",
    "video/webm": "webm",
    "video/ogg": "ogv",
    "video/quicktime": "mov",
    "video/x-matroska": "mkv",
    "video/mpeg": "mpg mpeg",
    "video/x-msvideo": "avi",
    # fonts
    "font/woff2": "woff2",
    "font/woff": "woff",
    "font/ttf": "ttf",
    "font/otf": "otf",
    "font/collection": "ttc",
    "application/vnd.ms-fontobject": "eot",
    # archives and compressed files
    "application/gzip": "gz tgz svgz",
    "application/x-bzip2": "bz2 tbz tbz2",
    "application/x-xz": "xz txz",
    "application/zstd": "zst tzst",
    "application/x-lz4": "lz4",
    "application/x-lzma": "lzma",
    "application/x-lzip": "lz",
    "application/x-compress": "z",
    "application/x-brotli": "br",
    "application/x-tar": "tar",
    "application/zip": "zip whl egg",
    "application/java-archive": "jar war",
    "application/vnd.android.package-archive": "apk",
    "application/x-7z-compressed": "7z",
    "application/vnd.rar": "rar",
    "application/x-cpio": "cpio",
    "application/x-rpm": "rpm",
    "application/vnd.debian.binary-package": "deb",
    "application/x-iso9660-image": "iso",
    "application/x-nix-nar": "nar",
    # binary formats: their first bytes need not be read
    BINARY: (
        "so a o ko dll exe dylib bin img elf hi dyn_hi p_hi rlib rmeta cmi cmo cmx cmxa cma cmt cmti cmxs "
        "pyc pyo class beam mo pak dbm"
    ),
    "application/vnd.sqlite3": "sqlite sqlite3",
}

_BY_EXTENSION = {extension: media_type for media_type, names in _TYPES.items() for extension in names.split()}

# WHATWG MIME Sniffing, "binary data byte": every control character except tab, line feed, form feed, return and escape.
_BINARY_BYTE = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")


def type_by_name(name: str) -> str | None:
    """Return the media type for the extension of a file name, or None if the extension is unknown."""
    stem, dot, extension = name.rpartition(".")
    return _BY_EXTENSION.get(extension.lower()) if dot and stem else None


def type_by_content(head: bytes, *, complete: bool) -> str:
    """Return PLAIN or BINARY, depending on the first ``SNIFF_LENGTH`` bytes. ``complete``: ``head`` is the whole file.

    Contents never determine any other type: only a file name may select a type that a browser would execute.
    """
    if _BINARY_BYTE.search(head):
        return BINARY
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=complete)
    except UnicodeDecodeError:
        return BINARY
    return PLAIN
