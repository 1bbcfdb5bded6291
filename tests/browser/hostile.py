"""Trees with hostile names and contents that try to be executed in a page, and a tree of a normal package."""

from tests.builders import Tree, exe, link
from tests.e2e import links

RTL, LRI, ZERO_WIDTH = "\u202e", "\u2066", "\u200b"
NAMES = (
    "<img src=x onerror=alert(1)>",
    "<script>window.ran = 1<",
    "'\"><svg onload=alert(2)>",
    "javascript:alert(3)",
    "data:text,x",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt;&#60;",
    "a\nb\tc\x1b[31m",
    "\r\nSet-Cookie: a=b",
    f"{RTL}gpj.exe",
    f"{LRI}x",
    f"in{ZERO_WIDTH}visible",
    "`${alert(4)}`",
    "..x",
    "--",
    "?view",
    "#L1",
    "%3Cscript%3E",
)
MARKUP = b"<script>window.ran = 1; alert(5)</script><img src=x onerror=alert(6)>"
README = b"""# A package

<script>window.ran = 1</script> <img src="x" onerror="alert(7)"> <a href="javascript:alert(8)">one</a>
[two](javascript:alert(9)) [three](data:text/html,<script>alert(10)</script>) ![four](https://elsewhere.test/x.png)
<iframe src="https://elsewhere.test/"></iframe><form action="https://elsewhere.test/"><input name=a></form>
<style>body { display: none }</style>

| a | b |
|---|---|
| 1 | 2 |
"""

NAME = "hostile"
TREE: dict[str, Tree] = {
    "names": dict.fromkeys(NAMES, MARKUP),
    "links": {f"to {number}": link(name) for number, name in enumerate(NAMES)},
    "readme": {"README.md": README},
    "script.js": MARKUP + b"\n</code></pre></div>" + MARKUP,
    "<b>.py": b'"""</span><script>alert(11)</script>"""\n',
    "page.html": b"<!doctype html>" + MARKUP,
    "image.svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(12)</script></svg>",
    "bytes": b"\x7fELF\x02" + MARKUP + bytes(range(256)),
}

DERIVATION = (
    b'Derive([("out","/nix/store/7rjj86a15146cq1d3qy068lml7n7ykzm-hello","","")],[],["/nix/store/7rjj86a15146cq1d3qy068lml7n7ykzm-x.sh"],'
    b'"x86_64-linux","/bin/sh",["-e","<b>"],[("name","hello"),("text","a\\nb <i>c</i>")])'
)
PACKAGE_NAME = "package"
PACKAGE: dict[str, Tree] = {
    "README.md": README.split(b"\n\n")[0] + b"\n\nText with `code`, a [link](bin/) and\n\n```\na block\n```\n",
    "bin": {"tool": exe(b"#!/bin/sh\necho tool\n"), "too": link("tool")},
    "elsewhere": link(f"{links.store_path(links.HELLO)}/bin"),
    "empty": b"",
    "hello.drv": DERIVATION,
    "log.txt": b"".join(b"%04d %s\n" % (line, b"of a log " * 110) for line in range(300)),  # several pages long
}
