"""Chromium with an empty profile, for the tests of pages; its lack is a skip, and in CI a failure."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


@contextmanager
def chromium() -> Iterator[Any]:
    """Yields a running browser."""
    found, reason = CHROMIUM is not None, "no Chromium on PATH"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        found, reason = False, "playwright is not installed"
    if not found:
        assert not os.environ.get("ALIGNLAB_TEST_BROWSER"), reason
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()
