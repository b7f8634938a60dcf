"""What of a run folder is uploaded, what never is, and the commit that puts it on the Hub."""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.repocard import ModelCard
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # httpx or httpx2, its own
from safetensors import SafetensorError, safe_open

from nearfar.files import read_json

logger = logging.getLogger(__name__)

CARD = "README.md"
BANK, ADAPTER = "reference_bank.json", "adapter_config.json"
PLACEHOLDER = "THIS FOLDER"  # of the repository's name, in a card that is not published yet
TEXTS = (".json", ".yaml", ".md")  # in which a path of this machine becomes its last part
UPLOADED = (*TEXTS, ".py", ".safetensors")
NOT_UPLOADED = ("trainer_state", "__pycache__")
# What an earlier run may have left in a repository and would be read with this one's files.
OF_A_RUN = {"config.json", "fusion.json", BANK, ADAPTER}
CODE_AND_TENSORS = (".py", ".safetensors")

# An absolute path of two parts or more: /home/me/data, C:\\Users\\me, file:///tmp/x/y.
LOCAL_PATH = re.compile(
    r"""(?<![\w.:/~@-])(?:file://)?/(?:[\w.@+~-]+/)+(?P<posix>[\w.@+~-]*)"""
    r"""|(?<!\w)[A-Za-z]:(?:\\+|/)(?:[^\\/\n"'`]+(?:\\+|/))*(?P<windows>[^\\/\s"'`]*)"""
)
HOME = re.compile(r"(?:file://)?(?:/home|/Users|[A-Za-z]:[\\/]+Users)[\\/]+[^\\/]+[\\/]*")
SECRETS = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bapi_org_[A-Za-z0-9]{16,}|\bgh[pousr]_[A-Za-z0-9]{20,}"
    r"|\bsk-[A-Za-z0-9_-]{20,}|\bAKIA[0-9A-Z]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)


def published_files(
    folder: Path, repo_id: str, *, token: str | None = None
) -> dict[str, bytes | Path]:
    """Return what of a run folder is uploaded: path in the repository -> content, or its file.

    The states of the training, hidden files and files of other kinds than a run folder is made of
    stay here. In JSON, YAML and cards a path of this machine is cut to its last part, and the
    card's example names the repository. A fusion's members come along, checked alike.

    Args:
        folder: A complete run folder.
        repo_id: "owner/name".
        token: Looked for in every file, beside what looks like one.

    Raises:
        ValueError: A file holds what looks like a token, tensors are damaged or say where they
            were made, the card is missing or its metadata is no card's, or adapters lie beside
            merged weights.
    """
    files: dict[str, bytes | Path] = {}
    texts: dict[str, str] = {}
    left_out = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        parts = name.parts
        if any(part.startswith(".") or part in NOT_UPLOADED for part in parts):
            continue
        if path.suffix not in UPLOADED:
            left_out.append(name.as_posix())
            continue
        if path.suffix == ".safetensors":
            check_tensors(path)
            files[name.as_posix()] = path
            continue
        text = path.read_text(encoding="utf-8")
        cut = without_paths(text, name.as_posix()) if path.suffix in TEXTS else text
        texts[name.as_posix()] = cut
    if left_out:
        logger.warning("Not uploaded, a run folder has no such files: %s.", left_out)
    check_secrets(texts, token)
    if CARD not in texts:
        raise ValueError(f"{folder} has no {CARD}. Write the run anew with train.py, or add one.")
    for path in (folder / name for name in texts):
        if path.name == BANK:
            check_bank(path)
        if path.name == ADAPTER and path.parent.name != "adapter":
            raise ValueError(
                f"{path.parent} has {ADAPTER} beside merged weights, so that loading would add "
                "the adapter a second time. Move it into adapter/."
            )
    texts[CARD] = texts[CARD].replace(PLACEHOLDER, repo_id)
    check_card(texts[CARD])
    return files | {name: text.encode() for name, text in texts.items()}


def is_of_a_run(name: str) -> bool:
    """Return whether a file of a repository is one that a run folder comes with, or its member."""
    path = PurePosixPath(name)
    return path.parts[0] == "members" or path.name in OF_A_RUN or path.suffix in CODE_AND_TENSORS


def without_paths(text: str, name: str) -> str:
    """Return a text with each absolute path cut to its last part, and someone's home to ~."""

    def last_part(match: re.Match[str]) -> str:
        if HOME.fullmatch(match[0]):
            return "~"
        return match["posix"] or match["windows"] or re.split(r"[\\/]+", match[0].rstrip("\\/"))[-1]

    cut, count = LOCAL_PATH.subn(last_part, text)
    if count:
        logger.info("%s: %d paths of this machine were cut to their last part.", name, count)
    return cut


def check_secrets(texts: Mapping[str, str], token: str | None) -> None:
    """Raise ValueError where a text holds a token or a key; the message does not repeat it."""
    for name, text in texts.items():
        if SECRETS.search(text) or (token and token in text):
            raise ValueError(
                f"{name} holds what looks like an access token or a key. Nothing was uploaded. "
                "Take it out, and withdraw the token if others could have read it."
            )


def check_tensors(path: Path) -> None:
    """Raise ValueError where a safetensors file is damaged or tells of this machine."""
    try:
        with safe_open(path, framework="np") as tensors:
            metadata = json.dumps(tensors.metadata() or {})
    except SafetensorError as error:
        raise ValueError(
            f"{path.name} is damaged: {error}. Write the run anew, or fetch it again."
        ) from error
    if LOCAL_PATH.search(metadata):
        raise ValueError(f"The metadata of {path.name} names a path of this machine. Save it anew.")


def check_bank(described: Path) -> None:
    """Raise ValueError where a reference bank's JSON and the tensors beside it do not match."""
    due = read_json(described).get("tensors_sha256")
    tensors = described.with_suffix(".safetensors")
    found = None
    if tensors.is_file():
        with tensors.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != due:
        raise ValueError(
            f"{tensors} is not the file that {described.name} was written with. Write the run anew."
        )


def check_card(text: str) -> None:
    """Raise ValueError where a card's metadata cannot be read as a model card's."""
    try:
        ModelCard(text)
    except (ValueError, TypeError) as error:
        told = " ".join(str(error).split())
        raise ValueError(f"The metadata at the head of {CARD} is not valid: {told}") from error


def open_repository(
    repo_id: str, *, private: bool = False, token: str | None = None, tag: str | None = None
) -> tuple[HfApi, str]:
    """Find or make a model repository that this token may write to; return its full name, too.

    Args:
        repo_id: "owner/name", or a name of one's own.
        private: Make it private; refused where it is there and public.
        token: None takes HF_TOKEN or what `hf auth login` stored.
        tag: Refused where it is there.

    Raises:
        ValueError: The name, the tag or `private` does not fit what is there.
        PermissionError: There is no token, or it may not write.
        ConnectionError: The Hub cannot be reached.
    """
    api = HfApi(token=token)
    with plain_errors(repo_id):
        user = api.whoami()["name"]
        full_name = repo_id if "/" in repo_id else f"{user}/{repo_id}"
        api.create_repo(full_name, private=private or None, exist_ok=True)
        if private and not api.model_info(full_name).private:
            raise ValueError(
                f"{full_name} is there and is public, so --private cannot be kept. Take another "
                "name, or make it private in its settings first."
            )
        tags = [ref.name for ref in api.list_repo_refs(full_name).tags] if tag else []
        if tag in tags:
            raise ValueError(f"{full_name} has a tag {tag!r} already. Give another --tag.")
    return api, full_name


def upload(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    token: str | None = None,
) -> str:
    """Put a run folder into a repository in one commit, and return its address there.

    Files that the repository has and a run does not come with (a picture, a LICENSE) stay; code,
    tensors and adapters of an earlier run go. Broken off, nothing is committed, and the same call
    again sends no large file twice.

    Args:
        folder: A complete run folder.
        repo_id: As for `open_repository`, like `private`, `token` and `tag`.
        private: Whether it is to be private.
        revision: The branch, made if it is not there; None is main.
        tag: A name for this commit.
        token: With write access.

    Raises:
        ValueError: As `published_files` and `open_repository`.
        PermissionError: As `open_repository`.
        ConnectionError: The upload broke off.
    """
    api, full_name = open_repository(repo_id, private=private, token=token, tag=tag)
    files = published_files(folder, full_name, token=token)
    with plain_errors(full_name):
        if revision is not None:
            api.create_branch(full_name, branch=revision, exist_ok=True)
        there = api.list_repo_files(full_name, revision=revision)
        stale = [name for name in there if is_of_a_run(name) and name not in files]
        commit = api.create_commit(
            full_name,
            [
                *(CommitOperationAdd(name, content) for name, content in files.items()),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message="A detector of anomalous sounds, made with nearfar",
            revision=revision,
        )
        if tag is not None:
            api.create_tag(full_name, tag=tag, revision=commit.oid)
    return f"{api.endpoint}/{full_name}/tree/{tag or revision or 'main'}"


@contextmanager
def plain_errors(repo_id: str) -> Iterator[None]:
    """Say in one line what the Hub's client says in many, and what to do.

    Raises:
        ValueError: A name that cannot be one, or metadata that the Hub refuses.
        PermissionError: No token, or one that may not.
        FileNotFoundError: No such repository or revision.
        ConnectionError: Anything that may go better next time.
    """
    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} cannot name a repository: {error}") from error
    except ValueError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except LocalTokenNotFoundError as error:
        raise PermissionError(
            "There is no access token. Log in with `hf auth login`, set HF_TOKEN, or give --token."
        ) from error
    except GatedRepoError as error:
        raise PermissionError(
            f"{repo_id} is gated. Ask for access on its page, and use a token that has it."
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{repo_id} has no such revision. Give a branch.") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{repo_id} is not there, or is private and this token may not see it."
        ) from error
    except (HfHubHTTPError, httpx.HTTPError, RuntimeError) as error:
        told = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        status = getattr(getattr(told, "response", None), "status_code", None)
        said = getattr(told, "server_message", None) or str(told)
        reason = " ".join(said.split())
        if status in (401, 403) and not isinstance(error, RuntimeError):
            raise PermissionError(
                f"The Hub refuses this token at {repo_id} ({reason}). Use one with write access."
            ) from error
        raise ConnectionError(
            f"{repo_id}: {reason}. The upload broke off, and nothing was committed. `python -m "
            "nearfar.hub push` goes on from there."
        ) from error
