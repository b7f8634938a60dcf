"""A checkpoint folder, loaded where nearfar does not exist, is the model that was saved.

Two fresh processes do all the work, because each costs some seconds: the first loads what this one
saved and saves it again in two ways, the second loads those.
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from modeling import (
    AsdConfig,
    AsdFeatureExtractor,
    AsdForProxyClassification,
    AsdModel,
    BeatsConfig,
    ReferenceBank,
    encoder_fingerprint,
)
from tests.modeling.fresh_process import run_without_nearfar
from tests.tiny import TINY_EAT, TINY_FISHER, TINY_NOISE_AWARE

RATE, FAN = 16_000, "2026/fan/00"
OTHER_ENCODERS = {"eat": TINY_EAT, "fisher": TINY_FISHER, "noise_aware": TINY_NOISE_AWARE}

LOADER = """
import json, sys

job = json.loads(sys.argv[1])

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, pipeline
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module

torch.set_num_threads(job["num_threads"])
inputs = load_file(job["inputs"])
remote = {"trust_remote_code": True}

def embed(model):
    with torch.no_grad():
        return model(**inputs).embedding

for folder, saved in job["folders"].items():
    base = AutoModel.from_pretrained(folder, **remote)
    model = AutoModelForAudioClassification.from_pretrained(folder, **remote)
    extractor = AutoFeatureExtractor.from_pretrained(folder, **remote)
    pipe = pipeline("anomalous-sound-detection", model=folder, device="cpu", **remote)
    classes = [AutoConfig.from_pretrained(folder, **remote), base, model, extractor, pipe]
    waveforms = load_file(job["waveforms"])
    batch = extractor(
        waveforms["near"].numpy(), waveforms["far"].numpy(), sampling_rate=16000,
        return_tensors="pt",
    )
    with torch.no_grad():
        output = model(**inputs)
    tensors = {
        "base.embedding": embed(base), "embedding": output.embedding, "logits": output.logits,
        "extracted.near": batch["near_values"], "extracted.far": batch["far_values"],
    }
    tensors |= {f"buffer.{name}": buffer for name, buffer in model.named_buffers()}
    tensors |= {f"parameter.{name}": p.detach() for name, p in model.named_parameters()}
    facts = {
        "modules": [type(part).__module__ for part in classes],
        "trainable": {name: p.requires_grad for name, p in model.named_parameters()},
        "training": model.training,
        "verdicts": [pipe(job["wav"], machine="fan"), pipe(job["wav"])],
    }
    if job["extras"]:
        bank = get_class_from_dynamic_module("reference_bank.ReferenceBank", folder)
        facts["bank_alone"] = bank.from_pretrained(folder).machines
        half = pipeline(model=folder, device="cpu", dtype=torch.bfloat16, **remote)
        facts["half"] = sorted({str(p.dtype) for p in half.model.parameters()})
        tensors["half.embedding"] = embed(half.model).float()
        facts["half_verdict"] = half(job["wav"])
        placed = pipeline(model=folder, device_map="cpu", **remote)
        tensors["placed.embedding"] = embed(placed.model)
        facts["placed_verdict"] = placed(job["wav"])
        try:
            pipeline(model=job["other"], device="cpu", **remote)(job["wav"])
        except ValueError as error:
            facts["refusal"] = str(error)
        for name, folder in job["encoders"].items():
            other = AutoModel.from_pretrained(folder, **remote)
            facts["modules"].append(type(other.encoder).__module__)
            tensors[f"{name}.embedding"] = embed(other)
        model.save_pretrained(job["resaved"]["parts"])
        extractor.save_pretrained(job["resaved"]["parts"])
        pipe.save_pretrained(job["resaved"]["pipeline"])
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()},
              saved + ".safetensors")
    with open(saved + ".json", "w") as file:
        json.dump(facts, file)
"""


def make_model() -> AsdForProxyClassification:
    """Return a model in which no parameter or buffer has a value that it could start with."""
    encoder_config = {
        "model_type": "nearfar_beats",
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "patch_embedding_size": 16,
    }
    config = AsdConfig(
        encoder_config=encoder_config,
        front_end="complex_least_squares",
        channels=["near", "far"],
        layers=[1, 3],
        projection="batch_norm_linear",
        projection_size=16,
        scored_embedding="projected",
        head_options={"num_subcenters": 2},
        detector_options={"num_neighbors": 2},
        num_labels=5,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AsdForProxyClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    model.asd.projection.norm.running_mean.normal_(std=0.1, generator=generator)
    model.asd.projection.norm.running_var.uniform_(0.5, 2.0, generator=generator)
    model.asd.projection.norm.num_batches_tracked.fill_(7)
    return model.eval()


def make_other(described: dict) -> AsdModel:
    """Return a model on another encoder that hears its class tokens, with drawn weights."""
    config = AsdConfig(
        encoder_config=described,
        layers=[1, 2],
        pooling="cls",
        pooling_options={"keep_bands": True},
        join_bands=True,
    )
    model = AsdModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def make_clips() -> tuple[Tensor, Tensor]:
    """Return near and far, (3, 8000) each: three machines that sound nothing like each other."""
    generator = torch.Generator().manual_seed(1)
    noise = 0.05 * torch.randn(2, 3, 8_000, generator=generator)
    phase = torch.arange(8_000) * torch.tensor([[0.05], [0.4], [1.7]])
    hum = 0.3 * torch.sin(phase) * torch.tensor([[1.0], [0.1], [0.5]])
    return hum + 0.5 * noise[0], 0.3 * hum + noise[1]


def make_bank(model: AsdForProxyClassification, inputs: dict[str, Tensor]) -> ReferenceBank:
    """Return a bank of one machine, whose references are the clips themselves."""
    with torch.no_grad():
        embedding = model(**inputs).embedding.numpy()
    count = len(embedding)
    table = SimpleNamespace(
        embedding=embedding,
        file_names=[f"{i}.wav" for i in range(count)],
        machines=[FAN] * count,
        domains=["source"] * count,
        conditions=["normal"] * count,
    )
    bank = ReferenceBank(
        model.config,
        fingerprint=encoder_fingerprint(model),
        guard={FAN: 0.75},
        provenance={"note": "three clips"},
    )
    return bank.fit(table, frozen_encoder=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> SimpleNamespace:
    """Save a model, its extractor and bank; return where, and what they say."""
    root = tmp_path_factory.mktemp("remote")
    model, extractor = make_model(), AsdFeatureExtractor(peak_normalize=True, min_num_samples=4_000)
    near, far = make_clips()
    batch = extractor(list(near), list(far), sampling_rate=RATE, return_tensors="pt")
    inputs = {key: batch[key] for key in ("near_values", "far_values", "attention_mask")}
    others = {name: make_other(described) for name, described in OTHER_ENCODERS.items()}
    for name, other in others.items():
        other.save_pretrained(root / name)
    bank = make_bank(model, inputs)
    for part in (model, extractor, bank):
        part.save_pretrained(root / "run")
    save_file(inputs, root / "inputs.safetensors")
    waveforms = {"near": near[0].contiguous(), "far": far[0].contiguous()}
    save_file(waveforms, root / "waveforms.safetensors")
    unheard = torch.stack([near[1] + near[2], far[1] + far[2]], dim=1)
    soundfile.write(root / "clip.wav", unheard.numpy(), RATE)

    shutil.copytree(root / "run", root / "other")
    weights = load_file(root / "run" / "model.safetensors")
    noisy = {
        name: weight * (1.1 if weight.is_floating_point() else 1)
        for name, weight in weights.items()
    }
    save_file(noisy, root / "other" / "model.safetensors", metadata={"format": "pt"})

    with torch.no_grad():
        output = model(**inputs)
    tensors = {"base.embedding": output.embedding, "embedding": output.embedding}
    tensors |= {"logits": output.logits}
    tensors |= {
        "extracted.near": inputs["near_values"][:1],
        "extracted.far": inputs["far_values"][:1],
    }
    tensors |= {f"buffer.{name}": buffer for name, buffer in model.named_buffers()}
    tensors |= {f"parameter.{name}": p.detach() for name, p in model.named_parameters()}
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    return SimpleNamespace(
        root=root,
        run=root / "run",
        tensors=tensors,
        trainable=trainable,
        bank=bank,
        model=model,
        extractor=extractor,
        others=others,
    )


def load_elsewhere(
    root: Path, folders: dict[Path, str], *, extras: bool
) -> dict[str, SimpleNamespace]:
    """Run LOADER on some folders in a process of its own; return what it found of each."""
    job = {
        "folders": {str(folder): str(root / f"found_{name}") for folder, name in folders.items()},
        "inputs": str(root / "inputs.safetensors"),
        "waveforms": str(root / "waveforms.safetensors"),
        "wav": str(root / "clip.wav"),
        "other": str(root / "other"),
        "encoders": {name: str(root / name) for name in OTHER_ENCODERS},
        "resaved": {name: str(root / f"resaved_{name}") for name in ("parts", "pipeline")},
        "num_threads": torch.get_num_threads(),
        "extras": extras,
    }
    somewhere = root / "somewhere"
    somewhere.mkdir(exist_ok=True)
    run_without_nearfar(LOADER, json.dumps(job), folder=somewhere)
    return {
        name: SimpleNamespace(
            tensors=load_file(root / f"found_{name}.safetensors"),
            **json.loads((root / f"found_{name}.json").read_text()),
        )
        for name in folders.values()
    }


@pytest.fixture(scope="module")
def loaded(saved) -> SimpleNamespace:
    """Return what a fresh process found in the folder."""
    return load_elsewhere(saved.root, {saved.run: "run"}, extras=True)["run"]


@pytest.fixture(scope="module")
def reloaded(saved, loaded) -> dict[str, SimpleNamespace]:
    """Return what a second one found in the folders that the first one saved."""
    folders = {saved.root / f"resaved_{name}": name for name in ("parts", "pipeline")}
    return load_elsewhere(saved.root, folders, extras=False)


def check_same(found: SimpleNamespace, saved: SimpleNamespace) -> None:
    """Fail unless outputs, parameters, buffers and requires_grad are those of the saver."""
    for name, tensor in saved.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor, rtol=0, atol=0, msg=name)
    kinds = ("parameter.", "buffer.")
    assert {n for n in found.tensors if n.startswith(kinds)} == {
        n for n in saved.tensors if n.startswith(kinds)
    }
    assert found.trainable == saved.trainable
    assert found.training is False


def check_verdict(verdict: dict, saved: SimpleNamespace, **tolerance: float) -> None:
    """Fail unless a verdict on the wav file is that of the saver's own model and bank."""
    samples, _ = soundfile.read(saved.root / "clip.wav", dtype="float32")
    batch = saved.extractor(*samples.T, sampling_rate=RATE, return_tensors="pt")
    batch.pop("has_far")
    with torch.no_grad():
        embedding = saved.model(**batch, front_end_strength=torch.tensor([0.75])).embedding
    score = saved.bank.anomaly_score(embedding).item()
    decision = saved.bank.decide(score)
    assert verdict["anomaly_score"] == pytest.approx(score, **(tolerance or {"rel": 1e-6}))
    assert verdict["threshold"] == decision.threshold
    assert verdict["machine"] == FAN
    if not tolerance:
        assert (verdict["anomalous"], verdict["p_value"]) == (decision.anomalous, decision.p_value)
        nearest = saved.bank.nearest_references(embedding)[0]
        assert [r["file_name"] for r in verdict["nearest_references"]] == [
            r["file_name"] for r in nearest
        ]


def test_a_fresh_process_without_nearfar_loads_what_was_saved(saved, loaded) -> None:
    assert all(module.startswith("transformers_modules.") for module in loaded.modules)
    check_same(loaded, saved)


@pytest.mark.parametrize("name", OTHER_ENCODERS)
def test_every_encoder_loads_there_as_it_was_saved(name, saved, loaded) -> None:
    inputs = load_file(saved.root / "inputs.safetensors")
    with torch.no_grad():
        embedding = saved.others[name](**inputs).embedding
    assert torch.equal(loaded.tensors[f"{name}.embedding"], embedding)


def test_the_pipeline_of_a_bare_folder_gives_the_savers_verdict(saved, loaded) -> None:
    named, unnamed_machine = loaded.verdicts
    assert named == unnamed_machine
    check_verdict(named, saved)


def test_a_bank_loads_without_its_model(loaded) -> None:
    assert loaded.bank_alone == [FAN]


def test_half_precision_and_a_device_map_change_little_and_nothing(saved, loaded) -> None:
    assert loaded.half == ["torch.bfloat16"]
    embedding = saved.tensors["embedding"]
    error = (loaded.tensors["half.embedding"] - embedding).norm() / embedding.norm()
    assert error < 0.05  # bfloat16 keeps 8 bits
    check_verdict(loaded.half_verdict, saved, abs=1e-3)  # of 0.004; the threshold is 0.03
    assert torch.equal(loaded.tensors["placed.embedding"], embedding)
    assert loaded.placed_verdict == loaded.verdicts[0]


def test_a_bank_beside_another_encoder_is_refused(loaded) -> None:
    assert "belongs to another encoder" in loaded.refusal


def test_a_folder_carries_the_code_it_needs_and_no_more(saved) -> None:
    assert {path.name for path in saved.run.glob("*.py")} == {
        "adacos_heads.py",
        "adaptive_front_ends.py",
        "adversary.py",
        "anomaly_map.py",
        "arcface_head.py",
        "attention.py",
        "calibration.py",
        "configuration_asd.py",
        "contrastive_head.py",
        "coreset.py",
        "density.py",
        "detector_base.py",
        "detector_checkpoint.py",
        "detectors.py",
        "encoder_classifier.py",
        "encoder_inputs.py",
        "encoder_layer.py",
        "enrolment.py",
        "feature_extraction_asd.py",
        "fingerprint.py",
        "front_end_base.py",
        "front_ends.py",
        "head_base.py",
        "gmm_detector.py",
        "handler.py",
        "heads.py",
        "hub_files.py",
        "kmeans_detector.py",
        "knn_detector.py",
        "lof_detector.py",
        "mahalanobis_detector.py",
        "map_axes.py",
        "model_detector.py",
        "modeling_asd.py",
        "modeling_beats.py",
        "modeling_eat.py",
        "modeling_fisher.py",
        "modeling_noise_aware.py",
        "neighbor_search.py",
        "norm_detector.py",
        "pipeline_asd.py",
        "pooling.py",
        "reference_bank.py",
        "spec_augment.py",
        "spectral_front_ends.py",
        "spectrogram.py",
        "synthetic_references.py",
    }


def test_a_checkpoints_own_code_leaves_the_installed_classes_alone(saved) -> None:
    """Both in one process, as when a notebook imports nearfar and then tries a Hub checkpoint."""
    remote = get_class_from_dynamic_module("configuration_asd.AsdConfig", str(saved.run))
    assert remote is not AsdConfig
    assert type(remote().encoder_config) is not BeatsConfig
    assert type(AsdConfig().encoder_config) is BeatsConfig
    assert type(AutoConfig.for_model("nearfar_beats")) is BeatsConfig


@pytest.mark.parametrize("way", ["parts", "pipeline"])
def test_saving_what_was_loaded_loses_no_file_and_no_value(saved, reloaded, way) -> None:
    again = saved.root / f"resaved_{way}"
    assert {path.name for path in again.iterdir() if path.is_file()} == {
        path.name for path in saved.run.iterdir() if path.is_file()
    }
    for path in saved.run.iterdir():
        if path.suffix == ".py" or path.name.startswith("reference_bank"):
            assert (again / path.name).read_bytes() == path.read_bytes(), path.name
    for name in ("preprocessor_config.json", "config.json"):
        first, second = (json.loads((folder / name).read_text()) for folder in (saved.run, again))
        if name == "config.json":  # loading finds out the encoder's dtype
            assert second["encoder_config"].pop("dtype") == "float32"
        assert first == second
    check_same(reloaded[way], saved)  # the head, too, though a pipeline has none
    embedding = reloaded[way].tensors["base.embedding"]
    assert torch.equal(embedding, saved.tensors["embedding"])
    check_verdict(reloaded[way].verdicts[0], saved)


def test_the_checks_above_would_notice_another_model(saved) -> None:
    other = make_model()
    with torch.no_grad():
        other.asd.projection.norm.running_mean += np.float32(1e-3)
        inputs = load_file(saved.root / "inputs.safetensors")
        assert not torch.equal(other(**inputs).embedding, saved.tensors["embedding"])
