"""Checkpoints by name: a directory on this machine, or a repository of the Hugging Face hub.

The hub's own library downloads, keeps the cache, and reads the token and HF_HUB_OFFLINE, HF_HOME and
HF_ENDPOINT. Only files that a checkpoint is read from are downloaded: never a pickle, never code.
"""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from densepath.errors import InvalidRequestError
from densepath.pair.identity import READ
from densepath.pair.weights import PICKLES

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ResolvedRevision

#: `org/name`, or `org/name@revision`. Paths that begin with `.`, `/` or `~`, or end with `/`, are no ids.
_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:@(\S+))?", re.ASCII)
#: Where the hub's library keeps a commit of a model. No id has `--` in it.
_SNAPSHOT = re.compile(r".*/models--(.+?)--([^/]+)/snapshots/([0-9a-f]{40}(?:/.+)?)")
#: A second copy of the weights, in Mistral's own format. Nothing here reads it.
_COPIES = "consolidated*.safetensors"


def located(
    name: str | Path, say: Callable[[str], None], *, revision: str | None = None, run: bool = False
) -> Path:
    """The directory of that name or, if there is none, the commit of the hub's repository of that name.

    A name that is no id of the hub is returned as a path. `revision` is that of an id without one. `run`
    takes the folders of a run too, with every checkpoint in them. `say` is called with a line that names the
    commit. Raises InvalidRequestError if the name is an id and the hub and the cache do not have it.
    """
    found = _ID.fullmatch(str(name))
    if found is None or os.path.lexists(name):
        return Path(name)
    from huggingface_hub import errors

    kinds = (
        errors.HTTPError,  # type: ignore[attr-defined]  # of the library's HTTP client
        errors.HFValidationError,
        errors.RevisionResolutionError,
        errors.XetDownloadError,
    )
    repository, wanted = found[1], found[2] or revision
    try:
        return _snapshot(repository, wanted, run, say)
    except (OSError, *kinds) as error:
        raise InvalidRequestError(_reason(error, repository, wanted)) from error


def source_name(directory: Path) -> str:
    """A directory's name to people: its last part, or `org/name@commit` for what came from the hub."""
    path = os.path.abspath(directory)
    found = _SNAPSHOT.fullmatch(path)
    return f"{found[1]}/{found[2]}@{found[3]}" if found else Path(path).name


def _snapshot(repository: str, revision: str | None, run: bool, say: Callable[[str], None]) -> Path:
    from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    api, offline = HfApi(library_name="densepath"), is_offline_mode()
    commit = api.resolve_revision(repository, revision=revision, local_files_only=offline)
    files = _files(api, repository, commit, offline)
    if files is None:
        say(f"{repository}: commit {commit.resolved}, from the cache")
        return Path(snapshot_download(repository, revision=commit, local_files_only=True))
    wanted = [name for name in files if _is_read(name, run)]
    if not any(name.endswith(".safetensors") for name in wanted):
        raise InvalidRequestError(_no_weights(repository, files))
    late = [
        name
        for name in wanted
        if not isinstance(try_to_load_from_cache(repository, name, revision=commit.resolved), str)
    ]
    if late and offline:
        raise LocalEntryNotFoundError(f"the cache lacks {late[0]}")
    if not sys.stderr.isatty():
        disable_progress_bars()
    size = sum(files[name] for name in late)
    what = f"files to download: {len(late)} ({size / 1e6:,.1f} MB)" if late else "from the cache"
    say(f"{repository}: commit {commit.resolved}, {what}")
    return Path(
        snapshot_download(
            repository,
            revision=commit,
            allow_patterns=[glob.escape(name) for name in wanted],
            local_files_only=offline,
            library_name="densepath",
        )
    )


def _files(api: HfApi, repository: str, commit: ResolvedRevision, offline: bool) -> Mapping[str, int] | None:
    """The files of a commit → bytes. None if there is only the cache, and it does not say."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError
    from huggingface_hub.hf_api import RepoFile

    try:
        return {file.path: file.size for file in get_cached_repo_tree(repository, revision=commit)}
    except CachedRepoTreeNotFoundError:
        if offline:
            return None
    tree = api.list_repo_tree(repository, revision=commit.resolved, recursive=True)
    return {file.path: file.size for file in tree if isinstance(file, RepoFile)}


def _is_read(name: str, run: bool) -> bool:
    """Whether a checkpoint is read from this file of a repository: one of its own or, for a run, any."""
    return not fnmatchcase(Path(name).name, _COPIES) and any(
        fnmatchcase(name, pattern) and (run or name.count("/") == pattern.count("/")) for pattern in READ
    )


def _no_weights(repository: str, files: Mapping[str, int]) -> str:
    pickles = [name for name in files if any(fnmatchcase(name, pattern) for pattern in PICKLES)]
    if pickles:
        return (
            f"{repository} has no safetensors, only pickled weights such as {pickles[0]}, which are never "
            "loaded: name a revision that has safetensors behind @, or convert the weights and give their "
            "directory"
        )
    if any(name.endswith(".safetensors") for name in files):
        return (
            f"{repository} has its safetensors in folders: a run with several checkpoints is given by --pair"
        )
    return f"{repository} has no safetensors: a checkpoint must have its weights in them"


def _reason(error: Exception, repository: str, revision: str | None) -> str:
    """One sentence: why the hub and the cache do not give a commit, and what to do."""
    from huggingface_hub import constants, errors

    hub, at = constants.ENDPOINT, f"{repository}@{revision}" if revision else repository
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    cause = str(error).strip().partition("\n")[0] or type(error).__name__
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{repository} is gated: accept its terms at {hub}/{repository}, and give the token of that "
            "account in HF_TOKEN or by `hf auth login`"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{repository} is neither a directory here nor a repository that {hub} shows you: correct the "
            "name or, if the repository is private, give a token in HF_TOKEN or by `hf auth login`"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} has no revision {revision}: give one of its branches, tags or commits behind @"
    if status in (401, 403):
        return (
            f"{hub} refused the token for {repository} (status {status}): give one that is valid and may "
            "read it, in HF_TOKEN or by `hf auth login`"
        )
    if isinstance(error, errors.RevisionResolutionError | errors.LocalEntryNotFoundError):
        if constants.is_offline_mode():
            return (
                f"{repository} is not a directory here, HF_HUB_OFFLINE is set, and the cache in "
                f"{constants.HF_HUB_CACHE} does not have all of {at}: unset HF_HUB_OFFLINE, or give a "
                "directory"
            )
        return (
            f"{repository} is not a directory here, the cache does not have {at}, and {hub} cannot be "
            "reached: connect to the network, or give a directory"
        )
    return (
        f"the download of {at} from {hub} was interrupted ({cause}): give the same command again, which "
        "keeps the files that are complete"
    )
