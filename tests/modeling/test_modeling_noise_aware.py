"""A noise-aware encoder is the encoder, and what near takes from far after each of its blocks."""

import json
import math

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from modeling import (
    AsdConfig,
    AsdForProxyClassification,
    AsdModel,
    NoiseAwareConfig,
    NoiseAwareModel,
    lora_target_modules,
)
from modeling.modeling_noise_aware import NearFarFusion
from tests.modeling.encoders import CLASSES, noise, padded, tiny, tiny_config
from tests.tiny import TINY_NOISE_AWARE

every_encoder = pytest.mark.parametrize("name", CLASSES)


def noise_aware(name: str, *, trained: bool, **options) -> NoiseAwareModel:
    """Return a noise-aware small encoder, with drawn weights in its fusions if trained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NoiseAwareModel(NoiseAwareConfig(encoder_config=tiny_config(name), **options))
    model.load_encoder(tiny(name))
    return drawn(model) if trained else model.eval()


def drawn(model: nn.Module) -> nn.Module:
    """Draw what training would have made of the fusions of a model."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, NearFarFusion):
                for weight in part.parameters():
                    weight += 0.2 * torch.randn(weight.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def clips() -> tuple[Tensor, Tensor, Tensor]:
    """Near and far of three clips of different lengths, and their mask."""
    near, mask = padded([8_000, 5_001, 6_600])
    return near, noise(*near.shape, seed=9) * mask, mask


def states(model: nn.Module, near: Tensor, far: Tensor | None, mask: Tensor, **more) -> list:
    """Return all hidden states; those of far are not among them."""
    inputs = {"attention_mask": mask, "output_hidden_states": True} | more
    if far is not None:
        inputs["far_values"] = far
    with torch.no_grad():
        return list(model(near, **inputs).hidden_states)


# What a clip's tokens depend on


@every_encoder
def test_before_training_it_is_the_encoder_on_near_to_the_bit(name: str, clips) -> None:
    near, far, mask = clips
    expected = states(tiny(name), near, None, mask)
    model = noise_aware(name, trained=False)
    for heard in (far, None):
        found = states(model, near, heard, mask)
        assert len(found) == len(expected) == 3
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@every_encoder
def test_clips_without_far_are_the_encoders_to_the_bit_also_after_training(
    name: str, clips
) -> None:
    near, far, mask = clips
    expected = states(tiny(name), near, None, mask)
    model = noise_aware(name, trained=True)
    found = states(model, near, far, mask, has_far=torch.tensor([True, False, True]))
    both = states(model, near, far, mask)
    for layer in (1, 2):
        assert torch.equal(found[layer][1], expected[layer][1])
        assert torch.equal(found[layer][[0, 2]], both[layer][[0, 2]])
        assert not torch.allclose(both[layer], expected[layer], atol=0.1)


@every_encoder
def test_a_clip_comes_out_alone_as_beside_longer_ones(name: str, clips) -> None:
    near, far, mask = clips
    model = noise_aware(name, trained=True)
    together = states(model, near, far, mask)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        cut = [tensor[row : row + 1, :length] for tensor in (near, far, mask)]
        sound = model.patch_mask(mask[row : row + 1])[0]
        for alone, beside in zip(states(model, *cut), together, strict=True):
            class_tokens, patches = model.split(alone)
            others, all_patches = model.split(beside[row : row + 1])
            torch.testing.assert_close(class_tokens, others, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(patches[0], all_patches[0][sound], rtol=1e-4, atol=1e-5)


@every_encoder
def test_it_takes_spectrograms_for_waveforms(name: str, clips) -> None:
    near, far, mask = clips
    model = noise_aware(name, trained=True)
    expected = states(model, near, far, mask)[-1]
    features = [model.spectrogram(channel, mask) for channel in (near, far)]
    output = model(input_features=features[0], far_features=features[1], attention_mask=mask)
    torch.testing.assert_close(output.last_hidden_state, expected, rtol=1e-4, atol=1e-5)


# The fusion, derived a second time


def plain_fusion(
    fusion: NearFarFusion, near: NDArray, far: NDArray, mask: NDArray, num_heads: int
) -> NDArray:
    """Fuse one clip, (tokens, hidden) float64, one query and one head after the other."""
    weights = {name: p.detach().double().numpy() for name, p in fusion.named_parameters()}

    def linear(name: str, x: NDArray) -> NDArray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: NDArray) -> NDArray:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    query = linear("attention.q_proj", norm("near_norm", near))
    heard = norm("far_norm", far)
    key, value = linear("attention.k_proj", heard), linear("attention.v_proj", heard)
    size = near.shape[1] // num_heads
    context = np.zeros_like(near)
    for token in range(len(near)):
        for head in range(num_heads):
            own = slice(head * size, (head + 1) * size)
            shares = {
                other: math.exp(query[token, own] @ key[other, own] / math.sqrt(size))
                for other in range(len(far))
                if mask[other]
            }
            for other, share in shares.items():
                context[token, own] += share / sum(shares.values()) * value[other, own]
    fused = near + linear("attention.out_proj", context)
    inner = linear("fc1", norm("inner_norm", fused))
    gelu = 0.5 * inner * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
    return fused + linear("fc2", gelu)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("bands", [None, 2])
def test_a_fusion_is_cross_attention_and_feed_forward_in_plain_loops(
    bands: int | None, attention: str
) -> None:
    config = NoiseAwareConfig(encoder_config=tiny_config("eat"), num_attention_heads=4)
    config._attn_implementation = attention
    fusion = drawn(NearFarFusion(config)).double()
    shape = (2, 5, 32) if bands is None else (2, bands, 5, 32)
    near, far = noise(2, *shape).double() * 10
    mask = torch.tensor([[True, True, True, False, False], [True] * 5])
    fused = fusion(near, far, mask)
    for clip in range(2):
        rows = [clip] if bands is None else [(clip, band) for band in range(bands)]
        for row in rows:
            channels = near[row].numpy(), far[row].numpy()
            expected = plain_fusion(fusion, *channels, mask[clip].numpy(), num_heads=4)
            np.testing.assert_allclose(fused[row].detach().numpy(), expected, rtol=1e-9, atol=1e-9)


@every_encoder
def test_far_goes_through_the_same_blocks_and_is_not_changed_by_near(name: str, clips) -> None:
    near, far, mask = clips
    model = noise_aware(name, trained=True)
    found: list[Tensor] = []
    for layer in model.layers:
        layer.register_forward_hook(lambda _, __, output: found.append(output[1]))
    states(model, near, far, mask)
    expected = states(tiny(name), far, None, mask)
    assert all(torch.equal(a, b) for a, b in zip(found, expected[1:], strict=True))


def test_attentions_on_request_are_near_on_far(clips) -> None:
    near, far, mask = clips
    model = noise_aware("beats", trained=True)
    model.set_attn_implementation("eager")
    weights = model(near, far, attention_mask=mask, output_attentions=True).attentions
    patches = model.patch_mask(mask)
    assert [w.shape for w in weights] == [(3, 8, *[patches.shape[1]] * 2)] * 2
    assert not weights[0].masked_select(~patches[:, None, None]).any()


# Training


@every_encoder
def test_the_gradient_opens_the_last_maps_first_and_then_reaches_all(name: str, clips) -> None:
    near, far, mask = clips
    model = noise_aware(name, trained=False, fusion_dropout=0.0).train()
    model.freeze_encoder()
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert trained.keys() == {k for k, _ in model.named_parameters() if ".fusion." in k}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    moved = []
    for _ in range(2):
        optimizer.zero_grad()
        model(near, far, attention_mask=mask).last_hidden_state.sin().sum().backward()
        moved.append({key for key, p in trained.items() if p.grad.abs().max() > 1e-9})
        optimizer.step()
    gates = {k for k in trained if k.rpartition(".")[0].endswith(("attention.out_proj", "fc2"))}
    assert moved[0] == gates
    assert moved[1] >= {key for key in trained if not key.endswith("k_proj.bias")}


@every_encoder
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_no_gradient(name: str, clips, *, reentrant: bool) -> None:
    near, far, mask = clips
    gradients = []
    for checkpointing in (False, True):
        model = noise_aware(name, trained=True).double().train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(1)
        model(near, far, attention_mask=mask).last_hidden_state.sin().sum().backward()
        gradients.append({key: p.grad for key, p in model.named_parameters()})
    assert all(gradient is not None for gradient in gradients[0].values())
    torch.testing.assert_close(gradients[1], gradients[0])


@every_encoder
def test_lora_reaches_every_linear_map_of_the_blocks_and_the_fusions(name: str, clips) -> None:
    model = noise_aware(name, trained=True)
    near, far, mask = clips
    before = states(model, near, far, mask)[-1]
    maps = {key for key, part in model.layers.named_modules() if isinstance(part, nn.Linear)}
    targets = list(lora_target_modules(model.config))
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=targets))
    adapted = {
        key.removeprefix("base_model.model.layers.").removesuffix(".lora_A.default")
        for key, _ in peft.named_modules()
        if key.endswith(".lora_A.default")
    }
    assert adapted == {key for key in maps if not key.endswith(".gate")}  # BEATs' own
    optimizer = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=1e-2)
    peft(near, far, attention_mask=mask).last_hidden_state.sin().sum().backward()
    optimizer.step()
    changed = states(peft.eval(), near, far, mask)[-1]
    assert not torch.allclose(changed, before, atol=1e-3)
    merged = states(peft.merge_and_unload(), near, far, mask)[-1]
    torch.testing.assert_close(merged, changed, rtol=0, atol=1e-4)


# Checkpoints


@every_encoder
def test_saving_and_loading_changes_nothing_with_the_folders_own_code(
    name: str, clips, tmp_path
) -> None:
    near, far, mask = clips
    model = noise_aware(name, trained=True)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["auto_map"] == {
        "AutoConfig": "configuration_asd.NoiseAwareConfig",
        "AutoModel": "modeling_noise_aware.NoiseAwareModel",
    }
    remote = get_class_from_dynamic_module("modeling_noise_aware.NoiseAwareModel", tmp_path)
    assert remote.__module__.startswith("transformers_modules.")
    for cls in (NoiseAwareModel, AutoModel, remote):
        loaded, found = cls.from_pretrained(tmp_path, output_loading_info=True)
        assert not found["missing_keys"] | found["unexpected_keys"]
        for kind in ("named_parameters", "named_buffers"):
            for (key, old), (_, new) in zip(
                getattr(model, kind)(), getattr(loaded, kind)(), strict=True
            ):
                assert torch.equal(old, new), key
        for old, new in zip(
            states(model, near, far, mask), states(loaded, near, far, mask), strict=True
        ):
            assert torch.equal(old, new)


@every_encoder
def test_missing_weights_start_as_a_new_models(name: str, tmp_path) -> None:
    """In a block as its encoder draws them, in a fusion as nothing."""
    model = noise_aware(name, trained=True)
    state = model.state_dict()
    missing = ("layers.0.layer.fc2.weight", "layers.1.fusion.fc2.weight")
    model.save_pretrained(tmp_path, state_dict={k: v for k, v in state.items() if k not in missing})
    loaded, found = NoiseAwareModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(found["missing_keys"]) == set(missing)
    block, fusion = (loaded.get_parameter(key) for key in missing)
    assert not fusion.any()
    plain = tiny(name, initializer_range=0.02).get_parameter("layers.0.fc2.weight")
    assert block.std().item() == pytest.approx(plain.std().item(), rel=0.15)
    assert torch.equal(loaded.layers[0].fusion.fc2.weight, state["layers.0.fusion.fc2.weight"])


def test_in_bfloat16_it_is_nearly_the_same(clips, tmp_path) -> None:
    near, far, mask = clips
    model = noise_aware("eat", trained=True)
    model.save_pretrained(tmp_path)
    half = NoiseAwareModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    expected, found = (states(m, near, far, mask)[-1] for m in (model, half))
    assert (found.float() - expected).norm() < 0.03 * expected.norm()


# In a detector


def detector(name: str, **options) -> AsdForProxyClassification:
    """Return a classifier around the noise-aware encoder that `noise_aware` returns, trained."""
    encoder = noise_aware(name, trained=True)
    config = AsdConfig(
        encoder_config=encoder.config, num_labels=3, **({"layers": [1, 2]} | options)
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AsdForProxyClassification(config).eval()
    model.asd.load_encoder(encoder)
    return model


@pytest.fixture
def batch(clips) -> dict[str, Tensor]:
    near, far, mask = clips
    return {"near_values": near, "far_values": far, "attention_mask": mask}


def embedding(model: AsdModel, batch: dict[str, Tensor], **more) -> Tensor:
    with torch.no_grad():
        return model(**batch | more).embedding


@every_encoder
def test_a_detector_hears_far_beside_near_and_a_clip_alone_as_beside_longer_ones(
    name: str, batch
) -> None:
    model = detector(name, channels=["near", "far"]).asd
    assert model.reads_far
    encoder, mask = model.encoder, batch["attention_mask"]
    together = embedding(model, batch)
    for channel, views in zip(("near", "far"), together.split(2, dim=1), strict=True):
        beside = batch["far_values"] if channel == "near" else None  # beside far there is nothing
        found = states(encoder, batch[f"{channel}_values"], beside, mask)
        sound = encoder.patch_mask(mask)[..., None]
        for layer in (1, 2):
            patches = encoder.split(found[layer])[1]
            mean = (patches * sound).sum(dim=1) / sound.sum(dim=1)
            torch.testing.assert_close(views[:, layer - 1, 0], mean, rtol=1e-4, atol=1e-5)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        alone = embedding(model, {key: x[row : row + 1, :length] for key, x in batch.items()})
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["no far_values", "zeros", "has_far"])
def test_a_clip_without_far_is_heard_by_near_alone(how: str, batch) -> None:
    model = detector("beats").asd
    plain = AsdModel(AsdConfig(encoder_config=tiny_config("beats"), layers=[1, 2])).eval()
    plain.load_encoder(tiny("beats"))
    more = {
        "no far_values": {"far_values": None},
        "zeros": {"far_values": torch.zeros_like(batch["far_values"])},
        "has_far": {"has_far": torch.zeros(3, dtype=torch.bool)},
    }[how]
    assert torch.equal(embedding(model, batch, **more), embedding(plain, batch))
    assert not torch.allclose(embedding(model, batch), embedding(plain, batch), atol=0.05)


def test_spectrogram_masks_hide_the_same_of_near_and_of_far(batch) -> None:
    model = detector("eat").asd
    whole = embedding(model, batch)
    nothing = embedding(model, batch, spectrogram_masks=torch.zeros(3, 4))
    torch.testing.assert_close(nothing, whole, rtol=1e-5, atol=1e-6)
    everything = torch.tensor([[0.0, 1e6, 0.0, 0.0]]).repeat(3, 1)
    other = batch | {"far_values": batch["far_values"].flip(1) * batch["attention_mask"]}
    masked = [embedding(model, x, spectrogram_masks=everything) for x in (batch, other)]
    assert torch.equal(*masked)


def test_layers_above_the_deepest_scored_one_are_not_built_and_a_detector_reloads(
    batch, tmp_path
) -> None:
    model = detector("fisher", layers=[1], front_end="complex_least_squares")
    assert len(model.asd.encoder.layers) == 1
    whole = embedding(detector("fisher", front_end="complex_least_squares").asd, batch)
    torch.testing.assert_close(embedding(model.asd, batch)[:, 0], whole[:, 0])
    model.save_pretrained(tmp_path)
    loaded = AsdForProxyClassification.from_pretrained(tmp_path, attn_implementation="eager")
    assert type(loaded.config.encoder_config) is NoiseAwareConfig
    fusion = loaded.asd.encoder.layers[0].fusion
    block = loaded.asd.encoder.layers[0].layer
    for part in (fusion.attention, block.attention, loaded.asd.encoder):
        assert part.config._attn_implementation == "eager"
    loaded.set_attn_implementation("sdpa")
    assert torch.equal(embedding(loaded.asd, batch), embedding(model.asd, batch))


def test_only_the_last_blocks_train_with_their_fusions(batch) -> None:
    model = detector("beats").train()
    model.asd.freeze_layers(1)
    model(**batch, labels=torch.tensor([0, 1, 2])).loss.backward()
    trained = {key for key, p in model.named_parameters() if p.grad is not None}
    last = {key for key, _ in model.named_parameters() if key.startswith("asd.encoder.layers.1.")}
    assert trained == last | {"head.weight"}
    assert any(".fusion." in key for key in last)


# What is refused


def test_channels_of_different_lengths_are_refused(clips) -> None:
    near, far, _ = clips
    with pytest.raises(ValueError, match=r"but far \(3, .*cut and pad them together"):
        noise_aware("eat", trained=False)(near, far[:, :4_000])


def test_an_encoder_that_is_noise_aware_or_has_no_room_for_the_heads_is_refused() -> None:
    with pytest.raises(StrictDataclassClassValidationError, match="Give that of the encoder in it"):
        NoiseAwareConfig(encoder_config=TINY_NOISE_AWARE)
    with pytest.raises(StrictDataclassClassValidationError, match="hidden_size=32 is not a mult"):
        NoiseAwareConfig(encoder_config=tiny_config("eat"), num_attention_heads=5)
    with pytest.raises(ValueError, match="'ast'; the encoders are"):
        NoiseAwareConfig(encoder_config={"model_type": "ast"})


def test_another_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"missing .*unexpected \['layers\.2\."):
        noise_aware("eat", trained=False).load_encoder(tiny("eat", num_hidden_layers=3))
