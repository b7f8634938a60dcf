"""A run folder goes to the Hub whole, without what is local or secret, or not at all."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.repocard import ModelCard
from safetensors.numpy import load_file, save_file

from assembly.scorers import load_scorer
from modeling import AsdForProxyClassification, AsdModel, ReferenceBank
from nearfar import hub as nearfar_hub
from nearfar.files import write_json
from nearfar.hub import push_run
from nearfar.publishing import LOCAL_PATH, published_files
from tests.loopback_hub import TOKEN, USER, Fault, LoopbackHub

OLD_RUN = Path(__file__).parents[1] / "fixtures" / "run_format_1"
REPO = f"{USER}/detector"
MACHINE = "2026/fanSim/00"


@pytest.fixture
def hub(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """The Hub of all tests, for clients that try again at once."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return hub


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run folder of one's own, with training states and a module beside."""
    folder = tmp_path / "run"
    shutil.copytree(OLD_RUN, folder)
    (folder / "modeling_asd.py").write_text("CODE = 1\n")
    state = folder / "trainer_state" / "step_000001" / "model.safetensors"
    state.parent.mkdir(parents=True)
    state.write_bytes(b"secret")
    return folder


def served(hub: LoopbackHub, revision: str = "main") -> dict[str, bytes]:
    """Return the content of every file of the repository but git's own."""
    files = hub.repository("models", REPO).files(revision)
    return {path: blob.content for path, blob in files.items() if path != ".gitattributes"}


def add_to(path: Path, key: str, value: Any) -> None:
    """Set a key of a JSON file."""
    write_json(path, json.loads(path.read_text()) | {key: value})


def test_what_is_pushed_is_the_run_without_the_states_of_its_training(
    hub: LoopbackHub, run: Path
) -> None:
    address = push_run(run, REPO, private=True, tag="v1")
    assert address == f"{hub.url}/{REPO}/tree/v1"
    here = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    there = served(hub, "v1")
    assert set(there) == set(here)
    changed = {name for name in here if here[name] != there[name]}
    assert changed == {"README.md"}  # its example names the repository
    assert f'model="{REPO}"' in there["README.md"].decode()
    assert hub.repository("models", REPO).private
    assert len(hub.repository("models", REPO).log) == 2  # the first, empty one and this


def test_a_second_push_takes_the_place_of_the_first_and_leaves_what_is_the_users(
    hub: LoopbackHub, run: Path
) -> None:
    (run / "adapter").mkdir()
    (run / "adapter" / "adapter_config.json").write_text("{}")
    push_run(run, REPO)
    HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo="NOTES.txt", repo_id=REPO)
    shutil.rmtree(run / "adapter")
    (run / "modeling_asd.py").rename(run / "modeling_new.py")
    push_run(run, "detector", revision="next")  # a bare name is one's own
    there = served(hub, "next")
    assert there["NOTES.txt"] == b"mine"
    assert "modeling_new.py" in there
    assert not {"modeling_asd.py", "adapter/adapter_config.json"} & set(there)
    assert "modeling_asd.py" in served(hub)  # main stayed


def test_no_path_of_this_machine_is_uploaded(hub: LoopbackHub, run: Path, tmp_path: Path) -> None:
    local = {
        "data_dir": str(tmp_path / "data"),
        "nested": [{"checkpoint": "/home/anna/models/BEATs_iter3.pt"}],
        "windows": "C:\\Users\\Anna Doe\\runs\\mine",
        "homes": ["/home/anna", "/Users/anna/", "C:\\Users\\anna"],
        "text": "read from file:///home/anna/data/x.wav today",
        "kept": ["2026/fan/00", "https://example.org/a/b", "near/far", "1/2"],
    }
    add_to(run / "metrics.json", "local", local)
    with (run / "recipe.yaml").open("a") as file:
        file.write(f"output_dir: {tmp_path}/runs/mine\nencoder: ~/anna/x.pt\n")
    with (run / "README.md").open("a") as file:
        file.write(f"\nTrained on `{tmp_path}/data`.\n")
    push_run(run, REPO)
    told = json.loads(served(hub)["metrics.json"])["local"]
    assert told == {
        "data_dir": "data",
        "nested": [{"checkpoint": "BEATs_iter3.pt"}],
        "windows": "mine",
        "homes": ["~"] * 3,
        "text": "read from x.wav today",
        "kept": local["kept"],
    }
    for name, content in served(hub).items():
        for secret in (
            str(tmp_path).encode(),
            b"/home/",
            b"Users",
            str(Path.home()).encode() + b"/",
        ):
            assert secret not in content, name


def test_the_projects_own_code_names_no_path() -> None:
    for path in (Path(nearfar_hub.__file__).parents[1] / "modeling").glob("*.py"):
        assert not LOCAL_PATH.search(path.read_text()), path.name


@pytest.mark.parametrize("name", ["recipe.yaml", "metrics.json", "README.md", "modeling_asd.py"])
@pytest.mark.parametrize("secret", ["hf_" + "aB3" * 12, "the token itself"])
def test_a_token_stops_the_push_before_anything_is_sent(
    hub: LoopbackHub, run: Path, name: str, secret: str
) -> None:
    token = TOKEN if secret.startswith("the") else None
    with (run / name).open("a") as file:
        file.write(f"\n# {token or secret}\n")
    with pytest.raises(ValueError, match=f"{name} holds what looks like an access token") as told:
        push_run(run, REPO, token=token)
    assert secret not in str(told.value)
    assert served(hub) == {}
    assert not hub.uploads


def test_other_files_and_hidden_ones_stay_here(run: Path) -> None:
    for name in (".env", "notes.txt", "clip.wav", "weights.pt", "log.jsonl"):
        (run / name).write_text("x")
    (run / "__pycache__").mkdir()
    (run / "__pycache__" / "a.py").write_text("x")
    due = {path.name for path in OLD_RUN.iterdir()} | {"modeling_asd.py"}
    assert set(published_files(run, REPO)) == due


def test_an_upload_cut_off_half_way_commits_nothing_and_goes_on(
    hub: LoopbackHub, run: Path
) -> None:
    hub.faults.append(Fault("PUT /_lfs", status=403, after=1, times=1))
    with pytest.raises(ConnectionError, match=r"nothing was committed.*nearfar\.hub push"):
        push_run(run, REPO)
    assert served(hub) == {}
    assert len(hub.uploads) == 1
    push_run(run, REPO)
    sent = [asked for asked in hub.requests if asked.startswith("PUT /_lfs")]
    assert len(sent) == 3  # two at first, one of them refused, which alone came again
    assert ReferenceBank.from_pretrained(REPO).machines == load_scorer(run).bank.machines


def test_who_may_not_push_is_told_so_in_one_line(
    hub: LoopbackHub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PermissionError, match=r"refuses this token.*Invalid user token") as told:
        push_run(run, REPO, token="hf_wrong")
    assert "\n" not in str(told.value)
    with pytest.raises(PermissionError, match="write access"):
        push_run(run, "someone_else/detector")
    with pytest.raises(ValueError, match="cannot name a repository"):
        push_run(run, "a/b/c")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PermissionError, match=r"no access token.*HF_TOKEN, or give --token"):
        push_run(run, REPO)
    assert not hub.repositories


def test_private_and_tags_are_kept_to(hub: LoopbackHub, run: Path) -> None:
    push_run(run, REPO, tag="v1")
    with pytest.raises(ValueError, match="is public, so --private cannot be kept"):
        push_run(run, REPO, private=True)
    with pytest.raises(ValueError, match="has a tag 'v1' already"):
        push_run(run, REPO, tag="v1")
    assert len(hub.repository("models", REPO).log) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("run.json", "not a complete run folder"),
        ("README.md", r"has no README\.md"),
        ("reference_bank.safetensors", "is not the file that reference_bank.json was written with"),
    ],
)
def test_a_run_that_lacks_something_is_not_pushed(
    name: str, message: str, hub: LoopbackHub, run: Path
) -> None:
    (run / name).unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        push_run(run, REPO)
    assert not hub.uploads


def test_damaged_tensors_are_not_pushed(hub: LoopbackHub, run: Path) -> None:
    whole = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        push_run(run, REPO)
    save_file(load_file(OLD_RUN / "model.safetensors"), run / "model.safetensors", {"from": "/a/b"})
    with pytest.raises(ValueError, match="names a path of this machine"):
        push_run(run, REPO)
    assert not hub.uploads


def test_an_adapter_beside_merged_weights_is_not_pushed(hub: LoopbackHub, run: Path) -> None:
    (run / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="add the adapter a second time"):
        push_run(run, REPO)


def test_a_card_that_does_not_validate_is_not_pushed(hub: LoopbackHub, run: Path) -> None:
    card = (run / "README.md").read_text()
    (run / "README.md").write_text(card.replace("tags:", "license: nobody knows\ntags:"))
    with pytest.raises(ValueError, match="license") as told:
        push_run(run, REPO)  # the Hub says so
    assert "\n" not in str(told.value)
    (run / "README.md").write_text(card.replace("tags:", "model-index: 3\ntags:"))
    with pytest.raises(ValueError, match=r"head of README\.md is not valid"):
        push_run(run, REPO)  # said here
    assert served(hub) == {}
    assert not hub.uploads


def test_scores_become_a_table_and_figures_that_the_hub_accepts(
    hub: LoopbackHub, run: Path, tmp_path: Path
) -> None:
    def score_folder(seed: int, value: float, **more: Any) -> Path:
        machine = {"auc_source": value, "auc_target": None, "pauc": 0.5} | more
        metrics = {"year": 2026, "seed": seed, "official_score": value}
        (tmp_path / f"scores_{seed}").mkdir()
        write_json(
            tmp_path / f"scores_{seed}" / "metrics.json", metrics | {"machines": {MACHINE: machine}}
        )
        return tmp_path / f"scores_{seed}"

    intervals = {"auc_source": [0.55, 0.65], "pauc": [0.4, None]}
    one, two = score_folder(0, 0.6, intervals=intervals), score_folder(1, 0.7)
    push_run(run, REPO, scores=[one])
    row = f"| {MACHINE} | 60.00 (55.00 to 65.00) | none | 50.00 |"
    assert row in served(hub)["README.md"].decode()
    push_run(run, REPO, scores=[one, two])
    card = served(hub)["README.md"].decode()
    assert row not in card
    assert f"| {MACHINE} | 65.00 (7.07) | none | 50.00 (0.00) |" in card
    assert "seeds 0, 1" in card
    assert card.count("## Results") == 1
    found = {
        (r.dataset_config, r.metric_type): r.metric_value for r in ModelCard(card).data.eval_results
    }
    assert found == {
        (MACHINE, "auc_source"): 0.65,
        (MACHINE, "pauc"): 0.5,
        (None, "official_score"): 0.65,
    }
    with pytest.raises(FileNotFoundError, match=r"has no metrics\.json"):
        push_run(run, REPO, scores=[tmp_path])


def test_a_run_of_the_first_format_loads_and_scores_from_the_hub_as_it_did(
    hub: LoopbackHub, run: Path
) -> None:
    """The fixture was written by the first version; its scores were recorded then."""
    push_run(run, REPO)
    due = json.loads(OLD_RUN.with_name("run_format_1_expected.json").read_text())
    n = np.arange(16_000)
    near = 0.2 * np.sin(0.05 * n) + 0.05 * np.sin(0.37 * n**2 % (2 * np.pi))
    far = 0.1 * np.sin(0.05 * n + 1) + 0.05 * np.cos(0.011 * n)
    clip = {"file_name": "a.wav", "domain": None, "condition": None, "attributes": ""}
    clip |= {"near": near.astype(np.float32), "far": far.astype(np.float32)}
    scorer = load_scorer(OLD_RUN)
    scorer.model = AsdModel.from_pretrained(REPO)
    scorer.bank = scorer.model.load_reference_bank()
    table = scorer.score([clip | {"machine": machine} for machine in due["anomaly_scores"]])
    assert table.anomaly_scores.tolist() == pytest.approx(
        list(due["anomaly_scores"].values()), rel=1e-4
    )
    assert {m: scorer.bank.threshold(m) for m in scorer.bank.machines} == due["thresholds"]


def test_model_and_bank_come_from_one_commit_with_one_token(
    hub: LoopbackHub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_run(run, REPO, private=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(OSError, match=r"not a valid model identifier|gated|private"):
        AsdModel.from_pretrained(REPO)
    model = AsdModel.from_pretrained(REPO, token=TOKEN)
    described = json.loads((run / "reference_bank.json").read_text())
    add_to(run / "reference_bank.json", "provenance", {"note": "later"})
    push_run(run, REPO, token=TOKEN)  # the branch moves before the bank is read
    bank = model.load_reference_bank()
    assert bank is not None
    assert bank.provenance == described["provenance"]
    later = ReferenceBank.from_pretrained(REPO, token=TOKEN)
    assert later.provenance == {"note": "later"}


def test_what_cannot_be_loaded_is_named(
    hub: LoopbackHub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_run(run, REPO)
    with pytest.raises(OSError, match="no revision 'never'"):
        ReferenceBank.from_pretrained(REPO, revision="never")
    with pytest.raises(OSError, match="no repository of the Hub that this token may see"):
        ReferenceBank.from_pretrained(f"{USER}/nothing")
    with pytest.raises(OSError, match="never"):
        AsdModel.from_pretrained(REPO, revision="never")
    hub.users["hf_other"] = "other"
    hub.repository("models", REPO).gated = True
    with pytest.raises(PermissionError, match="is gated"):
        ReferenceBank.from_pretrained(REPO, token="hf_other")
    with pytest.raises(OSError, match="gated"):
        AsdForProxyClassification.from_pretrained(REPO, token="hf_other")


def test_a_broken_download_goes_on_and_tampered_weights_are_found_out(
    hub: LoopbackHub, run: Path
) -> None:
    push_run(run, REPO)
    hub.faults.append(Fault("GET .*/model.safetensors", keep=5_000, times=1))
    model = AsdModel.from_pretrained(REPO)
    model.load_reference_bank().check_encoder(model)
    weights = load_file(run / "model.safetensors")
    noisy = {name: 1.1 * w if w.dtype.kind == "f" else w for name, w in weights.items()}
    save_file(noisy, run / "model.safetensors", {"format": "pt"})
    push_run(run, REPO)
    tampered = AsdModel.from_pretrained(REPO)
    with pytest.raises(ValueError, match="belongs to another encoder"):
        tampered.load_reference_bank().check_encoder(tampered)


def test_a_bank_is_pushed_only_beside_its_own_encoder(hub: LoopbackHub, run: Path) -> None:
    push_run(run, REPO)
    before = served(hub)
    bank = ReferenceBank.from_pretrained(run)
    bank.provenance = {"note": "mine"}
    assert hub.url in bank.push_to_hub(REPO, revision="mine")
    assert served(hub) == before
    assert ReferenceBank.from_pretrained(REPO, revision="mine").provenance == {"note": "mine"}
    assert {name for name in before if before[name] != served(hub, "mine")[name]} == {
        "reference_bank.json"
    }
    bank.fingerprint = bank.fingerprint + 1
    with pytest.raises(ValueError, match="belongs to another encoder"):
        bank.push_to_hub(REPO)


def test_loaded_once_everything_is_there_without_a_network(
    hub: LoopbackHub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_run(run, REPO)
    machines = AsdModel.from_pretrained(REPO).load_reference_bank().machines
    hub.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert AsdModel.from_pretrained(REPO).load_reference_bank().machines == machines
    assert hub.requests == []
    with pytest.raises(ConnectionError):
        push_run(run, REPO)


def test_the_command_line_pushes(
    hub: LoopbackHub, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["push", str(run), REPO, "--private", "--revision", "next", "--tag", "v2"]
    nearfar_hub.main([*words, "--token", TOKEN])
    assert capsys.readouterr().out == f"{hub.url}/{REPO}/tree/v2\n"
    assert "run.json" in served(hub, "v2")
    assert Path(hf_hub_download(REPO, "run.json", revision="next")).is_file()
