import copy
import itertools
import json

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForAudioClassification,
    PreTrainedModel,
)

from modeling import (
    FRONT_ENDS,
    POOLINGS,
    AsdForProxyClassification,
    AsdModel,
    BeatsModel,
    ReferenceBank,
)
from modeling.feature_extraction_asd import AsdFeatureExtractor

CHANNELS = (["near"], ["far", "near"])
LAYERS = (None, [1], [2, 1])


def batch_of(pairs):
    """Pad near and far clips, as forward takes them."""
    near, far = zip(*pairs, strict=True)
    extractor = AsdFeatureExtractor()
    return dict(extractor(list(near), list(far), sampling_rate=16_000, return_tensors="pt"))


@pytest.fixture
def batch(pairs):
    return batch_of(pairs)


# What a clip's embedding depends on


@pytest.mark.parametrize(
    ("front_end", "pooling", "keep_bands", "channels", "layers"),
    list(itertools.product(FRONT_ENDS, POOLINGS, (False, True), CHANNELS, LAYERS)),
)
def test_a_clip_is_embedded_alone_as_in_a_batch_and_beside_longer_clips(
    front_end, pooling, keep_bands, channels, layers, tiny_model, pairs
):
    model = tiny_model(
        front_end=front_end,
        pooling=pooling,
        pooling_options={"keep_bands": keep_bands},
        channels=channels,
        layers=layers,
        projection="batch_norm_linear",
        projection_size=6,
    ).asd
    with torch.no_grad():
        together = model(**batch_of(pairs))
        assert together.embedding.shape == (
            3,
            len(channels) * len(layers or [2]),
            8 if keep_bands else 1,
            32,
        )
        for i, pair in enumerate(pairs):
            alone = model(**batch_of([pair]))
            bare = model(pair[0][None], pair[1][None])
            for output in (alone, bare):
                for key in ("embedding", "projected_embedding"):
                    # float32: sums over 400 patches in another order
                    torch.testing.assert_close(
                        output[key][0], together[key][i], rtol=1e-4, atol=1e-5
                    )


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_in_bfloat16_too(front_end, tiny_model, pairs):
    model = tiny_model(front_end=front_end, channels=["near", "far"]).asd.to(torch.bfloat16)
    with torch.no_grad():
        together = model(**batch_of(pairs)).embedding
        for i, pair in enumerate(pairs):
            alone = model(**batch_of([pair])).embedding[0]
            # 8 bits of mantissa, averaged over the patches
            torch.testing.assert_close(alone, together[i], rtol=0, atol=0.03)


@pytest.mark.parametrize("channels", [["far", "near"], ["near", "far"]])
def test_views_are_ordered_by_channel_then_by_layer(channels, tiny_model, batch):
    model = tiny_model(channels=channels, layers=[2, 1], front_end="complex_least_squares")
    views = model.asd(**batch).embedding[:, :, 0].unbind(dim=1)
    for view, (channel, layer) in zip(views, itertools.product(channels, [2, 1]), strict=True):
        single = tiny_model(channels=[channel], layers=[layer], front_end="complex_least_squares")
        single.asd.load_encoder(model.asd.encoder)
        torch.testing.assert_close(view, single.asd(**batch).embedding[:, 0, 0])


def test_a_layer_is_the_mean_of_its_hidden_states(tiny_model, pairs):
    near = pairs[0][0][None]
    encoder = tiny_model(layers=[1, 2]).asd.encoder
    hidden_states = encoder(near, output_hidden_states=True).hidden_states
    embedding = tiny_model(layers=[1, 2]).asd(near).embedding[0, :, 0]
    expected = torch.stack([hidden_states[layer][0].mean(dim=0) for layer in (1, 2)])
    torch.testing.assert_close(embedding, expected)


def test_hidden_states_are_asked_for_only_where_another_layer_than_the_last_is_scored(
    tiny_model, pairs, monkeypatch
):
    asked = []
    forward = BeatsModel.forward

    def spy(self, *args, **kwargs):
        asked.append(kwargs["output_hidden_states"])
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(BeatsModel, "forward", spy)
    for layers in (None, [2], [1], [1, 2]):
        tiny_model(layers=layers)(pairs[0][0][None])
    assert asked == [False, False, True, True]


def test_what_lies_behind_a_clips_end_does_not_matter(tiny_model, batch):
    model = tiny_model(front_end="complex_least_squares", channels=["near", "far"])
    expected = model(**batch).embedding
    padding = batch["attention_mask"] == 0
    for key in ("near_values", "far_values"):
        batch[key] = batch[key].masked_fill(padding, torch.nan)
    assert torch.equal(model(**batch).embedding, expected)


# Front end and far channel


@pytest.fixture
def cleaning_model(tiny_model):
    return tiny_model(front_end="complex_least_squares").asd


def test_strength_0_is_near_and_strength_1_is_the_front_end(cleaning_model, tiny_model, batch):
    near = tiny_model().asd(**batch).embedding
    cleaned = cleaning_model(**batch).embedding
    assert not torch.allclose(near, cleaned, atol=1e-3)
    mixed = cleaning_model(**batch, front_end_strength=torch.tensor([0.0, 1.0, 0.0])).embedding
    assert torch.equal(mixed[[0, 2]], near[[0, 2]])
    assert torch.equal(mixed[1], cleaned[1])


def test_strength_mixes_waveforms(cleaning_model, batch):
    near, far, mask = batch["near_values"], batch["far_values"], batch["attention_mask"]
    cleaned = cleaning_model.front_end(near, far, mask.sum(dim=1))
    strength = torch.tensor([0.25, 0.5, 0.9])
    mixed = cleaning_model(near, far, mask, strength).embedding
    by_hand = near + strength[:, None] * (cleaned - near)
    expected = cleaning_model(by_hand, None, mask).embedding
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("far_none", [False, True])
def test_the_encoder_hears_silence_behind_each_clips_end(
    far_none, cleaning_model, batch, monkeypatch
):
    heard = []
    encoder = cleaning_model.encoder
    spectrogram = encoder.spectrogram
    monkeypatch.setattr(
        encoder, "spectrogram", lambda waveform: (heard.append(waveform), spectrogram(waveform))[1]
    )
    sound = batch["attention_mask"] == 1
    for key in ("near_values", "far_values"):
        batch[key] = batch[key].where(sound, 1.0)
    if far_none:
        batch["far_values"] = None
    cleaning_model(**batch)
    [waveform] = heard
    assert waveform[sound].any()
    assert not waveform[~sound].any()


def test_no_front_end_changes_a_clip_without_a_far_microphone(cleaning_model, tiny_model, batch):
    cleaning_model.front_end.forward = lambda near, far, lengths: near.flip(1)
    batch["far_values"][1] = 0.0
    near = tiny_model().asd(**batch).embedding
    embedding = cleaning_model(**batch).embedding
    assert torch.equal(embedding[1], near[1])
    assert not torch.equal(embedding[0], near[0])


def test_clips_without_a_far_microphone_come_back_as_near(cleaning_model, tiny_model, batch):
    batch["far_values"][1] = 0.0
    near = tiny_model().asd(**batch).embedding
    embedding = cleaning_model(**batch).embedding
    assert torch.equal(embedding[1], near[1])
    assert not torch.equal(embedding[0], near[0])
    assert torch.equal(cleaning_model(batch["near_values"]).embedding[0], near[0])


def test_an_encoded_far_channel_must_be_there(tiny_model, pairs):
    model = tiny_model(channels=["near", "far"])
    with pytest.raises(ValueError, match="far_values is missing for every clip"):
        model(pairs[0][0][None])
    near, far = zip(*pairs, strict=True)
    mono = AsdFeatureExtractor()(
        list(near), [far[0], None, far[2]], sampling_rate=16_000, return_tensors="pt"
    )
    with pytest.raises(ValueError, match=r"missing for clips \[1\] of the batch"):
        model(**mono)


def test_the_front_end_hears_float32_in_a_half_precision_model(cleaning_model, batch, monkeypatch):
    heard = []
    clean = cleaning_model.front_end.clean

    def spy(near, far):
        heard.append((near.dtype, far.dtype))
        return clean(near, far)

    monkeypatch.setattr(cleaning_model.front_end, "clean", spy)
    cleaning_model.to(torch.bfloat16)(**batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cleaning_model(**batch)
    assert set(heard) == {(torch.float32, torch.float32)}


@pytest.mark.parametrize("key", ["far_values", "attention_mask"])
def test_inputs_of_different_shapes_are_refused(key, tiny_model, batch):
    batch[key] = batch[key][:, :-1]
    with pytest.raises(ValueError, match="must have one shape"):
        tiny_model()(**batch)


# Projection and head


def test_bands_and_views_are_projected_alike_and_averaged_for_the_head(tiny_model, batch):
    model = tiny_model(
        layers=[1, 2],
        pooling_options={"keep_bands": True},
        projection="batch_norm_linear",
        projection_size=7,
    )
    nn.init.normal_(model.asd.projection.norm.running_mean)
    nn.init.uniform_(model.asd.projection.norm.running_var, 0.5, 2.0)
    output = model.asd(**batch)
    norm, linear = model.asd.projection.norm, model.asd.projection.linear
    for view, band in ((0, 0), (1, 5)):
        pooled = output.embedding[:, view, band]
        scaled = (pooled - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
        expected = linear(scaled * norm.weight + norm.bias)
        torch.testing.assert_close(output.projected_embedding[:, view, band], expected)
    logits = model.head(output.projected_embedding.mean(dim=(1, 2)))
    torch.testing.assert_close(model(**batch).logits, logits)


def test_joined_bands_are_scored_normalised_and_projected_as_one_vector(tiny_model, batch):
    options = {"layers": [1, 2], "pooling_options": {"keep_bands": True}}
    model = tiny_model(
        **options, projection="batch_norm_linear", projection_size=7, join_bands=True
    )
    apart = tiny_model(**options)
    apart.asd.encoder = model.asd.encoder
    projection = model.asd.projection
    nn.init.normal_(projection.norm.running_mean)
    nn.init.uniform_(projection.norm.running_var, 0.5, 2.0)
    output = model.asd(**batch)
    bands = apart.asd(**batch).embedding[:, 1].unbind(1)
    torch.testing.assert_close(output.embedding[:, 1, 0], torch.cat(bands, dim=-1))
    assert output.projected_embedding.shape == (3, 2, 1, 7)
    expected = projection.linear(projection.norm(torch.cat(bands, dim=-1)))
    torch.testing.assert_close(output.projected_embedding[:, 1, 0], expected)


@pytest.mark.parametrize("projection", ["none", "linear", "batch_norm_linear"])
def test_the_configured_embedding_is_scored(projection, tiny_model, batch):
    for scored in ("pooled", "projected"):
        model = tiny_model(projection=projection, scored_embedding=scored)
        output = model.asd(**batch)
        same = torch.equal(output.embedding, output.projected_embedding)
        assert same == (projection == "none" or scored == "projected")
        assert torch.equal(model(**batch).embedding, output.embedding)


def test_the_loss_is_the_heads_and_needs_labels(tiny_model, batch):
    model = tiny_model()
    assert model(**batch).loss is None
    labels = torch.tensor([0, 4, 2])
    output = model(**batch, labels=labels, domain_labels=torch.tensor([0, 1, 0]))
    with_margin = model.head(model(**batch).embedding.mean(dim=(1, 2)), labels)
    torch.testing.assert_close(output.logits, with_margin)
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(with_margin, labels))
    soft = nn.functional.one_hot(labels, 5).float()
    expected = nn.functional.binary_cross_entropy_with_logits(with_margin, soft)
    torch.testing.assert_close(model(**batch, labels=soft).loss, expected)


def test_tuples_on_request(tiny_model, batch):
    loss, logits, embedding = tiny_model()(
        **batch, labels=torch.tensor([0, 1, 2]), return_dict=False
    )
    assert loss.ndim == 0
    assert logits.shape == (3, 5)
    assert embedding.shape == (3, 1, 1, 32)


# Training


@pytest.mark.parametrize("layers", [None, [1], [1, 2]])
@pytest.mark.parametrize("projection", ["none", "batch_norm_linear"])
def test_every_parameter_receives_a_finite_gradient(layers, projection, tiny_model, batch):
    model = tiny_model(layers=layers, projection=projection, front_end="complex_least_squares")
    model.train()(**batch, labels=torch.tensor([0, 1, 2])).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_layers_above_the_deepest_scored_one_are_not_built_and_change_nothing(tiny_model, pairs):
    near = pairs[0][0][None]
    shallow = tiny_model(layers=[1]).asd
    assert len(shallow.encoder.layers) == 1
    whole = tiny_model(layers=[2, 1]).asd
    shallow.load_encoder(whole.encoder)
    torch.testing.assert_close(shallow(near).embedding[:, 0], whole(near).embedding[:, 1])


def test_an_encoder_that_does_not_fit_is_refused(tiny_model, tiny_config):
    config = tiny_config(encoder={"gated_position_bias": False}).encoder_config
    with pytest.raises(ValueError, match=r"missing .*gate"):
        tiny_model().asd.load_encoder(BeatsModel(config))
    deeper = tiny_config(encoder={"num_hidden_layers": 1}).encoder_config
    with pytest.raises(ValueError, match=r"missing .*layers\.1"):
        tiny_model().asd.load_encoder(BeatsModel(deeper))


def test_activation_checkpointing_changes_no_gradient(tiny_model, batch):
    labels = torch.tensor([0, 1, 2])
    gradients = []
    for enabled in (False, True):
        model = tiny_model(layers=[1, 2]).train()
        if enabled:
            model.activation_checkpointing_enable()
        model(**batch, labels=labels).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(layer.gradient_checkpointing for layer in model.asd.encoder.layers)
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_the_head_starts_by_xavier_whatever_the_initializer_range(tiny_config):
    weight = AsdForProxyClassification(
        tiny_config(num_labels=400, encoder={"initializer_range": 1e-4})
    ).head.weight
    bound = (6 / (400 + 32)) ** 0.5
    assert 0.9 * bound < weight.abs().max() <= bound


# Checkpoints


def perturbed(model: PreTrainedModel) -> PreTrainedModel:
    """Draw every parameter and buffer anew, so that no initialisation could hit it by chance."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(17)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        else:
            tensor.normal_(std=0.1, generator=generator)
    return model.eval()


EVERYTHING = {
    "front_end": "complex_least_squares",
    "channels": ["near", "far"],
    "layers": [1],
    "pooling_options": {"keep_bands": True},
    "projection": "batch_norm_linear",
    "projection_size": 7,
    "scored_embedding": "projected",
    "head_options": {"num_subcenters": 2},
}


@pytest.mark.parametrize("cls", [AsdModel, AsdForProxyClassification])
@pytest.mark.parametrize("auto", [False, True])
def test_saving_and_loading_changes_nothing(cls, auto, tmp_path, tiny_config, batch):
    model = perturbed(cls(tiny_config(**EVERYTHING)))
    model.save_pretrained(tmp_path)
    automatic = {AsdModel: AutoModel, AsdForProxyClassification: AutoModelForAudioClassification}
    reloaded = (automatic[cls] if auto else cls).from_pretrained(tmp_path)
    assert type(reloaded) is cls
    for kind in ("named_parameters", "named_buffers"):
        for (name, old), (_, new) in zip(
            getattr(model, kind)(), getattr(reloaded, kind)(), strict=True
        ):
            assert torch.equal(old, new), name
            assert old.requires_grad == new.requires_grad, name
    before, after = model(**batch), reloaded(**batch)
    assert before.keys() == after.keys()
    for key in before:
        assert torch.equal(before[key], after[key]), key


def test_the_bare_model_loads_from_the_checkpoint_of_the_classifier(tmp_path, tiny_config, batch):
    model = perturbed(AsdForProxyClassification(tiny_config(**EVERYTHING)))
    model.save_pretrained(tmp_path)
    for cls in (AsdModel, AutoModel):
        bare, info = cls.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert torch.equal(bare(**batch).embedding, model(**batch).embedding)


def test_another_number_of_classes_gets_a_new_head_and_keeps_the_rest(tmp_path, tiny_config):
    model = perturbed(AsdForProxyClassification(tiny_config()))
    model.save_pretrained(tmp_path)
    other = AsdForProxyClassification.from_pretrained(
        tmp_path, num_labels=9, ignore_mismatched_sizes=True
    )
    assert other.head.weight.shape == (9, 32)
    assert other.head.weight.abs().max() <= (6 / (9 + 32)) ** 0.5
    for name, parameter in model.asd.named_parameters():
        assert torch.equal(parameter, other.asd.get_parameter(name)), name


@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"device_map": "cpu"}])
@pytest.mark.parametrize("cls", [AsdModel, AsdForProxyClassification])
def test_it_loads_in_half_precision_and_by_device_map(cls, options, tmp_path, tiny_config, batch):
    model = perturbed(cls(tiny_config(**EVERYTHING)))
    model.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path, **options)
    assert loaded.dtype == options.get("dtype", torch.float32)
    for name, buffer in loaded.named_buffers():
        expected = model.get_buffer(name)
        assert torch.equal(buffer, expected.to(buffer.dtype)), name
    expected = model(**batch).embedding
    tolerance = 0.02 if "dtype" in options else 1e-6
    error = (loaded(**batch).embedding.float() - expected).norm() / expected.norm()
    assert error < tolerance


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_attention_implementation_reaches_the_encoder(implementation, tmp_path, tiny_model):
    tiny_model().save_pretrained(tmp_path)
    loaded = AsdModel.from_pretrained(tmp_path, attn_implementation=implementation)
    assert loaded.encoder.config._attn_implementation == implementation


@pytest.mark.parametrize("cls", [AsdModel, AsdForProxyClassification])
def test_either_class_publishes_everything_that_the_folder_needs(cls, tmp_path, tiny_config):
    model = cls(tiny_config())
    model.save_pretrained(tmp_path / "first")
    cls.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    for folder in (tmp_path / "first", tmp_path / "second"):
        saved = json.loads((folder / "config.json").read_text())
        assert saved["auto_map"] == {
            "AutoConfig": "configuration_asd.AsdConfig",
            "AutoModel": "modeling_asd.AsdModel",
            "AutoModelForAudioClassification": "modeling_asd.AsdForProxyClassification",
        }
        task = saved["custom_pipelines"]["anomalous-sound-detection"]
        assert task["impl"] == "pipeline_asd.AnomalousSoundDetectionPipeline"
        code = {path.stem for path in folder.glob("*.py")}
        assert {"configuration_asd", "modeling_asd", "modeling_beats", "spectrogram"} <= code
        assert {"pipeline_asd", "reference_bank", "detectors", "front_ends"} <= code
        assert "convert_original" not in code


# The reference bank beside a model


@pytest.fixture
def bank(tiny_config):
    return ReferenceBank(tiny_config(), guard={"2026/fan/00": 0.25})


def test_a_model_brings_its_bank_along_when_it_is_saved_again(tmp_path, tiny_model, bank):
    new = tiny_model()
    assert new.load_reference_bank() is None
    new.save_pretrained(tmp_path / "first")
    assert AsdModel.from_pretrained(tmp_path / "first").load_reference_bank() is None
    bank.save_pretrained(tmp_path / "first")
    for cls in (AsdModel, AsdForProxyClassification):
        loaded = cls.from_pretrained(tmp_path / "first")
        assert loaded.load_reference_bank().guard == bank.guard
        loaded.save_pretrained(tmp_path / cls.__name__)
        again = cls.from_pretrained(tmp_path / cls.__name__)
        assert again.load_reference_bank().guard == bank.guard


def test_a_bank_that_is_already_in_the_folder_stays(tmp_path, tiny_config, tiny_model, bank):
    tiny_model().save_pretrained(tmp_path / "first")
    bank.save_pretrained(tmp_path / "first")
    newer = ReferenceBank(tiny_config(), guard={"2026/fan/00": 1.0})
    newer.save_pretrained(tmp_path / "second")
    AsdModel.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    assert ReferenceBank.from_pretrained(tmp_path / "second").guard == newer.guard


def test_the_folder_may_move_from_under_the_process(tmp_path, tiny_model, bank, monkeypatch):
    tiny_model().save_pretrained(tmp_path / "first")
    bank.save_pretrained(tmp_path / "first")
    monkeypatch.chdir(tmp_path)
    loaded = AsdModel.from_pretrained("first")
    monkeypatch.chdir("/")
    assert loaded.load_reference_bank() is not None
    (tmp_path / "first").rename(tmp_path / "elsewhere")
    assert loaded.load_reference_bank() is None
    loaded.save_pretrained(tmp_path / "second")  # weights are not held up by it
    assert (tmp_path / "second" / "model.safetensors").exists()


def test_the_bank_is_read_at_the_models_revision_with_its_token(tiny_model, monkeypatch):
    asked = []

    def remember(name_or_dir, **options):
        asked.append((name_or_dir, options))

    monkeypatch.setattr(
        PreTrainedModel, "from_pretrained", lambda *args, **kwargs: tiny_model().asd
    )
    monkeypatch.setattr(ReferenceBank, "from_pretrained", remember)
    model = AsdModel.from_pretrained("user/fan", revision="v2", token="secret")
    model.load_reference_bank()
    options = {"revision": "v2", "token": "secret", "local_files_only": False}
    assert asked == [("user/fan", options)]
    assert "secret" not in repr(model)
    assert "secret" not in json.dumps(model.config.to_dict())


def test_a_bank_is_there_before_the_folder_is_uploaded(tmp_path, tiny_model, bank, monkeypatch):
    tiny_model().save_pretrained(tmp_path / "first")
    bank.save_pretrained(tmp_path / "first")
    loaded = AsdModel.from_pretrained(tmp_path / "first")
    uploads = []

    def push_to_hub(self, repo_id, **options):
        uploads.append((repo_id, options, sorted(p.name for p in (tmp_path / "fan").iterdir())))

    monkeypatch.setattr(AsdModel, "push_to_hub", push_to_hub)
    loaded.save_pretrained(tmp_path / "fan", push_to_hub=True, repo_id="user/fan", token="secret")
    [(repo_id, options, files)] = uploads
    assert repo_id == "user/fan"
    assert options == {"token": "secret"}
    assert {"model.safetensors", "reference_bank.json", "reference_bank.safetensors"} <= set(files)


def test_only_the_main_process_writes(tmp_path, tiny_model, bank):
    tiny_model().save_pretrained(tmp_path / "first")
    bank.save_pretrained(tmp_path / "first")
    loaded = AsdModel.from_pretrained(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "second", is_main_process=False)
    assert not list((tmp_path / "second").glob("*"))


def test_a_copied_model_still_knows_its_bank(tmp_path, tiny_model, bank):
    tiny_model().save_pretrained(tmp_path)
    bank.save_pretrained(tmp_path)
    loaded = copy.deepcopy(AsdModel.from_pretrained(tmp_path))
    assert loaded.load_reference_bank().guard == bank.guard
