"""Files of a hub repository, from its cache or the network."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from gsqtok.available import asking_the_hub


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
        with asking_the_hub():
            return _download(repository, alternatives, options)
    except HFValidationError:
        raise FileNotFoundError(f"no such folder: {repository}") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise FileNotFoundError(
            f"no folder '{repository}' here, and not loaded from the hub: {_reason(error, repository, options)}"
        ) from error


def _download(repository: str, alternatives: Sequence[Sequence[str]], options: dict[str, Any]) -> Path:
    missing: EntryNotFoundError | None = None
    for names in alternatives:
        try:
            first = Path(hf_hub_download(repository, names[0], **options))
        except EntryNotFoundError as error:  # also where there is no network: the next one may be in the cache
            missing = missing or error  # of the files that are preferred
            continue
        # The folder of a snapshot is named by its commit: a branch may move on between two files.
        for name in names[1:]:
            hf_hub_download(repository, name, **options | {"revision": first.parent.name})
        return first.parent
    assert missing is not None
    raise missing


def _reason(error: Exception, repository: str, options: dict[str, Any]) -> str:
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision '{options.get('revision')}'"
    if isinstance(error, GatedRepoError):
        return f"access must be asked for at https://huggingface.co/{repository}, then log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or it is private and needs a token (`hf auth login`)"
    if isinstance(error, RemoteEntryNotFoundError):
        return f"it holds no {str(error.response.url).rpartition('/')[2]}"
    if isinstance(error, LocalEntryNotFoundError) and not options.get("local_files_only"):
        return "the hub cannot be reached, and its files are not in the cache"
    return str(error).strip().splitlines()[0]


def upload(
    write: Callable[[Path], None],
    repository: str,
    *,
    keep: Sequence[str],
    private: bool | None,
    revision: str | None,
    create_pr: bool,
    commit_message: str,
    token: str | bool | None,
) -> str:
    """Make the repository and branch if absent, upload what ``write`` puts into a folder; the commit's address.

    Files in ``keep`` that the repository has already are put into the folder first: ``write`` may leave them.
    """
    api = HfApi(token=token)
    repository = api.create_repo(repository, private=private, exist_ok=True).repo_id
    if revision is not None and not create_pr:
        api.create_branch(repository, branch=revision, exist_ok=True)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "tokenizer"
        folder.mkdir()
        for name in keep:
            try:
                present = hf_hub_download(repository, name, revision=revision, token=token)
            except EntryNotFoundError:
                continue
            (folder / name).write_bytes(Path(present).read_bytes())
        write(folder)
        return api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
        ).commit_url
