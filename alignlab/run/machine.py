"""The config of a run as this machine runs it: what says "auto" is decided and said before anything is loaded."""

from __future__ import annotations

import logging
import os

from alignlab.config import RunConfig
from alignlab.planner import resolve
from alignlab.runtime import Machine, this_machine

logger = logging.getLogger(__name__)


def on_machine(config: RunConfig, machine: Machine | None = None) -> RunConfig:
    """Returns the config with every "auto" decided for a machine, by default this one, and says it in one line."""
    machine = machine or this_machine(use_cpu=bool(config.training.get("use_cpu")))
    config, said = resolve(config, machine, int(os.environ.get("WORLD_SIZE", "1")))
    if said:
        logger.info("%s: %s", machine.name, "; ".join(said))
    return config
