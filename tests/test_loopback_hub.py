"""The loopback Hub behaves as a Hub towards huggingface_hub's own client."""

import urllib.error
import urllib.request
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.loopback_hub import USER, Fault, LoopbackHub

REPO = f"{USER}/thing"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\nA thing.\n")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "inner" / "code.py").write_text("x = 1\n")
    return folder


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_what_goes_in_comes_out_at_every_revision(
    kind: str, hub: LoopbackHub, folder: Path
) -> None:
    api = HfApi()
    for _ in range(2):  # the second is no error
        sdk = "gradio" if kind == "space" else None
        api.create_repo(REPO, repo_type=kind, space_sdk=sdk, exist_ok=True)
    first = api.upload_folder(repo_id=REPO, folder_path=folder, repo_type=kind).oid
    api.create_tag(REPO, tag="v1", repo_type=kind)
    api.create_branch(REPO, branch="next", repo_type=kind)
    (folder / "inner" / "code.py").write_text("x = 2\n")
    api.upload_folder(repo_id=REPO, folder_path=folder, repo_type=kind, revision="next")
    api.delete_file("README.md", REPO, repo_type=kind, revision="next")
    assert api.list_repo_files(REPO, repo_type=kind, revision="next") == [
        ".gitattributes",
        "inner/code.py",
        "model.safetensors",
    ]
    for revision, expected in {"main": 1, "v1": 1, first: 1, "next": 2}.items():
        place = Path(snapshot_download(REPO, revision=revision, repo_type=kind))
        assert (place / "inner" / "code.py").read_text() == f"x = {expected}\n"
        assert (place / "model.safetensors").read_bytes() == bytes(range(256)) * 40
    # By LFS, once; the second upload found it there.
    assert len([asked for asked in hub.requests if asked.startswith("PUT /_lfs")]) == 1
    assert api.repo_info(REPO, repo_type=kind).sha == first


def test_what_is_not_there_is_told_apart(hub: LoopbackHub, folder: Path) -> None:
    HfApi().create_repo(REPO)
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download(f"{USER}/other", "config.json")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(REPO, "config.json", revision="never")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(REPO, "config.json")


def test_private_and_gated_repositories_are_their_owners(hub: LoopbackHub, folder: Path) -> None:
    hub.users["hf_other"] = "other"
    api = HfApi()
    api.create_repo(REPO, private=True)
    api.upload_folder(repo_id=REPO, folder_path=folder)
    assert hf_hub_download(REPO, "README.md")
    for token in ("hf_other", False):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info(REPO, token=token)
    api.update_repo_settings(REPO, private=False, gated="auto")
    with pytest.raises(GatedRepoError):
        hf_hub_download(REPO, "inner/code.py", token="hf_other")
    with pytest.raises(HfHubHTTPError, match="rights"):
        HfApi(token="hf_other").create_repo(f"{USER}/theirs")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(token="hf_wrong").whoami()


def test_a_card_is_checked(hub: LoopbackHub) -> None:
    ModelCard("---\nlicense: mit\ntags: [a]\n---\n").validate()
    with pytest.raises(ValueError, match="license"):
        ModelCard("---\nlicense: nobody knows\n---\n").validate()
    HfApi().create_repo(REPO)
    no_value = (
        b"---\nmodel-index:\n- name: a\n  results:\n  - task: {type: t}\n"
        b"    dataset: {type: d, name: d}\n    metrics: [{type: auc}]\n---\n"
    )
    with pytest.raises(ValueError, match="metrics"):
        HfApi().upload_file(path_or_fileobj=no_value, path_in_repo="README.md", repo_id=REPO)


def test_faults_hit_what_they_name_and_a_broken_download_goes_on(
    hub: LoopbackHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # of the client's patience
    api = HfApi()
    api.create_repo(REPO)
    (folder / "more.safetensors").write_bytes(b"more")
    hub.faults.append(Fault("PUT /_lfs", status=403, after=1, times=1))
    with pytest.raises(RuntimeError, match="Error while uploading"):
        api.upload_folder(repo_id=REPO, folder_path=folder)
    assert list(hub.repository("models", REPO).files()) == [".gitattributes"]
    assert len(hub.uploads) == 1
    api.upload_folder(repo_id=REPO, folder_path=folder)
    hub.faults.append(Fault("GET .*model.safetensors", keep=1_000, times=1))
    path = Path(hf_hub_download(REPO, "model.safetensors"))
    assert path.read_bytes() == (folder / "model.safetensors").read_bytes()
    assert len([asked for asked in hub.requests if "GET" in asked and "model.safe" in asked]) == 2


def test_an_endpoint_that_is_not_served_fails_the_test() -> None:
    with LoopbackHub() as hub:
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{hub.url}/api/jobs/tester")
        with pytest.raises(AssertionError, match="GET /api/jobs/tester"):
            hub.check()
