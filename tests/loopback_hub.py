"""A Hub of one's own for tests: real Hugging Face clients push to it and load from it, on loopback.

    with LoopbackHub() as hub:
        subprocess.run([...], env=os.environ | hub.environment(home))  # clients of a fresh process
        with hub.clients_here(monkeypatch, home): ...                  # or those of this one
        hub.check()                                                     # no unknown endpoint

It serves what huggingface_hub 2.4, transformers, datasets, peft and evaluate ask for: models,
datasets and spaces with their branches, tags and commits, regular and LFS files, listings and
downloads with ranges, private and gated repositories, tokens, and the check of a card's metadata.
Anything else is answered 404 and kept in `unknown`, so that a test can fail: `check`. Everything is
in memory. There is no Xet (`environment` switches it off), no pull request and no paging.

What can go wrong is made to: `hub.faults.append(Fault("PUT /_lfs", status=403, after=1))`.
"""

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

if TYPE_CHECKING:
    import pytest

TOKEN, USER = "hf_tester", "tester"
LARGE_FILE = 10_000_000  # bytes; from here on LFS, whatever the name
LFS_SUFFIXES = (
    *(".safetensors", ".bin", ".pt", ".npy", ".parquet", ".arrow"),
    *(".wav", ".flac", ".png", ".zip"),
)
PREFIXES = {"": "models", "datasets/": "datasets", "spaces/": "spaces"}
LICENSES = {
    *("apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0"),
    *("cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "other", "unknown"),
}


class Reply(NamedTuple):
    """An answer: a value that becomes JSON, or bytes."""

    body: Any = b""
    status: int = 200
    headers: Mapping[str, str] = {}


class RefusedError(Exception):
    """A request that the Hub refuses, with the code that clients tell their errors by."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.reply = Reply(
            {"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message}
        )


@dataclass
class Fault:
    """Something that goes wrong with requests whose "METHOD /path" holds a pattern.

    Attributes:
        pattern: A regular expression, searched for.
        status: Answered in place of what is due.
        keep: So many bytes of the body are sent before the connection breaks.
        after: How many such requests pass first.
        times: How many are hit then.
    """

    pattern: str
    status: int | None = None
    keep: int | None = None
    after: int = 0
    times: int = 1_000

    def hits(self, request: str) -> bool:
        """Count a request, and return whether it is hit."""
        if not re.search(self.pattern, request):
            return False
        self.after -= 1
        if self.after >= 0:
            return False
        self.times -= 1
        return self.times >= 0


class Blob:
    """The content of a file and the ids that git and LFS know it by."""

    def __init__(self, content: bytes, *, lfs: bool = False) -> None:
        self.content = content
        self.git_id = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        self.sha256 = hashlib.sha256(content).hexdigest() if lfs else None

    @property
    def etag(self) -> str:
        """What a client caches it under."""
        return self.sha256 or self.git_id

    def described(self) -> dict[str, Any]:
        """Return size and ids as listings give them."""
        size = len(self.content)
        described: dict[str, Any] = {"size": size, "oid": self.git_id}
        if self.sha256:
            described["lfs"] = {"oid": self.sha256, "size": size, "pointerSize": 134}
        return described


@dataclass
class Repository:
    """A repository: the files of each commit, and what branches and tags point to.

    Attributes:
        kind: "models", "datasets" or "spaces".
        name: "owner/name".
        private: Whether others see it.
        gated: Whether others may list it, but not read its files.
        sdk: Of a space.
        commits: Commit id -> path -> file.
        branches: Name -> commit id.
        tags: Name -> commit id.
        log: The commits as the Hub lists them, oldest first.
    """

    kind: str
    name: str
    private: bool = False
    gated: bool = False
    sdk: str | None = None
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.commit("main", {".gitattributes": Blob(b"* -text\n")}, "initial commit")

    @property
    def owner(self) -> str:
        """The part of the name before the slash."""
        return self.name.split("/")[0]

    def commit_id(self, revision: str) -> str:
        """Return the id that a branch, a tag or an id means."""
        branch = revision.removeprefix("refs/heads/")
        found = self.branches.get(branch) or self.tags.get(revision) or revision
        if found not in self.commits:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def files(self, revision: str = "main") -> dict[str, Blob]:
        """Return the files of a revision."""
        return self.commits[self.commit_id(revision)]

    def commit(self, branch: str, files: dict[str, Blob], title: str) -> str:
        """Add a commit to a branch and return its id."""
        content = [(path, blob.git_id) for path, blob in sorted(files.items())]
        told = repr((self.kind, self.name, branch, title, len(self.log), content))
        commit = hashlib.sha1(told.encode()).hexdigest()
        self.commits[commit] = files
        self.branches[branch] = commit
        self.log.append(
            {
                "id": commit,
                "title": title,
                "message": "",
                "authors": [{"user": self.owner}],
                "date": moment(),
            }
        )
        return commit


@dataclass
class Request:
    """What a client asks.

    Attributes:
        query: Of the address.
        headers: As they came.
        body: Bytes of it.
        user: Whose token came with it; None for no token.
    """

    query: dict[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    user: str | None

    def json(self) -> Any:
        """Return the body's JSON."""
        return json.loads(self.body or b"{}")


class LoopbackHub:
    """The Hub; a context manager that serves while it is open.

    Attributes:
        users: Token -> user.
        repositories: (kind, "owner/name") -> repository.
        uploads: sha256 -> content of what came by LFS.
        requests: "METHOD /path" of everything asked.
        unknown: Of what was asked and is not served.
        faults: What goes wrong.
    """

    def __init__(self) -> None:
        self.users = {TOKEN: USER}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.unknown: list[str] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Connection", (_Connection,), {"hub": self})
        )
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path, *, token: str | None = TOKEN) -> dict[str, str]:
        """Return the variables of a client process whose caches lie in `home`."""
        variables = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        return variables if token is None else variables | {"HF_TOKEN": token}

    @contextmanager
    def clients_here(
        self, monkeypatch: "pytest.MonkeyPatch", home: Path, *, token: str | None = TOKEN
    ) -> Iterator[Self]:
        """Let the clients of this process, which conftest.py keeps offline, ask this Hub."""
        from huggingface_hub import constants, hf_api

        with monkeypatch.context() as patched:
            # Three places where an address is remembered from before.
            patched.setattr(hf_api.api, "endpoint", self.url)
            if "transformers.utils.hub" in sys.modules:
                patched.setattr("transformers.utils.hub._hf_api", None, raising=False)
            if "datasets" in sys.modules:
                patched.setattr("datasets.config.HF_ENDPOINT", self.url)
            patched.setattr(constants, "HF_HUB_OFFLINE", False)
            patched.setattr(constants, "HF_HUB_DISABLE_XET", True)
            patched.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
            patched.setattr(constants, "ENDPOINT", self.url)
            address = self.url + "/{repo_id}/resolve/{revision}/{filename}"
            patched.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
            patched.setattr(constants, "HF_HOME", str(home))
            patched.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
            patched.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
            patched.setenv("HF_HUB_DISABLE_XET", "1")
            patched.delenv("HF_TOKEN", raising=False)
            if token is not None:
                patched.setenv("HF_TOKEN", token)
            yield self

    def clear(self) -> None:
        """Forget repositories, uploads, requests and faults."""
        kept: tuple[Any, ...] = (self.repositories, self.uploads, self.requests)
        for memory in (*kept, self.unknown, self.faults):
            memory.clear()

    def check(self) -> None:
        """Fail if a client asked for what a real Hub may have and this one has not."""
        assert not self.unknown, f"the loopback Hub does not know {sorted(set(self.unknown))}"

    def repository(self, kind: str, name: str, user: str | None = USER) -> Repository:
        """Return a repository that a user may see."""
        found = self.repositories.get((kind, name))
        if found is None or (found.private and user != found.owner):
            raise RefusedError(404 if user else 401, "RepoNotFound", "Repository not found")
        return found

    def reply(self, method: str, path: str, request: Request) -> Reply:
        """Answer one request."""
        sent = request.headers.get("Authorization", "").removeprefix("Bearer ")
        for methods, pattern, needs_token, answer in ROUTES:
            match = pattern.fullmatch(path)
            if method not in methods or match is None:
                continue
            request.user = self.users.get(sent)
            if (sent or needs_token) and request.user is None:
                message = "Invalid credentials in Authorization header"
                return Reply({"error": message}, 401, {"X-Error-Message": message})
            groups = {k: v if v is None else unquote(v) for k, v in match.groupdict().items()}
            try:
                with self.lock:
                    return answer(self, request, **groups)
            except RefusedError as refused:
                return refused.reply
        self.unknown.append(f"{method} {path}")
        return Reply({"error": "not served"}, 404)


class _Connection(BaseHTTPRequestHandler):
    """One client's connection."""

    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def serve(self) -> None:
        address = urlsplit(self.path)
        asked = f"{self.command} {address.path}"
        request = Request(parse_qs(address.query), self.headers, self.whole_body(), None)
        with self.hub.lock:
            self.hub.requests.append(asked)
            fault = next((fault for fault in self.hub.faults if fault.hits(asked)), None)
        if fault is not None and fault.status is not None:
            self.send(Reply({"error": "a fault"}, fault.status))
            return
        reply = self.hub.reply(self.command, address.path, request)
        self.send(reply, keep=None if fault is None else fault.keep)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve  # noqa: N815 - names of the base class

    def whole_body(self) -> bytes:
        """Return the body; it must be read, or the next request would begin inside it."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send(self, reply: Reply, *, keep: int | None = None) -> None:
        body, headers = reply.body, dict(reply.headers)
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        self.send_response(reply.status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body if keep is None else body[:keep])
        self.close_connection = self.close_connection or keep is not None


def moment() -> str:
    """Return the time as the Hub writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


# Accounts and cards.


def harnesses(hub: LoopbackHub, request: Request) -> Reply:
    """Name no environment that runs clients; they ask once a day."""
    return Reply({"standardEnvVars": [], "harnesses": {}})


def who(hub: LoopbackHub, request: Request) -> Reply:
    access = {"accessToken": {"displayName": "test", "role": "write"}}
    auth = {"type": "access_token", **access}
    return Reply(
        {"type": "user", "name": request.user, "fullname": request.user, "orgs": [], "auth": auth}
    )


def check_card(hub: LoopbackHub, request: Request) -> Reply:
    """Check a card's metadata by the main rules of the Hub's own check."""
    told = request.json()
    metadata, errors = card_metadata(told["content"].encode()), []
    if not isinstance(metadata, dict):
        errors.append("the metadata must be a mapping")
    elif told.get("repoType", "model") == "model":
        errors += model_card_errors(metadata)
    license_name = metadata.get("license") if isinstance(metadata, dict) else None
    if license_name is not None and license_name not in LICENSES:
        errors.append(f'"license" {license_name!r} is not one of the known ones')
    found = [{"message": message} for message in errors]
    return Reply({"errors": found, "warnings": []}, 400 if errors else 200)


def model_card_errors(metadata: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a model card's metadata."""
    errors = [
        f'"{key}" must be a list of strings'
        for key in ("tags", "datasets")
        if not all(isinstance(item, str) for item in metadata.get(key, []))
    ]
    for model in metadata.get("model-index", []):
        if not isinstance(model, dict) or not model.get("name"):
            errors.append('"model-index[0].name" is required')
            continue
        for result in model.get("results", []):
            needed = {"task": ("type",), "dataset": ("type", "name")}
            errors += [
                f'"model-index[0].results[0].{part}.{key}" is required'
                for part, keys in needed.items()
                for key in keys
                if not isinstance(result.get(part, {}).get(key), str)
            ]
            for metric in result.get("metrics", [{}]):
                if not metric.get("type") or metric.get("value") is None:
                    errors.append('"metrics" need a type and a value')
    return errors


def card_metadata(card: bytes) -> Any:
    """Return the YAML at the head of a card; an empty mapping without one, None if it is broken."""
    match = re.match(rb"\s*---\r?\n(.*?)\r?\n---", card, re.DOTALL)
    try:
        return yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError:
        return None


# Repositories.


def create(hub: LoopbackHub, request: Request) -> Reply:
    told = request.json()
    owner, kind = told.get("organization") or request.user, (told.get("type") or "model") + "s"
    name = f"{owner}/{told['name']}"
    if owner != request.user:
        message = f"You don't have the rights to create a {kind[:-1]} under the namespace {owner!r}"
        raise RefusedError(403, "Forbidden", message)
    prefix = next(prefix for prefix, of in PREFIXES.items() if of == kind)
    answer = {"url": f"{hub.url}/{prefix}{name}", "name": name, "id": name}
    if (kind, name) in hub.repositories:
        return Reply({"error": "You already created this repo", **answer}, 409)
    private = told.get("visibility") == "private" or bool(told.get("private"))
    hub.repositories[kind, name] = Repository(kind, name, private=private, sdk=told.get("sdk"))
    return Reply(answer)


def delete(hub: LoopbackHub, request: Request) -> Reply:
    told = request.json()
    kind = (told.get("type") or "model") + "s"
    name = f"{told.get('organization') or request.user}/{told['name']}"
    hub.repository(kind, name, request.user)
    del hub.repositories[kind, name]
    return Reply({})


def settings(hub: LoopbackHub, request: Request, kind: str, name: str) -> Reply:
    repository, told = hub.repository(kind, name, request.user), request.json()
    if "visibility" in told or "private" in told:
        repository.private = told.get("visibility") == "private" or bool(told.get("private"))
    repository.gated = bool(told.get("gated", repository.gated))
    return Reply({"private": repository.private, "gated": repository.gated})


def info(
    hub: LoopbackHub, request: Request, kind: str, name: str, revision: str | None = None
) -> Reply:
    repository = hub.repository(kind, name, request.user)
    commit = repository.commit_id(revision or "main")
    files = repository.commits[commit]
    siblings = []
    for path, blob in sorted(files.items()):
        sibling = {"rfilename": path, "size": len(blob.content), "blobId": blob.git_id}
        large = {"lfs": blob.described()["lfs"] | {"sha256": blob.sha256}} if blob.sha256 else {}
        siblings.append(sibling | large)
    told: dict[str, Any] = {
        "_id": "0" * 24,
        "id": name,
        "author": repository.owner,
        "sha": commit,
        "private": repository.private,
        "gated": "auto" if repository.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "createdAt": repository.log[0]["date"],
        "lastModified": repository.log[-1]["date"],
        "siblings": siblings,
        "usedStorage": sum(len(blob.content) for blob in files.values()),
    }
    if kind == "models":
        told["modelId"] = name
    if kind == "spaces":
        told["sdk"] = repository.sdk
    if "README.md" in files:
        told["cardData"] = card_metadata(files["README.md"].content)
    return Reply(told)


def refs(hub: LoopbackHub, request: Request, kind: str, name: str) -> Reply:
    repository = hub.repository(kind, name, request.user)
    named = {"branches": ("heads", repository.branches), "tags": ("tags", repository.tags)}
    listed = {
        key: [
            {"name": ref, "ref": f"refs/{folder}/{ref}", "targetCommit": commit}
            for ref, commit in refs.items()
        ]
        for key, (folder, refs) in named.items()
    }
    return Reply({**listed, "converts": []})


def log(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Reply:
    repository = hub.repository(kind, name, request.user)
    repository.commit_id(revision)
    return Reply(repository.log[::-1])


def branch(hub: LoopbackHub, request: Request, kind: str, name: str, ref: str) -> Reply:
    repository = own(hub, request, kind, name)
    if ref in repository.branches:
        return Reply({"error": "Reference already exists"}, 409)
    start = request.json().get("startingPoint") or "main"
    repository.branches[ref] = repository.commit_id(start)
    return Reply({})


def tag(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Reply:
    repository, ref = own(hub, request, kind, name), request.json()["tag"]
    if ref in repository.tags:
        return Reply({"error": "Tag reference exists already."}, 409)
    repository.tags[ref] = repository.commit_id(revision)
    return Reply({})


def delete_tag(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Reply:
    repository = own(hub, request, kind, name)
    if repository.tags.pop(revision, None) is None:
        raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return Reply({})


def own(hub: LoopbackHub, request: Request, kind: str, name: str) -> Repository:
    """Return a repository that the client may write to."""
    repository = hub.repository(kind, name, request.user)
    if request.user != repository.owner:
        raise RefusedError(
            403, "Forbidden", "You have read access but not the required permissions"
        )
    return repository


# Files in.


def preupload(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Reply:
    """Say of each file whether it goes by LFS, and what is there under its name."""
    files = own(hub, request, kind, name).files(revision)
    told = []
    for file in request.json()["files"]:
        path = file["path"]
        large = file["size"] >= LARGE_FILE or path.endswith(LFS_SUFFIXES)
        mode = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        told.append(mode | ({"oid": files[path].etag} if path in files else {}))
    return Reply({"files": told})


def lfs_addresses(hub: LoopbackHub, request: Request, prefix: str | None, name: str) -> Reply:
    """Give an address for each LFS object that is not here yet."""
    own(hub, request, PREFIXES[prefix or ""], name)
    told = []
    for wanted in request.json()["objects"]:
        answer = {"oid": wanted["oid"], "size": wanted["size"], "authenticated": True}
        if wanted["oid"] not in hub.uploads:
            answer["actions"] = {
                "upload": {"href": f"{hub.url}/_lfs/{wanted['oid']}", "header": {}}
            }
        told.append(answer)
    return Reply({"transfer": "basic", "objects": told})


def lfs_upload(hub: LoopbackHub, request: Request, oid: str) -> Reply:
    if hashlib.sha256(request.body).hexdigest() != oid:
        return Reply({"error": "the content is not what its sha256 says"}, 400)
    hub.uploads[oid] = request.body
    return Reply()


def commit(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Reply:
    """Apply a commit, one JSON a line, all of it or nothing."""
    repository = own(hub, request, kind, name)
    branch_name = revision.removeprefix("refs/heads/")
    parent = repository.commit_id(branch_name)
    if branch_name not in repository.branches:
        raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    files, title = dict(repository.commits[parent]), "commit"
    for line in request.body.splitlines():
        operation = json.loads(line)
        key, value = operation["key"], operation["value"]
        if key == "header":
            title = value.get("summary") or title
            if not parent.startswith(value.get("parentCommit") or ""):
                return Reply({"error": "A commit has happened since."}, 412)
        elif key == "file":
            files[value["path"]] = Blob(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            if value["oid"] not in hub.uploads:
                return Reply({"error": f"{value['path']} was never uploaded"}, 400)
            files[value["path"]] = Blob(hub.uploads[value["oid"]], lfs=True)
        elif key == "deletedFile":
            del files[value["path"]]
        elif key == "deletedFolder":
            start = value["path"].rstrip("/") + "/"
            files = {path: blob for path, blob in files.items() if not path.startswith(start)}
        else:
            return Reply({"error": f"{key} is no operation of a commit here"}, 400)
    made = repository.commit(branch_name, files, title)
    address = f"{hub.url}/{name}/commit/{made}"
    return Reply({"success": True, "commitOid": made, "commitUrl": address, "hookOutput": ""})


# Files out.


def listing(
    hub: LoopbackHub,
    request: Request,
    kind: str,
    name: str,
    revision: str,
    path: str | None = None,
) -> Reply:
    """List a folder, or all that is below it."""
    files = hub.repository(kind, name, request.user).files(revision)
    folder = (path or "").strip("/")
    start = f"{folder}/" if folder else ""
    deep = request.query.get("recursive", [""])[0].lower() in ("true", "1")
    told, folders = [], set()
    for file, blob in sorted(files.items()):
        if not file.startswith(start):
            continue
        parts = file.removeprefix(start).split("/")
        between = range(1, len(parts) if deep else min(2, len(parts)))
        folders |= {start + "/".join(parts[:count]) for count in between}
        if deep or len(parts) == 1:
            told.append(file_entry(file, blob))
    if folder and not told and not folders:
        raise RefusedError(404, "EntryNotFound", f"{folder} is not in {revision}")
    return Reply([folder_entry(name) for name in sorted(folders)] + told)


def paths_info(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Reply:
    files = hub.repository(kind, name, request.user).files(revision)
    as_json = request.body.startswith(b"{")
    wanted = request.json()["paths"] if as_json else parse_qs(request.body.decode())["paths"]
    told = []
    for path in [wanted] if isinstance(wanted, str) else wanted:
        if path in files:
            told.append(file_entry(path, files[path]))
        elif any(file.startswith(path.rstrip("/") + "/") for file in files):
            told.append(folder_entry(path))
    return Reply(told)


def file_entry(path: str, blob: Blob) -> dict[str, Any]:
    return {"type": "file", "path": path, **blob.described()}


def folder_entry(path: str) -> dict[str, Any]:
    folder_id = hashlib.sha1(path.encode()).hexdigest()
    return {"type": "directory", "path": path, "size": 0, "oid": folder_id}


def download(
    hub: LoopbackHub,
    request: Request,
    prefix: str | None,
    name: str,
    revision: str,
    path: str,
) -> Reply:
    """Give a file, or the bytes of it that a Range asks for."""
    repository = hub.repository(PREFIXES[prefix or ""], name, request.user)
    if repository.gated and request.user != repository.owner:
        status = 403 if request.user else 401
        raise RefusedError(status, "GatedRepo", f"Access to model {name} is restricted.")
    made = repository.commit_id(revision)
    blob = repository.commits[made].get(path)
    if blob is None:
        missing = RefusedError(404, "EntryNotFound", "Entry not found").reply
        return missing._replace(headers={**missing.headers, "X-Repo-Commit": made})
    headers = {
        "X-Repo-Commit": made,
        "ETag": f'"{blob.etag}"',
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
    }
    size = len(blob.content)
    if blob.sha256:
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(size)}
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
    if wanted is None:
        return Reply(blob.content, 200, headers)
    first, last = wanted.groups()
    start = int(first) if first else max(size - int(last), 0)
    end = min(int(last), size - 1) if first and last else size - 1
    if start >= size:
        return Reply(b"", 416, {"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {start}-{end}/{size}"
    return Reply(blob.content[start : end + 1], 206, headers)


Route = tuple[tuple[str, ...], re.Pattern[str], bool, Callable[..., Reply]]


def route(methods: str, path: str, answer: Callable[..., Reply], *, token: bool = False) -> Route:
    """Return which requests an answer is for; {repo} stands for kind and name, {rev} a revision."""
    path = path.replace("{repo}", "/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)")
    path = path.replace("{git}", "/(?P<prefix>datasets/|spaces/)?(?P<name>[^/]+/[^/]+?)")
    pattern = re.compile(path.replace("{rev}", "(?P<revision>[^/]+)"))
    return tuple(methods.split()), pattern, token, answer


ROUTES = [
    route("GET", "/api/whoami-v2", who, token=True),
    route("GET", "/api/agent-harnesses", harnesses),
    route("POST", "/api/validate-yaml", check_card),
    route("POST", "/api/repos/create", create, token=True),
    route("DELETE", "/api/repos/delete", delete, token=True),
    route("PUT", "{repo}/settings", settings, token=True),
    route("POST", "{repo}/preupload/{rev}", preupload, token=True),
    route("POST", "{repo}/commit/{rev}", commit, token=True),
    route("POST", "{repo}/branch/(?P<ref>[^/]+)", branch, token=True),
    route("POST", "{repo}/tag/{rev}", tag, token=True),
    route("DELETE", "{repo}/tag/{rev}", delete_tag, token=True),
    route("GET", "{repo}/refs", refs),
    route("GET", "{repo}/commits/{rev}", log),
    route("GET", "{repo}/tree/{rev}(?P<path>/.*)?", listing),
    route("POST", "{repo}/paths-info/{rev}", paths_info),
    route("GET", "{repo}(?:/revision/{rev})?", info),
    route("POST", r"{git}\.git/info/lfs/objects/batch", lfs_addresses, token=True),
    route("PUT", "/_lfs/(?P<oid>[0-9a-f]{64})", lfs_upload),
    route("GET HEAD", "{git}/(?:resolve|raw)/{rev}/(?P<path>.+)", download),
]
