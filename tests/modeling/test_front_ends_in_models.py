"""Every front end travels in a checkpoint: saved, loaded again, and loaded where nearfar is not."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from safetensors.torch import load_file, save_file

from modeling import FRONT_ENDS, AsdConfig, AsdModel
from tests.modeling.fresh_process import run_without_nearfar
from tests.tiny import TINY_ENCODER

OPTIONS = {
    "near": {},
    "complex_least_squares": {"n_fft": 512, "hop_length": 128, "num_taps": 2},
    "spectral_subtraction": {"oversubtraction": 0.5, "floor": 0.2},
    "wiener": {"smoothing": 0.5},
    "coherence": {"smoothing": 0.9},
    "lms": {"num_taps": 64, "step_size": 0.5},
    "nlms": {"num_taps": 64, "primary_delay": 8},
    "rls": {"n_fft": 512, "hop_length": 128, "forgetting": 0.99},
    "block_nlms": {"num_taps": 128, "primary_delay": 8},
}

LOADER = """
import json, sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

job = json.loads(sys.argv[1])
torch.set_num_threads(job["num_threads"])
found = {}
one = next(iter(job["folders"].values()))
remote = type(AutoModel.from_pretrained(one, trust_remote_code=True))  # all carry the same code
for name, folder in job["folders"].items():
    model = remote.from_pretrained(folder)
    assert type(model.front_end).__module__.startswith("transformers_modules."), name
    with torch.no_grad():
        found[name] = model(**load_file(job["inputs"])).embedding.clone()
save_file(found, job["found"])
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Save a small model with each front end, the clips, and the embeddings of the savers."""
    root = tmp_path_factory.mktemp("front_ends")
    generator = torch.Generator().manual_seed(0)
    machine, noise = 0.1 * torch.randn(2, 2, 8_000, generator=generator)
    inputs = {"near_values": machine + 0.5 * noise, "far_values": 0.3 * machine + noise}
    save_file(inputs, root / "inputs.safetensors")
    embeddings = {}
    for name in FRONT_ENDS:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = AsdConfig(
                encoder_config=TINY_ENCODER, front_end=name, front_end_options=OPTIONS[name]
            )
            model = AsdModel(config).eval()
        model.save_pretrained(root / name)
        with torch.no_grad():
            embeddings[name] = model(**inputs).embedding
    save_file(embeddings, root / "embeddings.safetensors")
    return root


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_a_front_end_is_loaded_with_its_options(name, saved) -> None:
    model = AsdModel.from_pretrained(saved / name)
    assert type(model.front_end) is FRONT_ENDS[name]
    assert model.config.front_end_options == OPTIONS[name]
    for option, value in OPTIONS[name].items():
        assert getattr(model.front_end, option) == value
    with torch.no_grad():
        embedding = model(**load_file(saved / "inputs.safetensors")).embedding
    embeddings = load_file(saved / "embeddings.safetensors")
    assert torch.equal(embedding, embeddings[name])
    others = [embeddings[other] for other in FRONT_ENDS if other != name]
    assert not any(torch.allclose(embedding, other, atol=1e-4) for other in others)


@pytest.mark.slow
def test_each_is_loaded_where_nearfar_is_not_installed(saved, tmp_path) -> None:
    code = {path.name: path.read_bytes() for path in (saved / "near").glob("*.py")}
    for name in FRONT_ENDS:
        assert {path.name: path.read_bytes() for path in (saved / name).glob("*.py")} == code
    job = {
        "folders": {name: str(saved / name) for name in FRONT_ENDS},
        "inputs": str(saved / "inputs.safetensors"),
        "found": str(tmp_path / "found.safetensors"),
        "num_threads": torch.get_num_threads(),
    }
    run_without_nearfar(LOADER, json.dumps(job), folder=tmp_path)
    found, embeddings = (
        load_file(path) for path in (job["found"], saved / "embeddings.safetensors")
    )
    assert found.keys() == FRONT_ENDS.keys()
    for name, embedding in embeddings.items():
        assert torch.equal(found[name], embedding), name


def test_a_configuration_refuses_a_value_without_meaning() -> None:
    with pytest.raises(StrictDataclassClassValidationError, match="between 0 and 2"):
        AsdConfig(front_end="nlms", front_end_options={"step_size": 3.0})
