"""Tables, text and the log on the terminal, 120 columns wide where there is none, and no code that steers it."""

from __future__ import annotations

import logging
import os
import sys
import textwrap
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

NOISY = ("transformers", "accelerate", "datasets", "torch", "deepspeed")


def show(*objects: Any) -> None:
    """Prints what rich can print, brackets as brackets, characters that steer a terminal spelled out."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 120)
    for one in objects:
        console.print(_Spelled(one), markup=False, highlight=False)


class _Spelled:
    """Anything that rich can print, without what its text could do to a terminal."""

    def __init__(self, shown: Any) -> None:
        self.shown = shown

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.segment import Segment

        from alignlab.data import printable

        shown = console.render_str(self.shown, markup=False, highlight=False) if isinstance(self.shown, str) else None
        for text, style, control in console.render(shown or self.shown, options):
            yield Segment(text if control else printable(text), style, control)


def start_logging(ours: int = logging.INFO) -> None:
    """Turns on the log of a run: our own words, those of libraries where something is wrong, and none of their bars."""
    handler = _Stderr()
    handler.setFormatter(_Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    main = os.environ.get("RANK", "0") == "0"
    logging.getLogger("alignlab").setLevel(ours if main else logging.WARNING)
    quiet_libraries()


def quiet_libraries() -> None:
    """Keeps out bars of libraries, and what they warn of that no user can change; ``ALIGNLAB_DEBUG=1`` lets all in."""
    if debugging():
        return
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in NOISY:
        warnings.filterwarnings("ignore", category=FutureWarning, module=rf"{name}(\.|$)")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=rf"{name}(\.|$)")
    warnings.filterwarnings("ignore", message=".*'?pin_memory'? argument is set as true but no accelerator")
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator" not in record.getMessage())
    from transformers.utils import logging as theirs

    theirs.disable_progress_bar()
    theirs.set_verbosity_error()


def debugging() -> bool:
    """True where ``ALIGNLAB_DEBUG`` asks for tracebacks and for what libraries say."""
    return os.environ.get("ALIGNLAB_DEBUG", "0") not in ("", "0")


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what stderr is now: while a live line stands, that is what prints above it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


class _Formatter(logging.Formatter):
    """Spells out characters that steer a terminal: names of groups and files reach the log, too.

    On a terminal lines end between words, and a path longer than the terminal is left whole to it.
    """

    def format(self, record: logging.LogRecord) -> str:
        from alignlab.data import printable

        text = printable(super().format(record))
        return at_words(text) if sys.stderr.isatty() else text


def at_words(text: str) -> str:
    """Returns a text whose lines end between words, so that a terminal of stderr's width need not cut them."""
    from rich.console import Console

    keep = textwrap.TextWrapper(
        Console(stderr=True).width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(keep.fill(line) for line in text.split("\n"))
