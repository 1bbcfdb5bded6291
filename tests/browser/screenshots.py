"""``python -m tests.browser.screenshots``: make the screenshots of the documentation, docs/images/*.png.

Starts the server with the demo cache and takes screenshots with headless Chromium, which must be installed. The demo cache is made
from files of this checkout, so the same checkout produces the same screenshots, except for the keys.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from narserve.dev.demo import TREE, build_demo
from tests import ROOT
from tests.browser.conftest import CHROMIUM, OPTIONS
from tests.e2e import fronts

IMAGES = ROOT / "docs" / "images"
WINDOW = {"width": 1000, "height": 780}

# File names, and URL paths below the root of the demo's tree.
SCREENSHOTS = {
    "directory.png": "/lib/narcore/",
    "file.png": "/lib/narcore/formats/nixbase32.py?view",
}


def main() -> int:
    """Write the screenshots. Returns the exit code."""
    if CHROMIUM is None:
        print("screenshots: Chromium is not installed; on Debian: apt install chromium", file=sys.stderr)
        return 1
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="screenshots-") as scratch:
        directory = Path(scratch)
        demo = build_demo(ROOT, directory / "cache")
        settings = {
            "NAR_CACHE_URL": (directory / "cache").as_uri(),
            "NAR_TRUSTED_PUBLIC_KEYS": demo.public_key,
            "NAR_CACHE_DIR": str(directory / "nars"),
        }
        root = next(path for _, path in demo.examples if f"-{TREE}" in path).rstrip("/")
        with fronts.running(settings, directory / "log") as front, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*OPTIONS])
            page = browser.new_page(viewport={"width": WINDOW["width"], "height": WINDOW["height"]})
            for name, path in SCREENSHOTS.items():
                page.goto(f"{front.url}{root}{path}")
                page.wait_for_load_state("networkidle")
                page.screenshot(path=directory / name)
                shutil.copy(directory / name, IMAGES / name)
                print(f"{(IMAGES / name).relative_to(ROOT)}: {(IMAGES / name).stat().st_size // 1024} KiB")
            browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
