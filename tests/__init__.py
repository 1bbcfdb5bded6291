"""Tests. Folders mirror the packages; ``e2e`` runs real Nix caches, ``browser`` Chromium, ``bench`` peers to compare with."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of the checkout
