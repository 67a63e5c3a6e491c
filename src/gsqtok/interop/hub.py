"""Files of a hub repository, from its cache or the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


def download(repository: str, alternatives: Sequence[Sequence[str]], **options: Any) -> Path:
    """The local folder with the first of several sets of files that a repository holds, all of one commit.

    Args:
        repository: ``owner/name``.
        alternatives: sets of file names, the preferred one first; its first file decides whether the repository has it.
        options: of ``huggingface_hub.hf_hub_download`` (``revision``, ``cache_dir``, ``local_files_only``, ...).

    Raises:
        FileNotFoundError: no such repository, revision or file, or no network; one line says which.
    """
    try:
        for names in alternatives[:-1]:
            try:
                first = hf_hub_download(repository, names[0], **options)
            except EntryNotFoundError:  # also where there is no network: the next one may be in the cache
                continue
            return _with_rest(Path(first), repository, names[1:], options)
        names = alternatives[-1]
        first = hf_hub_download(repository, names[0], **options)
        return _with_rest(Path(first), repository, names[1:], options)
    except HFValidationError:
        raise FileNotFoundError(f"no such folder: {repository}") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise FileNotFoundError(
            f"no folder '{repository}' here, and not loaded from the hub: {_reason(error, repository, options)}"
        ) from error


def _with_rest(first: Path, repository: str, names: Sequence[str], options: dict[str, Any]) -> Path:
    # The folder of a snapshot is named by its commit: a branch may move on between two files.
    options = options | {"revision": first.parent.name}
    for name in names:
        hf_hub_download(repository, name, **options)
    return first.parent


def _reason(error: Exception, repository: str, options: dict[str, Any]) -> str:
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision '{options.get('revision')}'"
    if isinstance(error, GatedRepoError):
        return f"access must be asked for at https://huggingface.co/{repository}, then log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or it is private and needs a token (`hf auth login`)"
    return str(error).strip().splitlines()[0]
