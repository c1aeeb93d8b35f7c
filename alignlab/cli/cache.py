"""``alignlab cache``: looks after the scores of frozen models, and prepared rows."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .console import show
from .parsers import add_command


def add_to(commands: Any) -> None:
    """Adds the commands and their options."""
    cache = commands.add_parser(
        "cache", help="look after the scores of frozen models, and prepared rows"
    ).add_subparsers(required=True)
    info = add_command(
        cache, "info", _info, "list the models whose scores are kept, and the prepared rows", "alignlab cache info"
    )
    text = "read every shard and prepared set and name the damaged ones"
    verify = add_command(cache, "verify", _verify, text, "alignlab cache verify", "alignlab cache verify --repair")
    verify.add_argument("--repair", action="store_true", help="set them aside; they are made again when needed")
    text = "delete scores and prepared rows, and what crashes left behind"
    examples = ("alignlab cache prune --older_than_days 30 --dry_run", "alignlab cache prune --max_gb 50")
    prune = add_command(cache, "prune", _prune, text, *examples)
    prune.add_argument("fingerprints", nargs="*", metavar="FINGERPRINT", help="these; the first characters suffice")
    prune.add_argument("--older_than_days", type=float, help="those not used for longer")
    prune.add_argument("--max_gb", type=float, help="the least recently used, until the rest fits")
    prune.add_argument("--dry_run", action="store_true", help="delete nothing, say what would be deleted")
    for one in (info, verify, prune):
        one.add_argument("--dir", type=Path, help="the cache; by default where runs keep it")


def _info(arguments: argparse.Namespace) -> int:
    from alignlab.cache import cache_info

    from .tables import cache_table

    folder = _folder(arguments)
    show(cache_table(cache_info(folder), str(folder)))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from alignlab.cache import cache_verify

    folder = _folder(arguments)
    damages = cache_verify(folder, arguments.repair)
    for damage in damages:
        print(f"{damage.path}: {damage.reason}")
    print(
        f"{folder}: {len(damages)} damaged shards and prepared sets"
        + (", set aside" if damages and arguments.repair else "")
    )
    return 1 if damages and not arguments.repair else 0


def _prune(arguments: argparse.Namespace) -> int:
    from alignlab.cache import cache_prune

    from .tables import cache_table

    limits = {"older_than_days": arguments.older_than_days, "max_gb": arguments.max_gb}
    chosen = {"fingerprints": arguments.fingerprints, "dry_run": arguments.dry_run}
    removed = cache_prune(_folder(arguments), **limits, **chosen)
    show(cache_table(removed, "would be deleted" if arguments.dry_run else "deleted"))
    return 0


def _folder(arguments: argparse.Namespace) -> Path:
    from alignlab.cache import default_root

    return arguments.dir if arguments.dir is not None else default_root()
