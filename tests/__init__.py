"""Tests. The folders mirror the packages.

``e2e`` reads caches that Nix wrote, ``browser`` tests the pages in Chromium, and ``bench`` measures the speed.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # the checkout
