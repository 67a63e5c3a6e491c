"""A prior: the probability of the tokens of an image, by a transformer over positions and a head over groups."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gsqtok.generation.arithmetic import FixedPoint
from gsqtok.generation.coder import LARGEST_CODEBOOK
from gsqtok.generation.embeddings import CodewordEmbedding, TableEmbedding, TokenEmbedding
from gsqtok.generation.heads import GroupHead
from gsqtok.generation.transformer import HEAD_WIDTH, Cache, Transformer, grid_angles
from gsqtok.io import one_line
from gsqtok.options import Count, check
from gsqtok.tokenizer import ImageTokenizer

CONFIG_FILE, WEIGHTS_FILE, FORMAT = "config.json", "model.safetensors", "gsqtok-prior-1"
PUBLISHED = "prior"  # in a training run's folder


@dataclass(frozen=True)
class PriorModelConfig:
    """The network of a prior: three numbers are its size.

    Args:
        head: how the groups of a position are predicted: parallel (each by itself), depth (one after the other) or
            masked (MaskGIT, positions and groups in any order).
        embedding: tables (vectors for each codeword), codewords (the tokenizer's own, projected, for large codebooks).
        width: channels, a multiple of 64.
        layers: blocks over the positions.
        head_layers: blocks over the groups of a position.
    """

    head: Literal["parallel", "depth", "masked"] = "depth"
    embedding: Literal["tables", "codewords"] = "codewords"
    width: Count = 320
    layers: Count = 6
    head_layers: Count = 2

    def __post_init__(self) -> None:
        check(self, "model.")
        if self.width % HEAD_WIDTH:
            raise ValueError(f"model.width must be a multiple of {HEAD_WIDTH}, got {self.width}")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that a prior knows.

    Attributes:
        tokenizer: ``tokens_fingerprint`` of the tokenizer that makes them.
        groups: G.
        codebook_size: V.
        grid: (h, w) of the images that it was trained on.
        classes: number of classes; 0 without.
        codewords: shape of what the embedding keeps of them; None with tables.
    """

    tokenizer: str
    groups: int
    codebook_size: int
    grid: tuple[int, int]
    classes: int = 0
    codewords: tuple[int, int, int] | None = None

    def require(self, tokenizer: ImageTokenizer) -> None:
        """Refuse a tokenizer other than the one that made the tokens.

        Raises:
            ValueError: another one; the message names both.
        """
        if (theirs := tokenizer.tokens_fingerprint()) != self.tokenizer:
            raise ValueError(
                f"the prior is for tokens of the tokenizer {self.tokenizer[:12]}, this one is {theirs[:12]}: name the "
                "same model that made its tokens, or train a prior for this one"
            )


@dataclass
class State:
    """Where a prior stands in an image that it goes through position by position."""

    angles: Tensor
    condition: Tensor
    cache: Cache
    position: int = 0
    outputs: Tensor = field(default_factory=lambda: torch.empty(0))


class Prior(nn.Module):
    """The probability of token grids (B, h, w, G), unconditional or by class.

    Attributes:
        config: the network.
        vocabulary: the tokens.
    """

    start: Tensor | None

    def __init__(self, config: PriorModelConfig, vocabulary: Vocabulary, codewords: Tensor | None = None) -> None:
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        width, groups = config.width, vocabulary.groups
        self.embedding: TokenEmbedding
        if config.embedding == "codewords":
            if codewords is None:
                codewords = torch.zeros(vocabulary.codewords or (1, vocabulary.codebook_size, 1))
            shape = (codewords.shape[0], codewords.shape[1], codewords.shape[2])
            self.vocabulary = dataclasses.replace(vocabulary, codewords=shape)
            self.embedding = CodewordEmbedding(codewords, groups, width, self.masked, config.head == "depth")
        else:
            self.embedding = TableEmbedding(groups, vocabulary.codebook_size, width, self.masked)
        self.classes = nn.Parameter(torch.randn(vocabulary.classes + 1, width) * width**-0.5)  # the last: of any class
        start = None if self.masked else nn.Parameter(torch.randn(width) * width**-0.5)
        self.register_parameter("start", start)
        self.transformer = Transformer(width, config.layers, causal=not self.masked)
        self.head = GroupHead(self.embedding, config.head_layers, chained=config.head == "depth")

    @property
    def masked(self) -> bool:
        """Whether it predicts masked tokens, instead of positions in raster order."""
        return self.config.head == "masked"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.classes.device

    def forward(
        self,
        tokens: Tensor,
        labels: Tensor | None = None,
        hidden: Tensor | None = None,
        chosen: Tensor | None = None,
    ) -> Tensor:
        """Nats of each token (B, h, w, G), float32.

        Args:
            tokens: (B, h, w, G) int64.
            labels: (B,) int64 classes; None, or the number of classes, for any class.
            hidden: (B, h, w, G) bool, for the masked head: the tokens that it must predict from the others. Those
                that are not hidden have a loss of 0.
            chosen: (B, n) int64 numbers of positions, to compute the losses of these alone: (B, n, G).

        Raises:
            ValueError: tokens of another number of groups; ``hidden`` for a head that takes none, or none for masked.
        """
        if tokens.ndim != 4 or tokens.shape[-1] != self.vocabulary.groups:
            raise ValueError(f"tokens must be (B, h, w, {self.vocabulary.groups}), got {tuple(tokens.shape)}")
        if (hidden is not None) != self.masked:
            raise ValueError("the masked head, and no other, is told which tokens are hidden")
        x, flat, shape = self.positions(tokens, labels, hidden), tokens.flatten(1, 2), tokens.shape
        shown = None if hidden is None else ~hidden.flatten(1, 2)
        if chosen is not None:
            image = torch.arange(len(tokens), device=tokens.device)[:, None]
            x, flat = x[image, chosen], flat[image, chosen]
            shape, shown = flat.shape, None if shown is None else shown[image, chosen]
        flat = flat.flatten(0, 1)
        losses = self.embedding.losses(self.head(x.flatten(0, 1), flat, self.embedding), flat).view(shape)
        return losses if shown is None else losses.masked_fill(shown.view(shape), 0)

    def positions(self, tokens: Tensor, labels: Tensor | None = None, hidden: Tensor | None = None) -> Tensor:
        """What the transformer says of every position: (B, h w, width); arguments as for ``forward``."""
        flat = tokens.flatten(1, 2)
        if hidden is None:
            x = self.embedding.position(flat[:, :-1])
            assert self.start is not None
            x = torch.cat([self.start.to(x.dtype).expand(len(x), 1, -1), x], 1)
        else:
            x = self.embedding.position(flat, hidden.flatten(1, 2))
        angles = grid_angles(tokens.shape[1], tokens.shape[2], tokens.device)
        out: Tensor = self.transformer(x + self.condition(labels, len(tokens))[:, None], angles)
        return out

    def condition(self, labels: Tensor | None, batch: int) -> Tensor:
        """What is added to every position: (B, width)."""
        if labels is None:
            return self.classes[-1].expand(batch, -1)
        return self.classes[labels]

    def begin(self, batch: int, grid: tuple[int, int], labels: Tensor | None = None) -> State:
        """Start on images of a grid (h, w), position by position, with a cache."""
        condition = self.condition(labels, batch)
        cache = self.transformer.cache(batch, grid[0] * grid[1])
        return State(grid_angles(*grid, self.device), condition, cache, outputs=self.embedding.outputs())

    def step(self, state: State, before: Tensor | None) -> Tensor:
        """What the transformer says of the next position (B, width), given the tokens (B, G) of the one before."""
        assert self.start is not None
        x = self.start.expand(len(state.condition), -1) if before is None else self.embedding.position(before)
        angles = state.angles[state.position : state.position + 1]
        state.position += 1
        out: Tensor = self.transformer((x + state.condition)[:, None], angles, state.cache)[:, 0]
        return out

    def labels(self, names: list[int], device: torch.device | None = None) -> Tensor:
        """Classes as the network takes them.

        Raises:
            ValueError: a class that it does not know.
        """
        for name in names:
            if not 0 <= name < self.vocabulary.classes:
                known = f"0 to {self.vocabulary.classes - 1}" if self.vocabulary.classes else "none"
                raise ValueError(f"there is no class {name}: this prior knows {known}")
        return torch.tensor(names, dtype=torch.int64, device=device or self.device)

    def exact(self) -> Prior:
        """A copy on the CPU in `FixedPoint` arithmetic, which computes the same numbers on any machine."""
        twin = copy.deepcopy(self).cpu().double().eval().requires_grad_(False)
        arithmetic = FixedPoint()
        for module in twin.modules():
            if "arithmetic" in vars(module):
                vars(module)["arithmetic"] = arithmetic
        for value in (*twin.parameters(), *twin.buffers()):
            value.copy_(arithmetic.weight(value))
        return twin

    def fingerprint(self) -> str:
        """SHA-256 over configuration and weights."""
        state = hashlib.sha256(json.dumps(self._described(), sort_keys=True).encode())
        for name, value in sorted(self.state_dict().items()):
            state.update(name.encode())
            state.update(value.detach().cpu().float().contiguous().numpy().tobytes())
        return state.hexdigest()

    def _described(self) -> dict[str, Any]:
        facts = {"model": dataclasses.asdict(self.config), "vocabulary": dataclasses.asdict(self.vocabulary)}
        plain: dict[str, Any] = json.loads(json.dumps(facts))
        return plain

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous().cpu() for name, value in self.state_dict().items()}, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(json.dumps({"format": FORMAT, **self._described()}, indent=1) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Prior:
        """A saved prior, in evaluation mode, from its folder or the folder of the run that trained it.

        Raises:
            FileNotFoundError: no prior there.
            ValueError: files that are no prior's.
        """
        folder = Path(folder)
        if (folder / PUBLISHED / CONFIG_FILE).is_file():
            folder = folder / PUBLISHED
        if not (folder / CONFIG_FILE).is_file():
            raise FileNotFoundError(f"no prior in {folder}: name the folder of a run of gsqtok prior train")
        try:
            values = json.loads((folder / CONFIG_FILE).read_text())
            if values.get("format") != FORMAT:
                raise ValueError(f"its format is {values.get('format')!r}, not {FORMAT!r}")
            facts = values["vocabulary"]
            facts |= {name: tuple(facts[name]) for name in ("grid", "codewords") if facts[name] is not None}
            prior = cls(PriorModelConfig(**values["model"]), Vocabulary(**facts))
            prior.load_state_dict(load_file(folder / WEIGHTS_FILE))
        except (ValueError, LookupError, TypeError, AttributeError, OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{folder} does not hold a prior that can be loaded: {one_line(error)[:300]}") from error
        return prior.eval()


@torch.no_grad()
def codewords_of(tokenizer: ImageTokenizer) -> Tensor:
    """The values of every token, (G, V, d), or (1, V, d) where the groups share them.

    Raises:
        ValueError: a quantizer whose groups are not neighbouring channels, each with a token of its own, or one with
            more than ``LARGEST_CODEBOOK`` codewords.
    """
    quantizer = tokenizer.quantizer
    groups, size = quantizer.tokens_per_position, quantizer.codebook_size
    if size > LARGEST_CODEBOOK:
        raise ValueError(f"a prior knows {LARGEST_CODEBOOK:,} codewords at most, {quantizer.name} has {size:,}")
    numbers = torch.arange(size, device=tokenizer.device)[:, None]
    of_groups = quantizer.dim % groups == 0
    if of_groups:
        values = quantizer.decode(numbers.expand(-1, groups)).unflatten(-1, (groups, -1)).movedim(1, 0)
        mixed = (
            numbers * (1 + torch.arange(groups, device=tokenizer.device)) + 1
        ) % size  # another token in each group
        by_group = torch.stack([values[group, mixed[:, group]] for group in range(groups)], 1)
        of_groups = torch.equal(quantizer.decode(mixed), by_group.flatten(1))
    if not of_groups:
        raise ValueError(f"the tokens of {quantizer.name} are not codewords of groups: use model.embedding tables")
    return values[:1].contiguous() if bool((values == values[:1]).all()) else values.contiguous()
