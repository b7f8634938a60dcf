"""train.py --push_to_hub: a run goes up when it is written, and nothing of this machine with it."""

from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub.repocard import ModelCard
from peft import PeftModel

import train
from modeling import ENCODERS, AsdConfig, AsdForProxyClassification
from tests.loopback_hub import TOKEN, USER, LoopbackHub
from tests.person import Person
from tests.scripts import TINY_RECIPE, run_script
from tests.tiny import TINY_ENCODER

REPO = f"{USER}/mine"


@pytest.fixture
def hub_token() -> None:
    """Nobody is logged in."""


@pytest.fixture
def encoder_dir(person: Person) -> Path:
    """A pre-trained encoder whose weights may not be sold."""
    folder = person.home / "encoder"
    config = AsdConfig(encoder_config=TINY_ENCODER).encoder_config
    with torch.random.fork_rng():
        torch.manual_seed(1)
        ENCODERS[config.model_type](config).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\nAn encoder.\n")
    return folder


def test_a_run_with_lora_is_published_with_its_licence_and_adapter_and_without_its_user(
    hub: LoopbackHub,
    encoder_dir: Path,
    person: Person,
    factory_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (person.home / "data").symlink_to(factory_dir)
    arguments = ["--data_dir", person.home / "data", "--output_dir", person.home / "mine"]
    arguments += TINY_RECIPE[2:]
    arguments += ["--encoder_checkpoint", encoder_dir, "--lora_rank", 2, "--max_steps", 2]
    arguments += ["--push_to_hub", "--hub_private_repo", "--hub_token", TOKEN]
    run_script(train, arguments, monkeypatch)
    repository = hub.repository("models", REPO)  # the name of the output folder, of the token's own
    assert repository.private
    files = repository.files()
    for name, blob in files.items():
        assert TOKEN.encode() not in blob.content, name
        assert not person.is_told_by(blob.content), name
        assert str(tmp_path).encode() not in blob.content, name
        assert "trainer_state" not in name
    assert not person.is_told_by(repr(repository.log).encode())
    recipe = yaml.safe_load(files["recipe.yaml"].content)
    assert not [key for key in recipe if key.startswith(("hub_", "push_"))]
    card = ModelCard(files["README.md"].content.decode())
    assert card.data.license == "cc-by-nc-4.0"
    assert "**Commercial use is not allowed.**" in card.text

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    merged = AsdForProxyClassification.from_pretrained(REPO)
    base = AsdForProxyClassification(AsdConfig.from_pretrained(REPO))
    base.asd.load_encoder(ENCODERS["nearfar_beats"].from_pretrained(encoder_dir))
    adapted = PeftModel.from_pretrained(base, REPO, subfolder="adapter")
    near = 0.1 * torch.randn(2, 16_000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        due, found = (model.eval()(near_values=near) for model in (merged, adapted))
    torch.testing.assert_close(found.embedding, due.embedding, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.logits, due.logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("token", "message"),
    [(None, "There is no access token"), ("hf_wrong", "refuses this token")],
)
def test_who_may_not_push_learns_it_before_training(
    token: str | None,
    message: str,
    hub: LoopbackHub,
    factory_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train, "training_clips", lambda *_: pytest.fail("it went on"))
    arguments = ["--data_dir", factory_dir, "--output_dir", tmp_path / "mine", *TINY_RECIPE]
    arguments += ["--push_to_hub", *(() if token is None else ("--hub_token", token))]
    with pytest.raises(PermissionError, match=message):
        run_script(train, arguments, monkeypatch)
    assert not hub.repositories
