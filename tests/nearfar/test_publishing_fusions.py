"""A fusion goes to the Hub with its members whole, and scores from there as it did here."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.repocard import ModelCard
from safetensors.torch import load_file, save_file

from assembly.scorers import load_scorer
from modeling import ReferenceBank
from nearfar.feature_fusion import joined_fingerprint, joined_table
from nearfar.fusion import ScoreFusion
from nearfar.fusion_run import write_feature_fusion_run, write_fusion_run
from nearfar.hub import push_run
from tests.loopback_hub import USER, LoopbackHub

OLD_RUN = Path(__file__).parents[1] / "fixtures" / "run_format_1"
REPO = f"{USER}/fused"
MACHINE = "2026/fanSim/00"


@pytest.fixture
def members(tmp_path: Path) -> list[Path]:
    """Two run folders, one the other's copy; the second may not be sold."""
    folders = [tmp_path / "runs" / name for name in ("first", "second")]
    for folder, license_name in zip(folders, ("mit", "cc-by-nc-4.0"), strict=True):
        shutil.copytree(OLD_RUN, folder)
        card = (folder / "README.md").read_text()
        (folder / "README.md").write_text(card.replace("tags:", f"license: {license_name}\ntags:"))
        state = folder / "trainer_state" / "step_000001" / "model.safetensors"
        state.parent.mkdir(parents=True)
        state.write_bytes(b"secret")
        (folder / "modeling_asd.py").write_text("CODE = 1\n")
    return folders


@pytest.fixture(params=["fusion", "feature_fusion"])
def fused(request: pytest.FixtureRequest, members: list[Path], tmp_path: Path) -> Path:
    """Their fusion, of either kind."""
    folder = tmp_path / "runs" / "fused"
    if request.param == "fusion":
        write_fusion_run(folder, members, ScoreFusion((0.3, 0.7)))
        return folder
    scorers = [load_scorer(member) for member in members]
    clips = [clip(seed) for seed in range(6)]
    fingerprint = joined_fingerprint([scorer.bank.fingerprint for scorer in scorers])
    bank = ReferenceBank(scorers[0].model.config, fingerprint=fingerprint).fit(
        joined_table([scorer.embed(clips) for scorer in scorers])
    )
    write_feature_fusion_run(
        folder,
        members,
        bank,
        recipe={"kind": "feature_fusion", "members": [{"recipe": str(members[0])}]},
        metrics={"num_references": len(clips), "num_calibration": 0},
        thresholds={MACHINE: bank.threshold(MACHINE)},
    )
    return folder


def clip(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    near, far = (0.1 * rng.standard_normal((2, 16_000))).astype(np.float32)
    known = {"domain": "source", "condition": "normal", "attributes": ""}
    return known | {"near": near, "far": far, "file_name": f"{seed}.wav", "machine": MACHINE}


def test_a_fusion_scores_from_the_hub_as_it_did_here(
    hub: LoopbackHub, fused: Path, tmp_path: Path
) -> None:
    push_run(fused, REPO)
    there = Path(snapshot_download(REPO))
    here, again = (load_scorer(folder).score([clip(7)]) for folder in (fused, there))
    np.testing.assert_array_equal(here.anomaly_scores, again.anomaly_scores)
    files = {n: b.content for n, b in hub.repository("models", REPO).files().items()}
    due = {path.relative_to(fused).as_posix() for path in fused.rglob("*") if path.is_file()}
    assert set(files) - {".gitattributes"} == due
    for name, content in files.items():
        assert "trainer_state" not in name
        assert str(tmp_path).encode() not in content, name


def test_a_fusions_card_keeps_its_members_ban_on_commercial_use(
    hub: LoopbackHub, fused: Path
) -> None:
    push_run(fused, REPO)
    card = ModelCard(hub.repository("models", REPO).files()["README.md"].content.decode())
    assert card.data.license == "cc-by-nc-4.0"
    assert "**Commercial use is not allowed.**" in card.text
    assert "- `members/1_first`: mit" in card.text


def test_what_is_wrong_with_a_member_stops_the_push(hub: LoopbackHub, fused: Path) -> None:
    member = fused / "members" / "2_second"

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message) as told:
            push_run(fused, REPO)
        assert "\n" not in str(told.value)
        assert not hub.uploads

    (member / "adapter_config.json").write_text("{}")
    refused("2_second has adapter_config.json beside merged weights")
    (member / "adapter_config.json").unlink()
    recipe = yaml.safe_load((member / "recipe.yaml").read_text())
    (member / "recipe.yaml").unlink()  # a link to the member's own
    (member / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"note": "hf_" + "aB3" * 12}))
    refused(r"members/2_second/recipe\.yaml holds what looks like an access token")
    (member / "recipe.yaml").unlink()
    tensors = load_file(member / "reference_bank.safetensors")
    (member / "reference_bank.safetensors").unlink()
    save_file(
        {name: tensor + 1 for name, tensor in tensors.items()},
        member / "reference_bank.safetensors",
    )
    refused(r"is not the file that reference_bank\.json was written with")


def test_a_fusion_and_a_single_run_take_each_others_place_whole(
    hub: LoopbackHub, members: list[Path], tmp_path: Path
) -> None:
    write_fusion_run(tmp_path / "fused", members, ScoreFusion((0.5, 0.5)))
    due = []
    for folder in (members[0], tmp_path / "fused", members[0]):
        push_run(folder, REPO)
        due.append(set(hub.repository("models", REPO).files()))
    single, fusion, again = due
    assert again == single
    assert not fusion & {"model.safetensors", "reference_bank.json", "modeling_asd.py"}
    assert json.loads(hub.repository("models", REPO).files()["run.json"].content)["members"] == []
