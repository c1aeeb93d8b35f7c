"""The commands, one file each, and the tables that they print.

Never here: work of its own: a command reads its options and hands over to the room that does it.
"""

from .commands import main

__all__ = [
    "main",
]
