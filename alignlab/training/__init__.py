"""The one trainer, and what an optimiser step is made of: assembly, loaders, batches, normalisation, guards.

Never here: the name of a loss, or a config file: a loss says in `needs` what it must be given.
"""

from .trainer import PreferenceTrainer

__all__ = [
    "PreferenceTrainer",
]
