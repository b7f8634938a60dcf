"""Files beside a checkpoint's weights: found in a folder or on the Hub, kept, and uploaded."""

import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import (
    _CACHED_NO_EXIST,
    CommitOperationAdd,
    HfApi,
    hf_hub_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file

WEIGHTS = "model.safetensors"
# What a run folder holds for readers and for score.py, and what LoRA added to the weights.
COMPANIONS = (
    *("README.md", "run.json", "recipe.yaml", "metrics.json"),
    *("adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
)

logger = logging.getLogger(__name__)


class Saved(Protocol):
    """A model, a bank or a pipeline."""

    def save_pretrained(self, save_directory: Path) -> None:
        """Write its files into a folder."""


def fetch(name_or_dir: str | Path, name: str, **origin: Any) -> Path:  # noqa: ANN401  the Hub's
    """Return where a file of a folder or of a repository lies on this machine.

    Raises:
        FileNotFoundError: The folder or the repository does not have it.
        PermissionError: The repository is gated.
        ConnectionError: It is not in the cache, and the Hub may not or cannot be asked.
        OSError: There is no such repository or revision, or this token may not see it.
    """
    missing = (
        f"{name_or_dir} has no {name}. Fit a ReferenceBank with this model and save it there, or "
        "set pipe.reference_bank."
    )
    if Path(name_or_dir).is_dir():
        path = Path(name_or_dir) / name
        if not path.is_file():
            raise FileNotFoundError(missing)
        return path
    repository = str(name_or_dir)
    try:
        return Path(hf_hub_download(repository, name, **origin))
    except LocalEntryNotFoundError as error:
        known = try_to_load_from_cache(repository, name, revision=origin.get("revision"))
        if known is _CACHED_NO_EXIST:
            raise FileNotFoundError(missing) from error
        raise ConnectionError(
            f"{name} of {name_or_dir} is not in the cache, and the Hub cannot be asked for it. "
            "Load the model once with a connection."
        ) from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(missing) from error
    except GatedRepoError as error:
        raise PermissionError(
            f"{repository} is gated. Ask for access on its page, and pass a token that has it."
        ) from error
    except RepositoryNotFoundError as error:
        raise OSError(
            f"{repository} is no folder here and no repository of the Hub that this token may "
            "see. Check the name, or pass token= for a private one."
        ) from error
    except RevisionNotFoundError as error:
        raise OSError(
            f"{repository} has no revision {origin.get('revision')!r}. Give a branch, a tag or a "
            "commit that it has."
        ) from error


def loaded_commit(repo_id: str, revision: str | None, cache_dir: Any = None) -> str | None:  # noqa: ANN401
    """Return the commit that a checkpoint in the cache is of, or `revision` where that is unknown.

    Args:
        repo_id: "owner/name".
        revision: What was asked for; None is the main branch.
        cache_dir: Of the Hub's files, None for the usual one.
    """
    revision = getattr(revision, "resolved", revision)  # of transformers' own resolving
    known = try_to_load_from_cache(repo_id, "config.json", cache_dir=cache_dir, revision=revision)
    return Path(known).parent.name if isinstance(known, str) else revision


def keep_companions(folder: Path, name_or_dir: str, **origin: Any) -> None:  # noqa: ANN401
    """Copy what lies beside a checkpoint's weights into a folder, where it is not there already.

    Args:
        folder: Where its model was saved.
        name_or_dir: Where it was loaded from.
        **origin: revision, token and local_files_only of the Hub.
    """
    for name in COMPANIONS:
        target = folder / name
        if target.exists():
            continue
        try:
            source = fetch(name_or_dir, name, **origin)
        except FileNotFoundError:
            continue
        except ConnectionError:
            logger.warning("%s of %s is not in the cache, so it is not kept.", name, name_or_dir)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def keep_head(folder: Path, prefix: str, name_or_dir: str, **origin: Any) -> None:  # noqa: ANN401
    """Put back the weights that a base model was loaded without, if its own did not change.

    Args:
        folder: Where the base model was saved.
        prefix: Of the base model's weights among all, such as "asd.".
        name_or_dir: Where it was loaded from.
        **origin: revision, token and local_files_only of the Hub.
    """
    try:
        source = fetch(name_or_dir, WEIGHTS, **origin)
        described = fetch(name_or_dir, "config.json", **origin)
    except OSError:  # weights in several files, or not in the cache
        return
    if not (folder / WEIGHTS).is_file() or source.samefile(folder / WEIGHTS):
        return
    before, saved = load_file(source), load_file(folder / WEIGHTS)
    if len(before) <= len(saved):
        return
    for name, tensor in saved.items():
        other = before.get(f"{prefix}{name}")
        if other is None or other.dtype != tensor.dtype or not torch.equal(other, tensor):
            return
    shutil.copyfile(source, folder / WEIGHTS)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["architectures"] = json.loads(described.read_bytes()).get("architectures")
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def push_files(
    part: Saved,
    repo_id: str,
    *,
    private: bool | None,
    revision: str | None,
    token: str | bool | None,
    commit_message: str,
) -> str:
    """Save something and put its files into a repository, in one commit; return its address."""
    api = HfApi(token=token)
    full_name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(full_name, branch=revision, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        part.save_pretrained(folder)
        commit = api.create_commit(
            full_name,
            [
                CommitOperationAdd(path.relative_to(folder).as_posix(), path)
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            ],
            commit_message=commit_message,
            revision=revision,
        )
    return str(commit.commit_url)


__all__ = ["fetch", "keep_companions", "keep_head", "loaded_commit", "push_files"]
