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
    ENCODERS,
    FRONT_ENDS,
    HEADS,
    POOLINGS,
    AsdForProxyClassification,
    AsdModel,
    BeatsModel,
    ReferenceBank,
    encoder_fingerprint,
)
from modeling.configuration_asd import ENCODER_CONFIGS
from modeling.feature_extraction_asd import AsdFeatureExtractor
from tests.tiny import ENCODERS as TINY_ENCODERS
from tests.tiny import TINY_EAT, TINY_FISHER, TINY_NOISE_AWARE

CHANNELS = (["near"], ["far", "near"], ["residual", "near"])
LAYERS = (None, [1], [2, 1])
BANDS = {"beats": 8, "eat": 8, "fisher": 12}  # of the patch grid
CLASS_TOKENS = {"beats": 0, "eat": 1, "fisher": 4}
POOLED = [
    (encoder, pooling)
    for encoder in BANDS
    for pooling in POOLINGS
    if pooling != "cls" or CLASS_TOKENS[encoder]
]
every_encoder = pytest.mark.parametrize("encoder", BANDS)


def batch_of(pairs):
    """Pad near and far clips, as forward takes them."""
    near, far = zip(*pairs, strict=True)
    extractor = AsdFeatureExtractor()
    return dict(extractor(list(near), list(far), sampling_rate=16_000, return_tensors="pt"))


@pytest.fixture
def batch(pairs):
    return batch_of(pairs)


# What a clip's embedding depends on


def check_alone_as_in_a_batch(model, pairs, shape):
    with torch.no_grad():
        together = model(**batch_of(pairs))
        assert together.embedding.shape == shape
        for i, pair in enumerate(pairs):
            alone = model(**batch_of([pair]))
            bare = model(pair[0][None], pair[1][None])
            for output in (alone, bare):
                for key in ("embedding", "projected_embedding"):
                    # float32: sums over 400 patches in another order
                    torch.testing.assert_close(
                        output[key][0], together[key][i], rtol=1e-4, atol=1e-5
                    )


@pytest.mark.parametrize(
    ("encoder", "pooling", "keep_bands", "front_end"),
    [
        (*case, front_end != "near", front_end)
        for case, front_end in itertools.product(POOLED, FRONT_ENDS)
    ],
)
def test_a_clip_is_embedded_alone_as_in_a_batch_and_beside_longer_clips(
    encoder, pooling, keep_bands, front_end, tiny_model, pairs
):
    model = tiny_model(
        encoder=TINY_ENCODERS[encoder],
        front_end=front_end,
        pooling=pooling,
        pooling_options={"keep_bands": keep_bands},
        channels=["far", "near"],
        layers=[2, 1],
        projection="batch_norm_linear",
        projection_size=6,
    ).asd
    bands = CLASS_TOKENS[encoder] if pooling == "cls" else BANDS[encoder]
    size = 256 if pooling == "attentive_statistics" else 32
    check_alone_as_in_a_batch(model, pairs, (3, 4, bands if keep_bands else 1, size))


@pytest.mark.parametrize(
    ("encoder", "channels", "layers"), list(itertools.product(BANDS, CHANNELS, LAYERS))
)
def test_so_it_is_for_all_channels_and_layers(encoder, channels, layers, tiny_model, pairs):
    model = tiny_model(encoder=TINY_ENCODERS[encoder], channels=channels, layers=layers)
    views = len(channels) * len(layers or [2])
    check_alone_as_in_a_batch(model.asd, pairs, (3, views, 1, 32))


@pytest.mark.parametrize(
    ("encoder", "pooling", "front_end"),
    [*((*case, "complex_least_squares") for case in POOLED), ("beats", "mean", "near")],
)
def test_in_bfloat16_too(encoder, pooling, front_end, tiny_model, pairs):
    model = tiny_model(
        encoder=TINY_ENCODERS[encoder],
        pooling=pooling,
        front_end=front_end,
        channels=["near", "far"],
    ).asd.to(torch.bfloat16)
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


@pytest.mark.parametrize("pooling", ["mean", "rdp"])
def test_the_residual_is_near_less_a_share_of_far(pooling, tiny_model, batch):
    options = {"layers": [2, 1], "front_end": "complex_least_squares", "scored_pooling": pooling}
    model = tiny_model(channels=["residual", "far", "near"], residual_weight=0.3, **options)
    residual, far, near = model.asd(**batch).embedding.unflatten(1, (3, 2)).unbind(dim=1)
    torch.testing.assert_close(residual, near - 0.3 * far)
    alone = tiny_model(channels=["residual"], residual_weight=0.3, **options)
    alone.load_state_dict(model.state_dict())
    assert torch.equal(alone.asd(**batch).embedding, residual)


def test_near_can_be_heard_with_and_without_its_front_end(tiny_model, batch):
    model = tiny_model(channels=["unprocessed", "near"], front_end="complex_least_squares")
    unprocessed, near = model.asd(**batch).embedding.unbind(dim=1)
    plain = tiny_model()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(unprocessed, plain.asd(**batch).embedding[:, 0])
    assert not torch.equal(unprocessed, near)
    guarded = model.asd(**batch, front_end_strength=torch.zeros(len(near))).embedding
    assert torch.equal(guarded[:, 0], guarded[:, 1])


def test_a_layer_is_the_mean_of_its_hidden_states(tiny_model, pairs):
    near = pairs[0][0][None]
    encoder = tiny_model(layers=[1, 2]).asd.encoder
    hidden_states = encoder(near, output_hidden_states=True).hidden_states
    embedding = tiny_model(layers=[1, 2]).asd(near).embedding[0, :, 0]
    expected = torch.stack([hidden_states[layer][0].mean(dim=0) for layer in (1, 2)])
    torch.testing.assert_close(embedding, expected)


def test_hidden_states_are_asked_for_only_where_another_layer_than_the_deepest_is_scored(
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
    assert asked == [False, False, False, True]


@every_encoder
@pytest.mark.parametrize("layer", [1, 2])
def test_a_layer_is_the_same_whichever_layers_are_scored_beside_it(
    encoder, layer, tiny_model, pairs
):
    near, described = pairs[0][0][None], TINY_ENCODERS[encoder]
    both = tiny_model(encoder=described, layers=[1, 2]).asd
    single = tiny_model(encoder=described, layers=[layer]).asd
    single.load_encoder(both.encoder)
    torch.testing.assert_close(single(near).embedding[:, 0], both(near).embedding[:, layer - 1])


@every_encoder
def test_what_lies_behind_a_clips_end_does_not_matter(encoder, tiny_model, batch):
    model = tiny_model(
        encoder=TINY_ENCODERS[encoder],
        front_end="complex_least_squares",
        channels=["near", "far"],
    )
    expected = model(**batch).embedding
    padding = batch["attention_mask"] == 0
    for key in ("near_values", "far_values"):
        batch[key] = batch[key].masked_fill(padding, torch.nan)
    assert torch.equal(model(**batch).embedding, expected)


# Encoders and poolings


def test_every_encoder_has_a_model_a_configuration_and_a_tiny_one():
    assert set(ENCODERS) == set(ENCODER_CONFIGS)
    tiny = [*TINY_ENCODERS.values(), TINY_NOISE_AWARE]
    assert set(ENCODERS) == {described["model_type"] for described in tiny}


@every_encoder
def test_an_encoder_splits_its_hidden_states_as_grid_and_mask_say(encoder, tiny_model, batch):
    model = tiny_model(encoder=TINY_ENCODERS[encoder]).asd.encoder
    near, mask = batch["near_values"], batch["attention_mask"]
    time, band = model.patch_grid(near.shape[1])
    assert band == BANDS[encoder]
    output = model(near, attention_mask=mask, output_hidden_states=True)
    assert len(output.hidden_states) == 3
    for hidden_states in (*output.hidden_states, output.last_hidden_state):
        class_tokens, patches = model.split(hidden_states)
        assert class_tokens.shape == (3, model.num_class_tokens, 32)
        assert patches.shape == (3, time * band, 32)
    assert model.num_class_tokens == CLASS_TOKENS[encoder]
    assert model.patch_mask(mask).shape == (3, time * band)


@pytest.mark.parametrize("encoder", ["eat", "fisher"])  # in BEATs, a convolution mixes them first
def test_patches_are_ordered_by_time_then_from_low_to_high(encoder, tiny_model, pairs):
    model = tiny_model(encoder=TINY_ENCODERS[encoder]).asd.encoder
    near = pairs[0][0][None]
    grid = model.patch_grid(near.shape[1])
    time = torch.arange(8_000)
    tone = 0.3 * torch.sin(2 * torch.pi * 7_000 / 16_000 * time)
    late = 0.3 * torch.sin(2 * torch.pi * 1_000 / 16_000 * time) * (time >= 6_400)

    def patches(waveform):
        _, split = model.split(model.embed_patches(model.spectrogram(waveform)))
        return split[0].unflatten(0, grid)  # (time, band, D)

    moved = (patches(near + late) - patches(near)).norm(dim=2)
    assert moved[-1].max() > 100 * moved[0].max()
    moved = (patches(near + tone) - patches(near)).norm(dim=2)
    assert (moved[:, -2:].amax(dim=1) > 10 * moved[:, 0]).all()


@pytest.mark.parametrize("layers", [[2], [1, 2]])
def test_cls_of_eat_is_the_first_token_of_each_layer(layers, tiny_model, batch):
    model = tiny_model(encoder=TINY_EAT, pooling="cls", layers=layers).asd
    output = model.encoder(
        batch["near_values"], attention_mask=batch["attention_mask"], output_hidden_states=True
    )
    expected = torch.stack([output.hidden_states[layer][:, 0] for layer in layers], dim=1)
    torch.testing.assert_close(model(**batch).embedding[:, :, 0], expected)


def test_joined_cls_of_fisher_is_the_embedding_of_its_authors(tiny_model, batch):
    model = tiny_model(
        encoder=TINY_FISHER,
        pooling="cls",
        pooling_options={"keep_bands": True},
        join_bands=True,
        projection="batch_norm_linear",
        projection_size=5,
    ).asd
    encoded = model.encoder(batch["near_values"], attention_mask=batch["attention_mask"])
    output = model(**batch)
    torch.testing.assert_close(output.embedding[:, 0, 0], encoded.pooler_output)
    assert output.embedding.shape == (3, 1, 1, 4 * 32)
    assert output.projected_embedding.shape == (3, 1, 1, 5)


@pytest.mark.parametrize("rate", [16_000, 32_000])
def test_a_rate_beyond_16_khz_gives_fisher_more_bands(rate, tiny_model):
    model = tiny_model(
        encoder=TINY_FISHER | {"sampling_rate": rate},
        sampling_rate=rate,
        pooling="cls",
        pooling_options={"keep_bands": True},
        join_bands=True,
        projection="linear",
    ).asd
    near = torch.randn(1, rate, generator=torch.Generator().manual_seed(0))
    assert model(near).embedding.shape[-1] == 32 * rate // 4_000


@pytest.mark.parametrize("field", ["pooling", "scored_pooling"])
def test_class_tokens_are_refused_where_the_encoder_has_none(field, tiny_model):
    with pytest.raises(ValueError, match=r"'cls'.*BeatsModel has none.*'attentive_statistics'"):
        tiny_model(**{field: "cls"})


@pytest.mark.parametrize(("encoder", "pooling"), POOLED)
def test_bands_that_any_pooling_kept_are_joined(encoder, pooling, tiny_model, batch):
    options = {
        "encoder": TINY_ENCODERS[encoder],
        "pooling": pooling,
        "pooling_options": {"keep_bands": True},
        "layers": [1, 2],
    }
    model = tiny_model(**options, join_bands=True, projection="linear", projection_size=7).asd
    apart = tiny_model(**options).asd
    apart.encoder, apart.pooling = model.encoder, model.pooling
    output, bands = model(**batch), apart(**batch).embedding
    torch.testing.assert_close(output.embedding[:, :, 0], bands.flatten(2))
    expected = model.projection.linear(bands.flatten(2))
    torch.testing.assert_close(output.projected_embedding[:, :, 0], expected)


def test_what_is_scored_may_be_pooled_in_another_way_than_what_is_trained(tiny_model, batch):
    rdp = {"gamma": 4.0, "keep_bands": True}
    model = tiny_model(
        layers=[1, 2],
        pooling="attentive_statistics",
        pooling_options={"size": 9},
        scored_pooling="rdp",
        scored_pooling_options=rdp,
    )
    trained = tiny_model(layers=[1, 2], pooling="attentive_statistics", pooling_options={"size": 9})
    scored = tiny_model(layers=[1, 2], pooling="rdp", pooling_options=rdp)
    trained.load_state_dict(model.state_dict())
    scored.asd.encoder = model.asd.encoder
    output = model.asd(**batch)
    assert torch.equal(output.embedding, scored.asd(**batch).embedding)
    assert torch.equal(output.projected_embedding, trained.asd(**batch).projected_embedding)
    assert torch.equal(model(**batch).logits, trained(**batch).logits)
    model.train()(**batch, labels=torch.tensor([0, 1, 2])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@every_encoder
def test_a_fingerprint_tells_encoders_apart_and_knows_its_own(encoder, tiny_model, tiny_config):
    options = {"encoder": TINY_ENCODERS[encoder], "layers": [1, 2]}
    model, other = tiny_model(**options), AsdForProxyClassification(tiny_config(**options))
    bank = ReferenceBank(model.config, fingerprint=encoder_fingerprint(model))
    bank.check_encoder(model)
    with pytest.raises(ValueError, match="another encoder"):
        bank.check_encoder(other)


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


@pytest.mark.parametrize("channel", ["far", "residual"])
def test_an_encoded_far_channel_must_be_there(channel, tiny_model, pairs):
    model = tiny_model(channels=["near", channel])
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
    logits = model.head(output.projected_embedding.mean(dim=(1, 2))).logits
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
    with_margin = model.head(model(**batch).embedding.mean(dim=(1, 2)), labels).logits
    torch.testing.assert_close(output.logits, with_margin)
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(with_margin, labels))
    soft = nn.functional.one_hot(labels, 5).float()
    expected = nn.functional.binary_cross_entropy_with_logits(with_margin, soft)
    torch.testing.assert_close(model(**batch, labels=soft).loss, expected)


@pytest.mark.parametrize("head", sorted(set(HEADS) - {"arcface"}))
def test_every_head_is_saved_with_its_state(head, tmp_path, tiny_config, batch):
    options = {"num_basis_vectors": 3} if head == "adaproj" else {}
    if head == "subcluster_adacos":
        options = {"trainable_centers": False}
    model = perturbed(AsdForProxyClassification(tiny_config(head=head, head_options=options)))
    model.save_pretrained(tmp_path)
    loaded = AsdForProxyClassification.from_pretrained(tmp_path)
    labels = torch.tensor([0, 4, 2])
    before, after = (one(**batch, labels=labels) for one in (model, loaded))
    assert all(torch.equal(before[key], after[key]) for key in before)
    for kind in ("named_parameters", "named_buffers"):
        assert dict(getattr(loaded, kind)()).keys() == dict(getattr(model, kind)()).keys()
    assert AsdModel.from_pretrained(tmp_path)(**batch).embedding.equal(before.embedding)


@pytest.mark.parametrize("head", sorted(set(HEADS)))
def test_every_head_starts_as_its_constructor_says_whatever_the_initializer_range(
    head, tiny_config
):
    options = {"num_basis_vectors": 3} if head == "adaproj" else {}
    config = tiny_config(head=head, head_options=options, encoder={"initializer_range": 1e-4})
    built = AsdForProxyClassification(config).head
    alone = HEADS[head](32, 5, **options)
    for name, tensor in alone.state_dict().items():
        if name.endswith("weight") and "perturbation" not in name:
            torch.testing.assert_close(
                built.get_parameter(name).std(), tensor.std(), rtol=0.3, atol=0
            )
        elif name == "scale":
            assert torch.equal(built.scale, tensor)


def test_tuples_on_request(tiny_model, batch):
    loss, logits, embedding = tiny_model()(
        **batch, labels=torch.tensor([0, 1, 2]), return_dict=False
    )
    assert loss.ndim == 0
    assert logits.shape == (3, 5)
    assert embedding.shape == (3, 1, 1, 32)


# Training


@pytest.mark.parametrize("layers", [None, [1], [1, 2]])
@pytest.mark.parametrize(
    ("encoder", "pooling", "projection"),
    [("beats", "mean", "none"), *((*case, "batch_norm_linear") for case in POOLED)],
)
def test_every_parameter_receives_a_finite_gradient(
    encoder, pooling, layers, projection, tiny_model, batch
):
    model = tiny_model(
        encoder=TINY_ENCODERS[encoder],
        pooling=pooling,
        layers=layers,
        projection=projection,
        front_end="complex_least_squares",
    )
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


@every_encoder
@pytest.mark.parametrize("trainable_layers", [None, 1])
def test_activation_checkpointing_changes_no_gradient(trainable_layers, encoder, tiny_model, batch):
    labels = torch.tensor([0, 1, 2])
    gradients = []
    for enabled in (False, True):
        model = tiny_model(encoder=TINY_ENCODERS[encoder], layers=[1, 2]).train()
        model.asd.freeze_layers(trainable_layers)
        if enabled:
            model.activation_checkpointing_enable()
        model(**batch, labels=labels).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(layer.gradient_checkpointing for layer in model.asd.encoder.layers)
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


# Freezing


def trainable_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@every_encoder
def test_only_the_last_layers_and_what_follows_the_encoder_train(encoder, tiny_model):
    model = tiny_model(
        encoder=TINY_ENCODERS[encoder] | {"num_hidden_layers": 3},
        pooling="attentive_statistics",
        projection="batch_norm_linear",
    )
    everything = {name for name, _ in model.named_parameters()}
    rest = {name for name in everything if not name.startswith("asd.encoder.")}
    assert {name.split(".")[0] for name in rest} == {"asd", "head"}
    layers = [
        {name for name in everything if name.startswith(f"asd.encoder.layers.{i}.")}
        for i in range(3)
    ]
    assert all(layers)
    model.asd.freeze_layers(2)
    assert trainable_names(model) == rest | layers[1] | layers[2]
    model.asd.freeze_layers(0)
    assert trainable_names(model) == rest
    model.asd.freeze_layers(1)
    assert trainable_names(model) == rest | layers[2]
    for all_of_them in (3, None):
        model.asd.freeze_layers(all_of_them)
        assert trainable_names(model) == everything


def test_layers_are_counted_back_from_the_deepest_one_scored(tiny_model):
    model = tiny_model(encoder={"num_hidden_layers": 3}, layers=[2, 1])
    model.asd.freeze_layers(1)
    names = {name for name in trainable_names(model) if name.startswith("asd.encoder.")}
    assert names
    assert all(name.startswith("asd.encoder.layers.1.") for name in names)


@every_encoder
@pytest.mark.parametrize("trainable_layers", [0, 1, 2])
def test_a_step_moves_what_trains_and_nothing_else(trainable_layers, encoder, tiny_model, batch):
    model = tiny_model(encoder=TINY_ENCODERS[encoder], layers=[1, 2]).train()
    model.asd.freeze_layers(trainable_layers)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    model(**batch, labels=torch.tensor([0, 1, 2])).loss.backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == trainable_names(model)


@pytest.mark.parametrize("trainable_layers", [-1, 3])
def test_more_layers_than_there_are_cannot_train(trainable_layers, tiny_model):
    with pytest.raises(ValueError, match=r"has 2 layers.*Give 0 to 2"):
        tiny_model().asd.freeze_layers(trainable_layers)


def test_a_frozen_model_loads_as_one_that_trains(tmp_path, tiny_model):
    model = tiny_model()
    model.asd.freeze_layers(0)
    model.save_pretrained(tmp_path)
    loaded = AsdForProxyClassification.from_pretrained(tmp_path)
    assert all(parameter.requires_grad for parameter in loaded.parameters())


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


ATTENTIVE = {
    "pooling": "attentive_statistics",
    "pooling_options": {"size": 9, "keep_bands": True},
    "scored_embedding": "pooled",
    "scored_pooling": "gem",
    "scored_pooling_options": {"gamma": 4.0, "p": 2.0},
}


@pytest.mark.parametrize("cls", [AsdModel, AsdForProxyClassification])
@pytest.mark.parametrize("auto", [False, True])
@pytest.mark.parametrize(
    ("encoder", "others"), [("beats", {}), ("beats", ATTENTIVE), ("eat", ATTENTIVE), ("fisher", {})]
)
def test_saving_and_loading_changes_nothing(
    encoder, others, cls, auto, tmp_path, tiny_config, batch
):
    options = EVERYTHING | others | {"encoder": TINY_ENCODERS[encoder]}
    model = perturbed(cls(tiny_config(**options)))
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


@every_encoder
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_attention_implementation_reaches_the_encoder(
    implementation, encoder, tmp_path, tiny_model
):
    tiny_model(encoder=TINY_ENCODERS[encoder]).save_pretrained(tmp_path)
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
        assert {"configuration_asd", "modeling_asd", "spectrogram", "encoder_inputs"} <= code
        assert {"modeling_beats", "modeling_eat", "modeling_fisher"} <= code
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
