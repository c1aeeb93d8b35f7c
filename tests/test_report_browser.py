"""The report of a real run in a real browser: nothing is fetched, nothing runs, hostile rows are text."""

import json
import shutil
from dataclasses import dataclass, field
from typing import Any

import pytest
from browsing import chromium
from making import make_rows

from alignlab import load_config, train
from alignlab.data import check, write_page
from alignlab.report.page import compare_runs

SCRIPT = "<script>document.title = 'taken'; alert(1)</script>"
HANDLER = '"><img src="http://192.0.2.1/x.png" onerror="alert(2)">'
STYLE = "</style></pre></svg><style>body { width: 4000px }</style>"
BIDI = "\u202etxt.exe\u202c \u2066x\u2069"
LONG = "x" * 600
HOSTILE = (SCRIPT, HANDLER, STYLE, BIDI, LONG)


@dataclass
class Opened:
    """A page, and what opening it brought about."""

    page: Any
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model_path):
    """A group-robust run on rows that try to break out of the page, with samples of their prompts."""
    folder = tmp_path_factory.mktemp("browser")
    rows = make_rows(24)
    for index, row in enumerate(rows):
        text = HOSTILE[index % len(HOSTILE)]
        row["prompt"] = f"{index} {text if text != LONG else LONG[:200]}"
        row["group"] = HOSTILE[index % 2] if index % 3 else STYLE + BIDI
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = {
        "loss": {"name": "group_robust", "base": {"name": "dpo", "beta": 0.5}},
        "model": {"name_or_path": str(model_path)},
        "data": {"train": str(path), "eval": str(path)},
        "output_dir": str(folder / "run"),
        "score_cache_dir": str(folder / "scores"),
        "run_name": SCRIPT + LONG,
        "max_steps": 4,
        "max_length": 512,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "disable_tqdm": True,
        "save_strategy": "no",
        "report_samples": 5,
    }
    return train(load_config(values))


def opened(browser, path, width, scheme="light"):
    """Opens a file in a fresh context; every request but that for the file itself is refused and noted."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    result = Opened(context.new_page())

    def decide(route):
        if route.request.url == path.as_uri():
            route.continue_()
        else:
            result.requests.append(route.request.url)
            route.abort()

    context.route("**/*", decide)
    result.page.on("console", lambda message: result.errors.append(f"{message.type}: {message.text}"))
    result.page.on("pageerror", lambda error: result.errors.append(str(error)))
    result.page.on("dialog", lambda dialog: (result.errors.append(f"dialog {dialog.message}"), dialog.dismiss()))
    result.page.goto(path.as_uri())
    result.page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    return result


SMALLEST_TEXT = """() => Math.min(...[...document.querySelectorAll('svg text')].map(
  one => parseFloat(getComputedStyle(one).fontSize) * one.ownerSVGElement.getScreenCTM().a))"""
SPILLS = """() => [...document.querySelectorAll('body *')].filter(one => !one.closest('svg, .scroll')
  && one.getBoundingClientRect().right > innerWidth + 1).map(one => one.tagName + one.textContent.slice(0, 40))"""


@pytest.mark.parametrize("width", [1280, 390])
def test_a_run_with_hostile_rows(browser, folder, tmp_path, width):
    result = opened(browser, folder / "report.html", width)
    page = result.page
    assert result.requests == []
    assert result.errors == []
    assert page.title() == "run · alignlab"
    assert page.evaluate("document.querySelectorAll('script, img, iframe, object, link:not([rel=icon])').length") == 0
    words = page.locator("body").inner_text()
    for text in (SCRIPT, HANDLER, STYLE, "⟨U+202E⟩txt.exe⟨U+202C⟩ ⟨U+2066⟩x⟨U+2069⟩"):
        assert text in words
    assert "\u202e" not in page.content()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(SPILLS) == []
    assert page.evaluate(SMALLEST_TEXT) >= 8
    assert page.locator("figure svg").count() >= 10
    page.screenshot(path=tmp_path / f"run_{width}.png", full_page=True)
    page.context.close()


def test_the_page_goes_dark_with_the_reader(browser, folder):
    colours = {}
    for scheme in ("light", "dark"):
        page = opened(browser, folder / "report.html", 1280, scheme).page
        ink, paper = (
            page.evaluate(f"getComputedStyle(document.querySelector('{where}')).{what}")
            for where, what in (("svg text", "fill"), ("body", "backgroundColor"))
        )
        colours[scheme] = (ink, paper)
        page.context.close()
    assert colours == {
        "light": ("rgb(29, 32, 36)", "rgb(251, 251, 250)"),
        "dark": ("rgb(231, 233, 236)", "rgb(22, 24, 27)"),
    }


@pytest.mark.parametrize("width", [1280, 390])
def test_runs_side_by_side(browser, folder, tmp_path, width):
    other = tmp_path / SCRIPT.replace("/", "_")
    shutil.copytree(folder, other)
    path = compare_runs([folder, other], tmp_path / "all.html")
    result = opened(browser, path, width)
    assert result.requests == []
    assert result.errors == []
    assert result.page.title() == "2 runs · alignlab"
    assert SCRIPT.replace("/", "_") in result.page.locator("body").inner_text()
    assert result.page.evaluate("document.documentElement.scrollWidth") <= width
    assert result.page.evaluate(SPILLS) == []
    assert result.page.evaluate(SMALLEST_TEXT) >= 8
    result.page.context.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_of_data_check(browser, tmp_path, width):
    rows = [{"prompt": text, "chosen": "a", "rejected": "b", "group": text} for text in HOSTILE]
    rows += [{"prompt": [{"role": text, "content": "x"}], "chosen": "a", "rejected": "b"} for text in HOSTILE]
    path = write_page(check(rows, progress=False), tmp_path / "check.html")
    result = opened(browser, path, width)
    assert result.page.title() == "Data check"
    assert result.requests == []
    assert result.errors == []
    assert result.page.evaluate("document.documentElement.scrollWidth") <= width
    words = result.page.locator("body").inner_text()
    for text in (SCRIPT, HANDLER, STYLE, "\\u202etxt.exe\\u202c \\u2066x\\u2069"):
        assert text in words
    assert "\u202e" not in result.page.content()
    result.page.screenshot(path=tmp_path / f"check_{width}.png", full_page=True)
    result.page.context.close()
