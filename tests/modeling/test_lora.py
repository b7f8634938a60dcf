"""LoRA by PEFT on a detector of each encoder, with the names that `modeling` gives for it."""

import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from modeling import (
    ENCODERS,
    LORA_MODULES_TO_SAVE,
    LORA_TARGET_MODULES,
    AsdFeatureExtractor,
    AsdForProxyClassification,
)
from tests.tiny import ENCODERS as TINY_ENCODERS

every_encoder = pytest.mark.parametrize("encoder", TINY_ENCODERS)
LABELS = torch.tensor([0, 1, 2])
# Attention projections per layer, then the two maps of the feed-forward part.
LINEAR_MAPS = {"beats": 6, "eat": 4, "fisher": 4}


@pytest.fixture
def batch(pairs):
    near, far = zip(*pairs, strict=True)
    extractor = AsdFeatureExtractor()
    return dict(extractor(list(near), list(far), sampling_rate=16_000, return_tensors="pt"))


@pytest.fixture
def detector(tiny_model):
    """Return a function that makes a detector with learnt weights in every part."""

    def make(encoder):
        return tiny_model(
            encoder=TINY_ENCODERS[encoder],
            layers=[1, 2],
            pooling="attentive_statistics",
            pooling_options={"size": 9},
            projection="batch_norm_linear",
            projection_size=7,
            scored_embedding="projected",
        )

    return make


def wrapped(model, target_modules=None):
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=list(
            target_modules or LORA_TARGET_MODULES[model.config.encoder_config.model_type]
        ),
        modules_to_save=list(LORA_MODULES_TO_SAVE),
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return get_peft_model(model, config)


def train_one_step(model, batch):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()(**batch, labels=LABELS).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return model.eval()


def outputs(model, batch):
    with torch.no_grad():
        output = model(**batch)
    return torch.cat([output.embedding.flatten(1), output.logits], dim=1)


def linear_maps(model):
    return {
        name
        for name, module in model.asd.encoder.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("layers.")
    }


def test_target_modules_are_given_for_every_encoder():
    assert set(LORA_TARGET_MODULES) == set(ENCODERS)


@every_encoder
def test_target_modules_are_the_linear_maps_of_the_layers_and_no_others(encoder, detector):
    model = detector(encoder)
    maps = {name for name in linear_maps(model) if not name.endswith(".gate")}  # BEATs' own
    assert len(maps) == 2 * LINEAR_MAPS[encoder]
    peft = wrapped(model)
    adapted = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.default")
        for name, _ in peft.named_modules()
        if name.endswith(".lora_A.default")
    }
    assert adapted == {f"asd.encoder.{name}" for name in maps}


@every_encoder
def test_adapters_and_what_is_new_train_and_nothing_else(encoder, detector, batch):
    model = detector(encoder)
    new = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if not name.startswith("asd.encoder.")
    )
    peft = wrapped(model)
    trainable = {name: p for name, p in peft.named_parameters() if p.requires_grad}
    adapters = {name for name in trainable if ".lora_" in name}
    rest = set(trainable) - adapters
    assert all(".asd.encoder.layers." in name for name in adapters)
    assert len(adapters) == 2 * 2 * LINEAR_MAPS[encoder]  # A and B, two layers
    assert sum(trainable[name].numel() for name in rest) == new
    assert not any(".encoder." in name for name in rest)
    before = {name: p.detach().clone() for name, p in peft.named_parameters()}
    # B starts at zero, so A has no gradient before the second step.
    train_one_step(train_one_step(peft, batch), batch)
    moved = {name for name, p in peft.named_parameters() if not torch.equal(p, before[name])}
    assert moved <= set(trainable)
    assert moved >= adapters | {name for name in rest if ".head." in name}


@every_encoder
def test_an_adapter_changes_nothing_until_it_is_trained(encoder, detector, batch):
    plain = outputs(detector(encoder), batch)
    peft = wrapped(detector(encoder)).eval()
    torch.testing.assert_close(outputs(peft, batch), plain, rtol=0, atol=1e-6)
    trained = outputs(train_one_step(peft, batch), batch)
    assert (trained - plain).abs().max() > 1e-2
    with peft.disable_adapter():
        torch.testing.assert_close(outputs(peft, batch), plain, rtol=0, atol=1e-6)


@every_encoder
def test_activation_checkpointing_changes_no_gradient_of_an_adapter(encoder, detector, batch):
    gradients = []
    for enabled in (False, True):
        peft = wrapped(detector(encoder))
        if enabled:
            peft.base_model.model.activation_checkpointing_enable()
        peft.train()(**batch, labels=LABELS).loss.backward()
        gradients.append({n: p.grad for n, p in peft.named_parameters() if p.requires_grad})
    plain, checkpointed = gradients
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)
    assert any(gradient.any() for name, gradient in plain.items() if ".layers.0." in name)


@every_encoder
def test_a_merged_model_is_the_adapted_one_and_needs_no_peft(
    encoder, detector, batch, tmp_path, monkeypatch
):
    names = {name for name, _ in detector(encoder).named_parameters()}
    peft = train_one_step(wrapped(detector(encoder)), batch)
    adapted = outputs(peft, batch)
    merged = peft.merge_and_unload().eval()
    assert type(merged) is AsdForProxyClassification
    assert {name for name, _ in merged.named_parameters()} == names
    torch.testing.assert_close(outputs(merged, batch), adapted, rtol=0, atol=1e-5)
    merged.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("adapter*"))
    for name in [name for name in sys.modules if name.split(".")[0] == "peft"]:
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails from here on
    monkeypatch.setitem(sys.modules, "peft", None)
    reloaded = AsdForProxyClassification.from_pretrained(tmp_path)
    assert torch.equal(outputs(reloaded, batch), outputs(merged, batch))


@every_encoder
def test_an_adapter_of_its_own_saves_and_reloads(encoder, detector, batch, tmp_path):
    """With the statistics of batch normalisation, which are no parameters."""
    peft = train_one_step(wrapped(detector(encoder)), batch)
    peft.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(detector(encoder), tmp_path).eval()
    assert torch.equal(outputs(reloaded, batch), outputs(peft, batch))
    statistics = "asd.projection.modules_to_save.default.norm.running_mean"
    buffer = reloaded.base_model.model.get_buffer(statistics)
    assert buffer.any()


@every_encoder
def test_the_bare_encoder_can_be_adapted_before_it_joins_a_detector(encoder, detector, batch):
    model = detector(encoder)
    targets = list(LORA_TARGET_MODULES[model.config.encoder_config.model_type])
    near = batch["near_values"]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        peft = get_peft_model(model.asd.encoder, LoraConfig(r=4, target_modules=targets))
    optimizer = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=1e-2)
    peft(near).last_hidden_state.square().mean().backward()
    optimizer.step()
    adapted = peft(near).last_hidden_state
    merged = peft.merge_and_unload()
    torch.testing.assert_close(merged(near).last_hidden_state, adapted, rtol=0, atol=1e-5)
    other = detector(encoder)
    before = outputs(other, batch)
    other.asd.load_encoder(merged)
    assert not torch.allclose(outputs(other, batch), before, atol=1e-4)


def test_queries_keys_and_values_alone_can_be_adapted(detector, batch):
    peft = wrapped(detector("beats"), LORA_TARGET_MODULES["nearfar_beats"][:3])
    adapters = {name for name, _ in peft.named_modules() if name.endswith(".lora_A")}
    assert len(adapters) == 2 * 3
    assert all(name.split(".")[-2] in ("q_proj", "k_proj", "v_proj") for name in adapters)
