"""A tokenizer's files: saved to a folder or the hub, loaded from either, or from a checkpoint of another project."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qsl

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from gsqtok.io import one_line, read_json
from gsqtok.tokenizer.config import TokenizerConfig
from gsqtok.tokenizer.parts import Config

if TYPE_CHECKING:
    from typing_extensions import Self

    from gsqtok.evaluation.result import Result
    from gsqtok.tokenizer.model import ImageTokenizer

EMBEDDED = Path(__file__).parent.parent / "embedded"
"""Folder of the tokenizer inside the package."""
CHECKOUT = Path(__file__).parents[3]  # of the repository, where the package is used from one
PRETRAINED = (
    "pretrained/"  # names of the larger tokenizers begin with it: a folder of a checkout, a repository of OWNER
)
OWNER = "gsqtok"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CHECKPOINT_FILE = "checkpoint.pt"  # of the official GSQ implementation
DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"
PICKLED = (".pt", ".pth", ".ckpt", ".bin")  # suffixes of files that torch.save wrote
SCRIPTED = ".jit"  # of TorchScript
PUBLISHED = "gsqtok.published"  # opens what is none of ours; a layer above, so it is loaded by name when it is needed
MODULES_PER_WEIGHT = 20  # blocks hold modules without weights, too
RUN_TOKENIZER = "tokenizer"  # where a training run keeps its newest weights


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or is not one of ours; the message says which file and why."""


class Pretrained(nn.Module):
    """Saving and loading, for a module that is made from a configuration and keeps it as ``config``."""

    config: Any
    encoder: nn.Module
    decoder: nn.Module

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def weights(self) -> dict[str, Tensor]:
        """The state by its usual names, also where a network was replaced by ``torch.compile(network)``."""
        return {name.replace("_orig_mod.", ""): value for name, value in self.state_dict().items()}

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        dtype: torch.dtype | None = None,
        evaluation: Result | Mapping[str, Any] | str | Path | None = None,
        license: str | None = None,
    ) -> None:
        """Write a folder with config.json, model.safetensors and a model card.

        What only training needs is left out: see `Quantizer.plain`.
        Files are written atomically, so that a full disk or a crash leaves what was there before. A card that
        somebody wrote or changed is kept.

        Args:
            save_directory: the folder; made if absent.
            dtype: the type in which weights are stored, such as torch.float16 for half the size; None keeps theirs.
            evaluation: what ``gsqtok.evaluate`` returned, or the JSON file of ``gsqtok evaluate -o``, for the card;
                it then shows reconstructions, too.
            license: of the weights, for the card, as the hub names it (``"mit"``).

        Raises:
            NotADirectoryError: ``save_directory`` is a file.
            ValueError: no such evaluation, or one of another tokenizer; a tokenizer of TorchScript.
        """
        target = Path(save_directory)
        named = (target.parent if target.name == RUN_TOKENIZER else target).absolute().name  # a run has its own name
        self._save(target, named, dtype, evaluation, license, with_image=evaluation is not None)

    def _save(
        self,
        target: Path,
        name: str,
        dtype: torch.dtype | None,
        evaluation: Result | Mapping[str, Any] | str | Path | None,
        license: str | None,
        with_image: bool,
    ) -> None:
        from gsqtok.tokenizer.model_card import CARD_FILE, write_card

        if any(isinstance(module, torch.jit.ScriptModule) for module in self.modules()):
            raise ValueError("a tokenizer of TorchScript is a program and is not saved as weights: keep its own files")
        tokenizer = cast("ImageTokenizer", self).plain()
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(f"{target} is a file; a tokenizer is saved as a folder")
        state = {  # whole numbers, such as counts, would not survive a float type
            name: value.detach().to("cpu", dtype if value.is_floating_point() else None).contiguous()
            for name, value in tokenizer.weights().items()
        }
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            if (target / CARD_FILE).exists():
                shutil.copy(target / CARD_FILE, temporary)
            write_card(temporary, tokenizer, name, evaluation, license, with_image)
            save_file(state, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
            (temporary / CONFIG_FILE).write_text(json.dumps(tokenizer.config.to_dict(), indent=2) + "\n")
            target.mkdir(exist_ok=True)
            for file in temporary.iterdir():
                os.replace(file, target / file.name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

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
        """Upload what ``save_pretrained`` writes, with reconstructions of the package's images in the card.

        It is one commit, whose address is returned.

        Args:
            repo_id: ``owner/name``; made if absent. A card there that somebody wrote or changed is kept.
            dtype, evaluation, license: as for ``save_pretrained``.
            private: whether a new repository is private; None follows the owner's settings.
            revision: the branch, made if absent; None is the main one.
            create_pr: propose the commit as a pull request.
            commit_message: what the commit says.
            token: of the hub; None takes that of ``hf auth login``.
        """
        from gsqtok.tokenizer.hub import upload
        from gsqtok.tokenizer.model_card import CARD_FILE

        return upload(
            lambda folder: self._save(folder, repo_id, dtype, evaluation, license, with_image=True),
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
        decoder: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        allow_code: bool = False,
    ) -> Self:
        """Load a tokenizer, in evaluation mode.

        Args:
            source: a folder written by ``save_pretrained`` or by a training run; a checkpoint of another project (a
                file, or a folder with one), whose family is found by what it holds, or named and told more:
                ``"FAMILY:PATH?option=value"``; or a hub repository (``owner/name``, or ``owner/name/file``) that holds
                either. ``"pretrained/f8"``, ``"pretrained/f8-nested"`` and ``"pretrained/f16"`` are this project's own
                further tokenizers, from its repository or from the hub. None loads the one inside the package.
            revision: branch, tag or commit of a hub repository.
            cache_dir, local_files_only, force_download, token: huggingface_hub's own.
            decoder: another decoder of the same tokens, where the folder holds one as ``decoder-NAME.safetensors``:
                ``"sharp"`` for ``pretrained/f16``. ``"pretrained/f16?decoder=sharp"`` says the same in one word.
            device: where it is to run.
            dtype: of the networks' weights; the quantizer's stay in float32, since rounding them changes tokens.
            allow_code: run the programs in a checkpoint of TorchScript (Cosmos DI), which may do anything: only for
                files of somebody you trust. Nothing else ever runs code of a file.

        Raises:
            FileNotFoundError: no such folder or repository.
            CheckpointError: unreadable files, or files of another kind; the message names the file.
        """
        hub = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only}
        with torch.device("cpu"):  # whatever the caller's default is
            tokenizer = cls._load(source, decoder, hub | {"force_download": force_download, "token": token}, allow_code)
        for network in (tokenizer.encoder, tokenizer.decoder):
            network.to(dtype)
        return tokenizer.to(device)

    @classmethod
    def _load(cls, source: str | Path | None, decoder: str | None, hub: dict[str, Any], allow_code: bool) -> Self:
        family: str | None = None
        options: dict[str, Any] = {}
        path = EMBEDDED
        if source is not None:
            family, name, options = split_name(source)
            path = _located(name, hub, decoder or options.get("decoder"))
        if path.name == WEIGHTS_FILE and _is_own(path.parent):
            raise CheckpointError(f"{path} is a file: name the folder that it is in")
        own = family is None and _is_own(path) and options.keys() <= {"decoder"}
        if not own:
            if decoder is not None:
                raise ValueError(f"decoder={decoder!r} is for a folder that save_pretrained wrote; {path} is none")
            opened: Self = import_module(PUBLISHED).open_checkpoint(path, family, options, allow_code=allow_code)
            return opened
        for file in (path / CONFIG_FILE, path / WEIGHTS_FILE):
            if not file.is_file():
                raise CheckpointError(f"{path} holds no {file.name}, so it is not a saved tokenizer")
        decoder = decoder or options.get("decoder")
        return cls._from_files(
            path / CONFIG_FILE, path / WEIGHTS_FILE, _decoder_file(path, decoder) if decoder else None
        )

    @classmethod
    def _from_files(cls, config_file: Path, weights_file: Path, decoder_file: Path | None = None) -> Self:
        state = _read(weights_file)
        if decoder_file is not None:
            weights_file = decoder_file
            state = {name: value for name, value in state.items() if not name.startswith("decoder.")}
            state |= {f"decoder.{name}": value for name, value in _read(decoder_file).items()}
        try:
            values = read_json(config_file)
            own = "family" not in values
            config = TokenizerConfig.from_dict(values) if own else import_module(PUBLISHED).PublishedConfig(**values)
            tokenizer = cls.on_meta(config, len(state))
        except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
            raise CheckpointError(f"{config_file} is not a tokenizer's configuration: {_in_a_line(error)}") from error
        try:
            return tokenizer.filled(state)
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(f"{weights_file} does not fit {config_file.name}: {_in_a_line(error)}") from error

    @classmethod
    def on_meta(cls, config: Config, weights: int) -> Self:
        """Make a tokenizer without memory, to compare it with what a file holds.

        Args:
            config: what it is made of.
            weights: how many tensors the file holds.

        Raises:
            ValueError: it asks for many more modules than so many weights could fill.
        """
        most = MODULES_PER_WEIGHT * weights + 100
        left = most

        def count(*_: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise ValueError(f"it asks for more than {most} modules, and its file holds {weights} weights")

        hook = register_module_module_registration_hook(count)
        try:
            with torch.device("meta"):
                return cls(config)
        finally:
            hook.remove()

    def filled(self, state: Mapping[str, Tensor]) -> Self:
        """This tokenizer from ``on_meta`` with copies of these weights, in float32, in evaluation mode.

        Raises:
            ValueError: names or shapes that it does not have.
        """
        expected = self.state_dict()
        for what, names in (("lacks", expected.keys() - state), ("has no place for", state.keys() - expected)):
            if names:
                raise ValueError(f"it {what} {len(names)} weights, such as {min(names)}")
        for name, value in state.items():
            if value.shape != expected[name].shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {tuple(expected[name].shape)}")
        copies = {  # what was loaded may be a view of the file
            name: value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)
            for name, value in state.items()
        }
        tokenizer = self
        if any(buffer.is_meta for name, buffer in self.named_buffers() if name not in expected):
            with torch.device("cpu"):  # constants that are no weights, and must be computed
                tokenizer = type(self)(self.config)
        tokenizer.load_state_dict(copies, assign=True)
        return tokenizer.eval()


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def _decoder_file(folder: Path, name: str) -> Path:
    """Where a folder holds the decoder of that name."""
    prefix, suffix = "decoder-", ".safetensors"
    names = sorted(file.name[len(prefix) : -len(suffix)] for file in folder.glob(f"{prefix}*{suffix}"))
    if name not in names:
        there = f"it has {', '.join(names)}, and its usual one" if names else "it has its usual one only"
        raise CheckpointError(f"{folder} holds no decoder {name!r}: {there}")
    return folder / f"{prefix}{name}{suffix}"


def _in_a_line(error: Exception) -> str:
    return one_line(error)[:300]


def split_name(source: str | Path) -> tuple[str | None, str, dict[str, Any]]:
    """``FAMILY:PATH?option=value&...`` in its parts; the family is None where none is named."""
    text = str(source)
    if Path(text).expanduser().exists():
        return None, text, {}
    named = re.match(r"([a-z][a-z0-9_]+):(?!//)", text)
    path, _, options = text[named.end() if named else 0 :].partition("?")
    return named and named[1], path, {name: _value(value) for name, value in parse_qsl(options, keep_blank_values=True)}


def _value(text: str) -> Any:
    """A number, a list of numbers, true or false; a word as it is."""
    try:
        return json.loads(f"[{text}]" if "," in text else text)
    except ValueError:
        return text


def _located(name: str, hub: dict[str, Any], decoder: str | None = None) -> Path:
    """The file or folder of that name; from the hub where there is none here."""
    path = Path(name).expanduser()
    if name.startswith(PRETRAINED) and not path.exists():
        path = CHECKOUT / name
        if not path.exists():
            return _own_from_hub(name, hub, decoder)
    if path.exists():
        is_run = not (path / CONFIG_FILE).exists() and (path / RUN_TOKENIZER).is_dir()
        return path / RUN_TOKENIZER if is_run else path
    if "/" not in name:
        raise FileNotFoundError(f"no such folder: {name} (a hub repository is named owner/name)")
    from gsqtok.tokenizer.hub import download

    own: tuple[str, ...] = (WEIGHTS_FILE, CONFIG_FILE)
    if decoder:
        own = (*own, f"decoder-{decoder}.safetensors")
    wanted = [own, (DIFFUSERS_FILE, CONFIG_FILE), (CHECKPOINT_FILE,)]
    if name.count("/") < 2 or path.suffix not in (*PICKLED, ".safetensors"):
        return download(name, wanted, **hub)
    owner, repository, file = name.split("/", 2)
    return download(f"{owner}/{repository}", [(file,)], **hub) / file


def _own_from_hub(name: str, hub: dict[str, Any], decoder: str | None) -> Path:
    """One of this project's larger tokenizers where there is no checkout."""
    try:
        return _located(f"{OWNER}/{name.removeprefix(PRETRAINED)}", hub, decoder)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}. The package holds the default tokenizer alone: '{name}' lies in the folder {PRETRAINED} of a "
            f"clone of the repository, so name it by its path there, such as CLONE/{name}"
        ) from error


def _is_own(path: Path) -> bool:
    """Whether a folder is one of ours, perhaps a damaged one: not a file, nor a folder of another project."""
    if not path.is_dir():
        return False
    if not (path / CONFIG_FILE).exists():
        return not any(
            file.suffix in (*PICKLED, SCRIPTED) for pattern in ("*", "checkpoints/*") for file in path.glob(pattern)
        )
    try:
        values = read_json(path / CONFIG_FILE)
    except (OSError, ValueError):
        return True
    own = {"family", *(field.name for field in dataclasses.fields(TokenizerConfig))}
    return not isinstance(values, dict) or not values or not own.isdisjoint(values)
