"""The site: every page of the index and every public name is in it, every link holds, and it asks nothing of anyone."""

import functools
import http.server
import inspect
import re
import threading
from importlib import import_module
from pathlib import Path

import pytest
from browsing import chromium

ROOT = Path(__file__).resolve().parent.parent
FACES = ("alignlab", "alignlab.losses", "alignlab.data", "alignlab.scoring")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site") / "site"
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


@pytest.fixture(scope="module")
def address(site):
    """The site behind a server of this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_every_page_of_the_index_is_in_the_menu(site):
    menu = (site / "index.html").read_text(encoding="utf-8")
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = re.findall(r"^- \[(.+)\]\((?!\.\.)(.+)\.md\)$", index, re.MULTILINE)
    assert len(pages) >= 24
    for _, page in pages:
        name = page.replace("README", "index") + ".html"
        assert (site / name).is_file()
        assert f'href="{name}"' in menu
    for page in ("contributing", "changelog"):
        assert (site / f"{page}.html").is_file()


@pytest.mark.parametrize("face", FACES)
def test_every_public_name_is_described(site, face):
    page = (site / "api" / f"{face}.html").read_text(encoding="utf-8")
    room = import_module(face)
    offered = {name: getattr(room, name) for name in room.__all__}
    documented = {name for name, one in offered.items() if inspect.isclass(one) or inspect.isfunction(one)}
    missing = {name for name in documented if not re.search(rf'id="alignlab\.[\w.]*\b{name}"', page)}
    assert len(documented) > 3
    assert missing == set()


def test_links_beside_the_pages_hold(site):
    """What a page links to outside of docs/ is a page of the site, or plain words: no link leads out of the folder."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r'(?:href|src)="([^"#?]+)', text):
            if (
                "://" not in target
                and not target.startswith(("mailto:", "data:", "javascript:"))
                and page.stem != "404"
            ):
                assert (page.parent / target).exists(), (page.name, target)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_opens_in_a_browser(address, width, scheme, tmp_path):
    with chromium() as browser:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        asked, errors, colours = [], [], set()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        for name in ("index", "losses", "config", "architecture", "api/alignlab"):
            page.goto(f"{address}/{name}.html")
            page.wait_for_timeout(200)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            assert page.locator("h1").count() == 1, name
            colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            page.screenshot(path=tmp_path / f"{name.replace('/', '_')}_{width}_{scheme}.png")
        assert [url for url in asked if not url.startswith(address)] == []
        assert errors == []
        assert len(colours) == 1
        assert (colours == {"rgb(255, 255, 255)"}) is (scheme == "light")
