"""The image tokenizer: encoder, quantizer and decoder behind three calls."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from gsqtok.interop.flex_gen import CHECKPOINT_FILE, check_fit, load_flex_gen
from gsqtok.interop.hub import download, upload
from gsqtok.interop.model_card import CARD_FILE, write_card
from gsqtok.networks import Decoder, Encoder, tiled
from gsqtok.networks.blocks import NORM_GROUPS
from gsqtok.networks.replay import Replays
from gsqtok.quantizers import build_quantizer

if TYPE_CHECKING:
    from gsqtok.evaluation.result import Result

EMBEDDED = Path(__file__).parent / "embedded"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
RUN_TOKENIZER = "tokenizer"  # where a training run keeps its newest weights
Blocks = int | tuple[int, ...]


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or is not one of ours; the message says which file and why."""


@dataclass(frozen=True)
class TokenizerConfig:
    """What a tokenizer is made of; the defaults are the paper's f8 model with 8 groups.

    Args:
        latent_dim: channels D of the latent.
        channels: channels at full resolution, a multiple of 32 (128 in the paper).
        multipliers: channel multiplier of each level; n levels down-sample by f = 2^(n - 1). The paper's are
            f8 [1, 2, 2, 4], f16 [1, 1, 2, 2, 4], f32 [1, 1, 2, 2, 4, 4].
        encoder_blocks: residual blocks a level in the encoder: one number, or one for each level.
        decoder_blocks: the same in the decoder, first level first.
        encoder_middle_blocks: residual blocks at the lowest resolution of the encoder.
        decoder_middle_blocks: the same in the decoder.
        middle_attention: attention between the middle blocks.
        attention_factors: down-sampling factors (1, 2, 4, ...) at which residual blocks are followed by attention.
        adaptive_norm: the decoder normalises with statistics of the quantized latent.
        depth_to_space: the decoder up-samples by depth-to-space instead of repetition.
        quantizer: the quantizer's registry name and options, such as {"name": "gsq", "groups": 8}.
    """

    latent_dim: int = 16
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    encoder_blocks: Blocks = 2
    decoder_blocks: Blocks = 2
    encoder_middle_blocks: int = 2
    decoder_middle_blocks: int = 2
    middle_attention: bool = False
    attention_factors: tuple[int, ...] = ()
    adaptive_norm: bool = False
    depth_to_space: bool = False
    quantizer: dict[str, Any] = field(default_factory=lambda: {"name": "gsq", "groups": 8, "codebook_size": 8192})

    def __post_init__(self) -> None:
        # JSON and YAML know lists only; a configuration is hashable and comparable with tuples.
        for name in ("multipliers", "attention_factors", "encoder_blocks", "decoder_blocks"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers must be one positive number for each level, got {list(self.multipliers)}")
        if self.channels < 1 or self.channels % NORM_GROUPS:
            raise ValueError(f"channels must be a positive multiple of {NORM_GROUPS}, got {self.channels}")
        if self.latent_dim < 1:
            raise ValueError(f"latent_dim must be positive, got {self.latent_dim}")
        for name in ("encoder_blocks", "decoder_blocks"):
            if min(self.blocks_per_level(name)) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if min(self.encoder_middle_blocks, self.decoder_middle_blocks) < 0:
            raise ValueError("encoder_middle_blocks and decoder_middle_blocks must not be negative")
        levels = [2**i for i in range(len(self.multipliers))]
        if wrong := sorted(set(self.attention_factors) - set(levels)):
            raise ValueError(f"attention_factors must be among {levels}, got {wrong}")
        if "name" not in self.quantizer:
            raise ValueError('quantizer must name its method, such as {"name": "gsq"}')

    @property
    def factor(self) -> int:
        """The down-sampling factor f."""
        return 2 ** (len(self.multipliers) - 1)

    def blocks_per_level(self, name: str) -> tuple[int, ...]:
        """``encoder_blocks`` or ``decoder_blocks`` as one number for each level."""
        blocks = getattr(self, name)
        blocks = (blocks,) * len(self.multipliers) if isinstance(blocks, int) else tuple(blocks)
        if len(blocks) != len(self.multipliers):
            raise ValueError(f"{name} names {len(blocks)} levels, multipliers {len(self.multipliers)}")
        return blocks

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TokenizerConfig:
        """From parsed JSON; an unknown key raises ValueError."""
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown configuration key '{unknown[0]}'")
        return cls(**values)


@dataclass
class TokenizerOutput:
    """What ``ImageTokenizer.forward`` returns.

    Attributes:
        reconstruction: (B, 3, H, W), about [-1, 1], not clamped, so that a loss sees how far it overshoots.
        tokens: (B, h, w, G) int64.
        latent: (B, D, h, w), before quantization.
        quantized: (B, D, h, w) float32, what the decoder got.
        quantizer_loss: scalar, the quantizer's weighted loss.
        quantizer_losses: its terms by name, before their weights.
    """

    reconstruction: Tensor
    tokens: Tensor
    latent: Tensor
    quantized: Tensor
    quantizer_loss: Tensor
    quantizer_losses: dict[str, Tensor]


class ImageTokenizer(nn.Module):
    """Images to grids of discrete tokens and back.

    Example:
        >>> tokenizer = ImageTokenizer.from_pretrained()      # the embedded default
        >>> tokens = tokenizer.encode(images)                 # (B, 3, H, W) in [-1, 1] -> (B, h, w, G) int64
        >>> images = tokenizer.decode(tokens)                 # -> (B, 3, H, W) in [-1, 1]

    Any height and width: what is no multiple of the factor f is padded (edges repeated) on the way in, so
    h = ceil(H / f), w = ceil(W / f); ``decode(tokens, size=(H, W))`` crops on the way out.
    """

    def __init__(self, config: TokenizerConfig | None = None) -> None:
        super().__init__()
        config = config or TokenizerConfig()
        shared = {
            "latent_dim": config.latent_dim,
            "channels": config.channels,
            "multipliers": config.multipliers,
            "middle_attention": config.middle_attention,
            "attention_factors": config.attention_factors,
        }
        self.encoder = Encoder(
            **shared, blocks=config.blocks_per_level("encoder_blocks"), middle_blocks=config.encoder_middle_blocks
        )
        self.quantizer = build_quantizer(**{"dim": config.latent_dim} | config.quantizer)
        self.decoder = Decoder(
            **shared,
            blocks=config.blocks_per_level("decoder_blocks"),
            middle_blocks=config.decoder_middle_blocks,
            adaptive_norm=config.adaptive_norm,
            depth_to_space=config.depth_to_space,
        )
        # With the quantizer's options resolved, so that a default that changes later changes no saved tokenizer.
        options = {k: v for k, v in self.quantizer.config.items() if k != "dim"}
        self.config = dataclasses.replace(config, quantizer=options)
        self._replays: Replays | None = None

    @property
    def factor(self) -> int:
        """The down-sampling factor f."""
        return self.config.factor

    @property
    def bits_per_pixel(self) -> float:
        """Bits per pixel: bits per position over f^2."""
        return self.quantizer.bits / self.factor**2

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def optimize(self, dtype: torch.dtype | None = None, cuda_graphs: bool = True) -> ImageTokenizer:
        """Make ``encode`` and ``decode`` fast, in place, for inference only.

        Channels become innermost in memory, for which convolutions are fastest; on CUDA the stages between them then
        run as fused kernels (`gsqtok.networks.fused`), and small batches of a shape that comes again from CUDA graphs.
        Convolutions get weights of ``dtype``; normalisation (its statistics too), the encoder's last layer and the
        quantizer stay in float32. Half precision changes some tokens, those of latents near the border of two
        codewords: `benchmarks/throughput.py` prints the share.

        Call it on the device where the tokenizer is to run. Weights loaded later replace the optimized ones in place.

        Args:
            dtype: of the convolutions' weights; None chooses bfloat16 on CUDA and keeps float32 elsewhere.
            cuda_graphs: record graphs for small batches (CUDA only).

        Returns:
            The tokenizer itself, in evaluation mode.
        """
        cuda = self.device.type == "cuda"
        dtype = dtype or (torch.bfloat16 if cuda else torch.float32)
        for network in (self.encoder, self.decoder):
            network.to(memory_format=torch.channels_last)
            for module in network.modules():
                if isinstance(module, nn.Conv2d):
                    module.to(dtype)
        self.encoder.conv_out.float()
        self._replays = Replays() if cuda and cuda_graphs else None
        return self.eval()

    def _run(self, network: Encoder | Decoder, x: Tensor, pixels: int, tile: int | None) -> Tensor:
        if tile is not None:
            return tiled.run(network, x, tile)
        return network(x) if self._replays is None else self._replays(network, x, pixels)

    @torch.no_grad()
    def encode(self, images: Tensor, tile: int | None = None) -> Tensor:
        """Images to tokens.

        Args:
            images: (B, 3, H, W) floating point in [-1, 1].
            tile: for pictures that do not fit the device: positions a side, of any layer, that are on it at a time
                (even, such as 512); feature maps are kept where ``images`` are, which may be another device. Latents
                are those of the whole picture up to rounding (`gsqtok.networks.tiled`). None takes the whole at once.

        Returns:
            (B, ceil(H / f), ceil(W / f), G) int64, each in [0, V); on the device of ``images``.

        Raises:
            ValueError: wrong rank or channels, an empty image, values outside [-1, 1] or not finite; an odd tile.
            TypeError: not floating point.
        """
        _check_images(images)
        if images.numel():
            low, high = (float(x) for x in torch.aminmax(images))
            if not (low >= -1.001 and high <= 1.001):  # also refuses NaN
                raise ValueError(
                    f"images must lie in [-1, 1], got [{low:g}, {high:g}]; 8-bit pictures become so by "
                    "images.float() / 127.5 - 1"
                )
        images = self._pad(images)
        latent = self._run(self.encoder, images, images[:, 0].numel(), tile).movedim(1, -1)
        indices = self._in_rows(lambda rows: self.quantizer(rows).indices, latent, tile)
        if (indices < 0).any():
            raise ValueError("the encoder produced NaN or infinity: its weights or the precision are not fit for use")
        return indices

    @torch.no_grad()
    def decode(self, tokens: Tensor, size: tuple[int, int] | None = None, tile: int | None = None) -> Tensor:
        """Tokens to images.

        Args:
            tokens: (B, h, w, G) integers in [0, V).
            size: height and width in pixels to crop to; None keeps h * f and w * f.
            tile: as for ``encode``; feature maps are kept where ``tokens`` are.

        Returns:
            (B, 3, H, W) in [-1, 1], on the device of ``tokens``.

        Raises:
            ValueError: wrong rank or G, a token out of range, a size that the grid does not have, an odd tile.
            TypeError: tokens that are not integers.
        """
        if tokens.ndim != 4:
            raise ValueError(f"tokens must have shape (B, h, w, G), got {tuple(tokens.shape)}")
        height, width = (n * self.factor for n in tokens.shape[1:3])
        if size is not None and not (
            height - self.factor < size[0] <= height and width - self.factor < size[1] <= width
        ):
            raise ValueError(f"a grid of {tuple(tokens.shape[1:3])} tokens makes {height}x{width} pixels, not {size}")
        quantized = self._in_rows(self.quantizer.decode, tokens, tile).movedim(-1, 1)
        quantized = quantized.to(self.decoder.conv_in.weight.dtype)
        images = self._run(self.decoder, quantized, len(tokens) * height * width, tile).clamp_(-1, 1)
        return images if size is None else images[:, :, : size[0], : size[1]]

    def _in_rows(self, function: Callable[[Tensor], Tensor], x: Tensor, tile: int | None) -> Tensor:
        """``function(x)`` of x (B, h, w, ...); with a tile, rows of no more positions go through it at a time."""
        if tile is None:
            return function(x)
        rows = x.split(max(1, tile**2 // x.shape[2]), 1)
        return torch.cat([function(part.to(self.device)).to(x.device) for part in rows], 1)

    def decode_latent(self, quantized: Tensor) -> Tensor:
        """Quantized latents (B, D, h, w) to images (B, 3, h * f, w * f), not clamped, with gradient."""
        return self.decoder(quantized.to(self.decoder.conv_in.weight.dtype))

    def forward(self, images: Tensor) -> TokenizerOutput:
        """Reconstruct images, with everything that training needs: (B, 3, H, W) in [-1, 1]."""
        _check_images(images)
        latent = self.encoder(self._pad(images))
        out = self.quantizer(latent.movedim(1, -1))
        quantized = out.quantized.movedim(-1, 1)
        reconstruction = self.decode_latent(quantized)[:, :, : images.shape[2], : images.shape[3]]
        return TokenizerOutput(reconstruction, out.indices, latent, quantized, out.loss, out.losses)

    def _pad(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        bottom, right = -height % self.factor, -width % self.factor
        if bottom or right:
            images = F.pad(images, (0, right, 0, bottom), mode="replicate")
        return images.to(self.encoder.conv_in.weight.dtype)

    def fingerprint(self) -> str:
        """SHA-256 over configuration and weights (as float32): two tokenizers that agree make the same tokens."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self.config), sort_keys=True).encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        dtype: torch.dtype | None = None,
        evaluation: Result | Mapping[str, Any] | str | Path | None = None,
        license: str | None = None,
    ) -> None:
        """Write a folder with config.json, model.safetensors and a model card.

        Files are written aside and renamed, so that a full disk or a crash leaves what was there before. A card that
        somebody wrote or changed is kept.

        Args:
            save_directory: the folder; made if absent.
            dtype: the type in which weights are stored, such as torch.float16 for half the size; None keeps theirs.
            evaluation: what ``gsqtok.evaluate`` returned, or the JSON file of ``gsqtok evaluate -o``, for the card.
            license: of the weights, for the card, as the hub names it (``"mit"``).

        Raises:
            NotADirectoryError: ``save_directory`` is a file.
            ValueError: no such evaluation, or one of another tokenizer.
        """
        self._save(Path(save_directory), Path(save_directory).name, dtype, evaluation, license)

    def _save(
        self,
        target: Path,
        name: str,
        dtype: torch.dtype | None,
        evaluation: Result | Mapping[str, Any] | str | Path | None,
        license: str | None,
    ) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(f"{target} is a file; a tokenizer is saved as a folder")
        state = {  # whole numbers, such as counts, would not survive a float type
            name: value.detach().to("cpu", dtype if value.is_floating_point() else None).contiguous()
            for name, value in self.state_dict().items()
        }
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            if (target / CARD_FILE).exists():
                shutil.copy(target / CARD_FILE, aside)
            write_card(aside, self, name, evaluation, license)
            save_file(state, aside / WEIGHTS_FILE, metadata={"format": "pt"})
            (aside / CONFIG_FILE).write_text(json.dumps(dataclasses.asdict(self.config), indent=2) + "\n")
            target.mkdir(exist_ok=True)
            for file in aside.iterdir():
                os.replace(file, target / file.name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        dtype: torch.dtype | None = None,
        evaluation: Result | Mapping[str, Any] | str | Path | None = None,
        license: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str = "Upload tokenizer",
        token: str | bool | None = None,
    ) -> str:
        """Upload what ``save_pretrained`` writes, in one commit, and return the commit's address.

        Args:
            repo_id: ``owner/name``; made if absent. A card there that somebody wrote or changed is kept.
            dtype, evaluation, license: as for ``save_pretrained``.
            private: whether a new repository is private; None follows the owner's settings.
            revision: the branch, made if absent; None is the main one.
            create_pr: propose the commit as a pull request.
            commit_message: what the commit says.
            token: of the hub; None takes that of ``hf auth login``.
        """
        return upload(
            lambda folder: self._save(folder, repo_id, dtype, evaluation, license),
            repo_id,
            keep=(CARD_FILE,),
            private=private,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
            token=token,
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | None = None,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        token: str | bool | None = None,
    ) -> ImageTokenizer:
        """Load a tokenizer, in evaluation mode, in float32, on the CPU.

        Args:
            source: a folder written by ``save_pretrained`` or by a training run; a ``checkpoint.pt`` of the official
                GSQ implementation, or a folder with one; or a hub repository (``owner/name``) that holds either. None
                loads the small default tokenizer inside the package.
            revision: branch, tag or commit of a hub repository; the rest are huggingface_hub's own.

        Raises:
            FileNotFoundError: no such folder or repository.
            CheckpointError: unreadable files, or files of another kind; the message names the file.
        """
        path = EMBEDDED if source is None else Path(source).expanduser()
        if not path.exists():
            if "/" not in str(source):
                raise FileNotFoundError(f"no such folder: {source} (a hub repository is named owner/name)")
            path = download(
                str(source),
                [(CONFIG_FILE, WEIGHTS_FILE), (CHECKPOINT_FILE,)],
                revision=revision,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                force_download=force_download,
                token=token,
            )
        elif not (path / CONFIG_FILE).exists() and (path / RUN_TOKENIZER).is_dir():
            path = path / RUN_TOKENIZER
        if path.is_file():
            if path.suffix != ".pt":
                raise CheckpointError(
                    f"{path} is a file; expected a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, or an official "
                    "checkpoint (.pt)"
                )
            return cls._from_flex_gen(path)
        if not (path / CONFIG_FILE).exists() and (path / CHECKPOINT_FILE).is_file():
            return cls._from_flex_gen(path / CHECKPOINT_FILE)
        config_file, weights_file = path / CONFIG_FILE, path / WEIGHTS_FILE
        for file in (config_file, weights_file):
            if not file.is_file():
                raise CheckpointError(f"{path} holds no {file.name}, so it is not a saved tokenizer")
        return cls._from_files(config_file, weights_file)

    @classmethod
    def _from_flex_gen(cls, file: Path) -> ImageTokenizer:
        try:
            arguments, state = load_flex_gen(file)
            with torch.device("meta"):  # nothing is allocated for a configuration that does not fit its weights
                tokenizer = cls(TokenizerConfig(**arguments))
            check_fit(tokenizer.state_dict(), state)
        except (ValueError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"{file}: {' '.join(str(error).split())}") from error
        tokenizer.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
        return tokenizer.eval()

    @classmethod
    def _from_files(cls, config_file: Path, weights_file: Path) -> ImageTokenizer:
        try:
            tokenizer = cls(TokenizerConfig.from_dict(json.loads(config_file.read_text())))
        except (ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{config_file} is not a tokenizer's configuration: {error}") from error
        try:
            state = load_file(weights_file)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{weights_file} cannot be read: {error}") from error
        try:
            tokenizer.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{weights_file} does not fit {config_file.name}: {reason[:300]}") from error
        return tokenizer.eval()


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must have shape (B, 3, H, W), got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise TypeError(
            f"images must be floating point in [-1, 1], got {images.dtype}; 8-bit pictures become so by "
            "images.float() / 127.5 - 1"
        )
    if 0 in images.shape[2:]:
        raise ValueError(f"images must hold at least one pixel, got {tuple(images.shape)}")
