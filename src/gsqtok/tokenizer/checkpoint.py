"""A tokenizer's files: saved to a folder or the hub, loaded from either or from an official checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gsqtok.tokenizer.config import TokenizerConfig
from gsqtok.tokenizer.flex_gen import CHECKPOINT_FILE, check_fit, load_flex_gen

if TYPE_CHECKING:
    from typing_extensions import Self

    from gsqtok.evaluation.result import Result

EMBEDDED = Path(__file__).parent.parent / "embedded"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
RUN_TOKENIZER = "tokenizer"  # where a training run keeps its newest weights


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or is not one of ours; the message says which file and why."""


class Pretrained:
    """Saving and loading, for a module that is made from a ``TokenizerConfig`` and keeps it as ``config``."""

    config: TokenizerConfig

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
        from gsqtok.tokenizer.model_card import CARD_FILE, write_card

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
            (aside / CONFIG_FILE).write_text(json.dumps(self.config.to_dict(), indent=2) + "\n")
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
        from gsqtok.tokenizer.hub import upload
        from gsqtok.tokenizer.model_card import CARD_FILE

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
    ) -> Self:
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
            from gsqtok.tokenizer.hub import download

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
    def _from_flex_gen(cls, file: Path) -> Self:
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
    def _from_files(cls, config_file: Path, weights_file: Path) -> Self:
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
