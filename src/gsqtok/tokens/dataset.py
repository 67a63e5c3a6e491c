"""Reading token data sets: by number, or as a stream."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from gsqtok.data.sampling import epoch_seed
from gsqtok.tokenizer import ImageTokenizer
from gsqtok.tokens.layout import COUNTS, Layout
from gsqtok.tokens.manifest import read_manifest
from gsqtok.tokens.mapped import MappedShard, cache_folder
from gsqtok.tokens.shards import COLUMNS

Item = dict[str, Any]


class TokenDataset(Dataset[Item]):
    """The rows of a token data set, by number, memory-mapped.

    Each item is a dict: ``tokens`` int64, as ``order`` and ``vocabulary`` say (see ``Layout``), and a value for each
    of ``columns``. Where positions keep groups of their own number, ``counts`` (h, w) says how many: grids then hold -1
    in the place of the others, and sequences, which vary in length, only what is kept.

    An index may also be (epoch, number), so that ``gsqtok.data.EpochSampler`` can shuffle, share among ranks and resume
    at a step, whatever the number of workers; for streams see ``stream``.

    Opening reads the manifest alone. The first access to a shard unpacks it once to the cache, about the tokens' size
    in their stored type.

    Args:
        folder: written by ``gsqtok tokenize``, and finished.
        order: "grid" for (h, w, G), "interleaved" or "raster" for sequences.
        vocabulary: "shared" or "offset".
        columns: further columns to give out, such as ("label", "key", "size").
        cache: folder of unpacked shards; default: $GSQTOK_CACHE or below HF_HOME.

    Attributes:
        layout: the ``Layout``.
        vocab_size: numbers that tokens may have; special tokens of a model begin here.
        manifest: what manifest.json holds.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: not a finished token data set, or a column that it does not have.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        order: Literal["grid", "interleaved", "raster"] = "grid",
        vocabulary: Literal["shared", "offset"] = "shared",
        columns: Sequence[str] = (),
        cache: str | Path | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(folder)
        self.layout = Layout(self.manifest["groups"], self.manifest["codebook_size"], order, vocabulary)
        self.vocab_size = self.layout.vocab_size
        self.columns = tuple(columns)
        self.cache = cache_folder(self.manifest["fingerprint"]) if cache is None else Path(cache)
        self._shards = [unit for unit in self.manifest["units"] if "file" in unit]
        self._starts = np.cumsum([0] + [unit["rows"] for unit in self._shards])
        self._mapped: dict[int, MappedShard] = {}
        self._own: ImageTokenizer | None = None  # the one that the manifest names, once loaded
        self._checked: ImageTokenizer | None = None  # the last one that was found to be the same
        known = {"key", "crop", "grid", "size", *self.manifest["columns"]}
        if unknown := [name for name in self.columns if name not in known]:
            raise ValueError(f"{folder} has no column '{unknown[0]}', only {', '.join(sorted(known))}")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int | tuple[int, int]) -> Item:
        number = index[1] if isinstance(index, tuple) else index
        if not -len(self) <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        number %= len(self)
        place = int(np.searchsorted(self._starts, number, side="right")) - 1
        shard, row = self._shard(place), number - int(self._starts[place])
        item = {"tokens": self.layout.arrange(torch.from_numpy(shard.grid(row).astype(np.int64)))}
        if (counts := shard.counts(row)) is not None:
            item[COUNTS] = counts
        for column in self.columns:
            item[column] = shard.value(column, row)
        return item

    def values(self, column: str) -> list[Any]:
        """A column of all rows, in their order.

        Raises:
            ValueError: the data set does not have it.
        """
        if column not in (*COLUMNS, *self.manifest["columns"]):
            raise ValueError(f"{self.folder} has no column '{column}', only {', '.join(self.manifest['columns'])}")
        files = (self.folder / unit["file"] for unit in self._shards)
        return [value for file in files for value in pq.read_table(file, columns=[column])[column].to_pylist()]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_mapped": {}}  # a worker maps its own

    def _shard(self, place: int) -> MappedShard:
        if place not in self._mapped:
            unit = self._shards[place]
            self._mapped[place] = MappedShard(self.folder / unit["file"], self.cache, unit["sha256"], unit["rows"])
        return self._mapped[place]

    def stream(self, *, seed: int | None = 0, rank: int = 0, world_size: int = 1) -> TokenStream:
        """One epoch at a time as an ``IterableDataset``: see ``TokenStream``."""
        return TokenStream(self, seed=seed, rank=rank, world_size=world_size)

    def decode(
        self,
        tokens: Tensor,
        tokenizer: ImageTokenizer | None = None,
        *,
        grid: tuple[int, int] | None = None,
        counts: Tensor | None = None,
    ) -> Tensor:
        """Tokens in this data set's layout back to images.

        Args:
            tokens: (B, ...) as items have them; from a model, too.
            tokenizer: the one that made them; default: the one that the manifest names.
            grid: (h, w) of sequences that are not square.
            counts: of one sequence (n,) without the groups that were left out; see ``Layout.restore``.

        Returns:
            (B, 3, h f, w f) in [-1, 1], on the tokenizer's device.

        Raises:
            ValueError: another tokenizer, or tokens that do not fit the layout.
        """
        if tokenizer is None:
            tokenizer = self.tokenizer()
        elif self._checked is not tokenizer:
            require(self.manifest, tokenizer)
            self._checked = tokenizer
        grids = self.layout.restore(tokens, grid, counts)
        return tokenizer.decode((grids if grids.ndim > 3 else grids[None]).to(tokenizer.device))

    def tokenizer(self) -> ImageTokenizer:
        """The tokenizer that made the tokens, by the name in the manifest.

        Raises:
            ValueError: there is another one under that name now.
            FileNotFoundError: there is none.
        """
        if self._own is None:
            loaded = ImageTokenizer.from_pretrained(self.manifest["model"])
            require(self.manifest, loaded)
            self._own = loaded
        return self._own


class TokenStream(IterableDataset[Item]):
    """The rows of a token data set in a shuffled order, an epoch for each iteration.

    The order of an epoch is a permutation made from (seed, epoch). Readers (the ``DataLoader`` workers of all ranks)
    take every n-th of it, so every row is read once an epoch; ranks may differ by one row.

    ``state_dict`` holds the epoch and the rows given out in it, ``load_state_dict`` goes on from there: in this
    process, or in the workers of torchdata's ``StatefulDataLoader``. torch's own ``DataLoader`` with workers keeps no
    state of them: use ``EpochSampler`` there, see ``TokenDataset``.

    Args:
        dataset: the rows.
        seed: not negative; None: in order.
        rank: of ``world_size``.
        world_size: number of ranks.
    """

    def __init__(self, dataset: TokenDataset, *, seed: int | None = 0, rank: int = 0, world_size: int = 1) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in [0, {world_size}), got {rank}")
        if seed is not None and seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        self.dataset = dataset
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self._given = 0

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is this epoch, from its start."""
        self.epoch, self._given = epoch, 0

    def __iter__(self) -> Iterator[Item]:
        """Yield the rest of the epoch; the epoch after it comes next."""
        worker = get_worker_info()
        workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        own = self._order()[self.rank * workers + number :: self.world_size * workers]
        for row in own[self._given :]:
            self._given += 1
            yield self.dataset[int(row)]
        self.set_epoch(self.epoch + 1)

    def _order(self) -> np.ndarray:
        length = len(self.dataset)
        if self.seed is None:
            return np.arange(length, dtype=np.int64 if length > 2**31 else np.int32)
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        return torch.randperm(length, generator=generator).to(torch.int64 if length > 2**31 else torch.int32).numpy()

    def state_dict(self) -> dict[str, int]:
        """Where the reader stands."""
        return {"epoch": self.epoch, "given": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a state of a reader with the same seed, rank and numbers of ranks and workers."""
        self.epoch, self._given = state["epoch"], state["given"]


def require(manifest: dict[str, Any], tokenizer: ImageTokenizer) -> None:
    """Refuse a tokenizer other than the one that made the tokens.

    Raises:
        ValueError: another one; the message names both.
    """
    if (theirs := tokenizer.tokens_fingerprint()) != manifest["tokenizer"]:
        raise ValueError(
            f"the tokens were made by the tokenizer {manifest['tokenizer'][:12]}, this one is {theirs[:12]}: "
            "name the same model that made them"
        )


def allocated(manifest: dict[str, Any]) -> bool:
    """Tell whether positions keep groups of their own number."""
    return "allocation" in manifest


def describe(folder: str | Path) -> list[tuple[str, str]]:
    """Lines that say what a token data set is."""
    manifest = read_manifest(folder)
    rows, bits = manifest["rows"], 8 * manifest["bytes"]
    settings = manifest["transform"]
    return [
        ("token data set", str(folder)),
        ("images", f"{manifest['images']:,}, and {manifest['skipped']['rows']:,} skipped"),
        ("rows", f"{rows:,} in {sum('file' in unit for unit in manifest['units']):,} shards"),
        ("tokens", f"{manifest['tokens']:,}, each of {manifest['codebook_size']:,} codewords"),
        ("groups", f"{manifest['groups']}" + (", of which each position keeps its own" if allocated(manifest) else "")),
        ("down-sampling factor", f"{manifest['factor']}"),
        ("bytes on disk", f"{manifest['bytes']:,} ({bits / max(1, manifest['tokens']):.2f} bits a token)"),
        ("columns", ", ".join(["key", "crop", "tokens", "grid", "size", *manifest["columns"]])),
        ("transform", json.dumps(settings)),
        ("source", str(manifest["source"])),
        ("made by tokenizer", manifest["tokenizer"]),
        ("made by version", manifest["version"]),
        ("finished", manifest["finished"]),
        ("fingerprint", manifest["fingerprint"]),
    ]
