"""The pass that fills the score cache: what no frozen model has scored yet, shared out over the ranks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import send_to_device
from numpy.typing import NDArray
from torch import Tensor, nn

from alignlab import scoring
from alignlab.cache import COLUMN, ScoreCache, ScoreStore, default_root
from alignlab.config import PreferenceConfig
from alignlab.data import Mode, ScoredSequence, layout_sequences
from alignlab.runtime import bar, evaluating, from_main, shown_as
from alignlab.scoring import Head, base_of, choose_layout, head_of, hidden_positions, model_inputs

from .places import Places
from .scorers import Autocast, Frozen

logger = logging.getLogger(__name__)
SHARD_ROWS = 4096  # completions a shard; what a kill may lose at most, on each rank
LOCK_SECONDS = 5.0  # of a round of waiting for another run's lock; far below any timeout of collectives


class CacheFiller:
    """Scores what the cache lacks.

    Args:
        pad_id: token that pads rows. batch_size: completions per forward.
        device: where batches go. autocast: the context in which the policy is scored in training.
        layout: "auto", "packed" or "padded"; packed rows share the prompts of completions scored together.
        half: whether that context is one of half precision.
    """

    def __init__(
        self,
        pad_id: int,
        batch_size: int,
        device: torch.device,
        autocast: Autocast,
        layout: str = "auto",
        progress: tuple[str, float] = ("live", 30),
        *,
        half: bool = False,
    ) -> None:
        self.pad_id, self.batch_size, self.device, self.layout = pad_id, batch_size, device, layout
        self.autocast, self.progress, self.half = autocast, progress, half
        self.ranks = PartialState()

    def fill(self, frozen: Frozen, root: Path, compute_dtype: str, wanted: Sequence[tuple[Any, Sequence[str]]]) -> None:
        """Makes ``frozen.store`` hold the scores of the named completions of each (dataset, fields) wanted.

        Rank 0 holds the writer's lock; every rank scores its share and writes shards of its own. Where nothing is
        missing the model is not touched.
        """
        fingerprint = from_main(lambda: frozen.model.fingerprint(compute_dtype))
        store = ScoreCache(root).open(fingerprint, {"model": frozen.model.description, "dtype": compute_dtype})
        frozen.store = store
        places = Places(wanted)
        if frozen.hidden is not None and not frozen.lazy_head.known:
            with frozen.running() as module:
                frozen.keep_head(module)
                self._say_size(frozen, places)
        if not from_main(lambda: bool(len(_missing(store, places, frozen)))):
            return
        with self._only_writer(store):
            todo = _missing(store, places, frozen)
            logger.info(
                "%s: %d of %d completions to score with %s",
                *(frozen.name, len(todo), len(places), frozen.model.description),
            )
            self._score(frozen, store, todo, places)
            self.ranks.wait_for_everyone()
            store.refresh()  # under the lock: what is open is not deleted any more
            self.ranks.wait_for_everyone()
        left = len(_missing(store, places, frozen))
        if left:
            raise ValueError(
                f"{left} completions have no score after scoring: score_cache_dir ({root}) must be a folder that all "
                "ranks share"
            )

    @contextmanager
    def _only_writer(self, store: ScoreStore) -> Iterator[None]:
        """Rank 0 holds the writer's lock while all ranks are inside.

        Another run may hold it for hours. It is waited for in rounds, each of which ends in a broadcast, so that no
        collective lasts longer than a round; what rank 0 raises meanwhile is raised on every rank.
        """
        lock = store.writers_lock()
        try:
            while not from_main(lambda: lock.acquire(LOCK_SECONDS)):
                pass
            from_main(store.clean)
            store.refresh()
            yield
        finally:
            lock.release()

    def _score(self, frozen: Frozen, store: ScoreStore, todo: NDArray[np.intp], places: Places) -> None:
        """Scores this rank's share of ``todo``, the longest prompts first, and writes it."""
        if not len(todo):
            return
        order = places.by_prompt(todo)  # completions of one prompt stand together, so that its tokens are run once
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        world, rank = self.ranks.num_processes, self.ranks.process_index
        rounds = -(-len(batches) // world)
        shown = bar(f"{frozen.name}: scoring", len(todo), "completions", *self._shown)
        writing = store.writer(rank=rank, shard_rows=SHARD_ROWS)
        with writing as writer, shown, frozen.running() as module, evaluating(module):
            mode, head = choose_layout(self.layout, [module], self.pad_id, half=self.half), head_of(module)
            for index in range(rounds):
                mine = index * world + rank
                # A rank without a batch joins the forward for its collectives.
                batch = batches[min(mine, len(batches) - 1)]
                values = self._forward(module, places.sequences(batch), mode, head, frozen)
                if mine < len(batches):
                    frozen.forwards += len(batch)
                    writer.append(places.keys[batch], values)
                shown.update(sum(len(part) for part in batches[index * world : (index + 1) * world]))

    def _forward(
        self, module: nn.Module, sequences: Sequence[ScoredSequence], mode: Mode, head: Head | None, frozen: Frozen
    ) -> dict[str, list[Tensor]]:
        """Returns what the cache keeps of each sequence's completion: log-probabilities, perhaps hidden states."""
        layout = layout_sequences(sequences, self.pad_id, mode)
        moved = send_to_device(layout, self.device)
        lengths = [len(s.completion) for s in sequences]
        with self.autocast():
            if frozen.hidden is None:
                logps = scoring.score(module, moved, head=head)["logps"][0]
                return {COLUMN: _cut(logps.float().cpu(), lengths)}
            hidden = hidden_positions(module, model_inputs(base_of(module), moved), moved["predict"])
            known = scoring.Distributions(hidden=hidden, head=frozen.head).logps(moved["target"])
        stored = scoring.place(hidden.to(getattr(torch, frozen.hidden)), moved)[0]
        return {
            COLUMN: _cut(scoring.place(known, moved)[0].float().cpu(), lengths),
            frozen.columns[1]: _cut(stored.cpu(), lengths),
        }

    def _say_size(self, frozen: Frozen, places: Places) -> None:
        """Says how much disk the hidden states take, before they are made."""
        assert frozen.head is not None
        tokens = int(places.lengths().sum())
        width, size = frozen.head.module.in_features, getattr(torch, str(frozen.hidden)).itemsize
        logger.info("%s: hidden states of %d tokens take %.1f MB", frozen.name, tokens, tokens * width * size / 1e6)

    @property
    def _shown(self) -> tuple[str, float]:
        return self.progress if self.ranks.is_main_process else ("none", 0)


def fill_caches(
    frozen: Mapping[str, Frozen],
    args: PreferenceConfig,
    compute_dtype: str,
    pad_id: int,
    autocast: Autocast,
    wanted: Sequence[tuple[Any, Sequence[str]]],
    *,
    half: bool = False,
) -> None:
    """Scores, with every cached frozen model, what the cache lacks of the (dataset, fields) wanted."""
    root = Path(args.score_cache_dir) if args.score_cache_dir else default_root()
    batch = args.precompute_ref_batch_size or 2 * args.per_device_eval_batch_size
    progress = shown_as(args.progress, bars=not args.disable_tqdm), args.progress_seconds
    filler = CacheFiller(pad_id, batch, args.device, autocast, args.layout, progress, half=half)
    for one in frozen.values():
        if one.cached:
            filler.fill(one, root, compute_dtype, wanted)
            one.model.free()


def _cut(values: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """Returns the first ``lengths[n]`` of each row ``n``."""
    return [row[:length].contiguous() for row, length in zip(values, lengths, strict=True)]


def _missing(store: ScoreStore, places: Places, frozen: Frozen) -> NDArray[np.intp]:
    """Returns the places that lack any column, ascending."""
    return np.flatnonzero(~np.logical_and.reduce([store.holds(places.keys, column) for column in frozen.columns]))
