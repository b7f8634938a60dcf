import json

import pytest
from huggingface_hub.errors import (
    StrictDataclassClassValidationError,
    StrictDataclassFieldValidationError,
)
from transformers import AutoConfig

from modeling import DETECTORS, AsdConfig, BeatsConfig
from modeling.configuration_asd import FORMAT_VERSION
from tests.tiny import TINY_FISHER


@pytest.mark.parametrize("part", ["front_end", "pooling", "head", "detector"])
def test_an_option_the_part_does_not_take_is_refused_with_those_it_takes(part):
    with pytest.raises(StrictDataclassClassValidationError, match=f"unknown to {part}=.*takes"):
        AsdConfig(**{f"{part}_options": {"no_such_option": 1}})


@pytest.mark.parametrize("part", ["front_end", "pooling", "head", "detector", "projection"])
def test_a_part_that_does_not_exist_is_refused(part):
    with pytest.raises(StrictDataclassFieldValidationError, match=part):
        AsdConfig(**{part: "consine"})


def test_the_options_of_a_part_are_its_keyword_only_arguments():
    AsdConfig(
        front_end="complex_least_squares",
        front_end_options={"n_fft": 512, "hop_length": 256},
        pooling_options={"keep_bands": True},
        head_options={"num_subcenters": 16, "margin": 0.2, "scale": 30.0},
        detector_options={"num_neighbors": 2},
    )


@pytest.mark.parametrize("name", ["hidden_size", "embedding_size", "num_classes"])
def test_sizes_are_no_options(name):
    part = "pooling" if name == "hidden_size" else "head"
    with pytest.raises(StrictDataclassClassValidationError, match="unknown"):
        AsdConfig(**{f"{part}_options": {name: 4}})


def test_a_margin_in_degrees_is_refused_with_the_right_value():
    with pytest.raises(StrictDataclassClassValidationError, match=r"use 0\.499"):
        AsdConfig(head_options={"margin": 28.6})
    with pytest.raises(StrictDataclassClassValidationError, match="radians"):
        AsdConfig(head_options={"margin": -0.1})


@pytest.mark.parametrize("layers", [[3], [1, 3], [0], [-1], []])
def test_layers_that_do_not_exist_are_refused(layers):
    with pytest.raises(StrictDataclassClassValidationError, match="layers 1 to 2"):
        AsdConfig(encoder_config={"num_hidden_layers": 2}, layers=layers)


@pytest.mark.parametrize("channels", [["middle"], ["near", "near"], [], ["near", "far", "mid"]])
def test_unknown_repeated_or_no_channels_are_refused(channels):
    with pytest.raises(StrictDataclassClassValidationError, match="one or more of"):
        AsdConfig(channels=channels)


def test_an_unprocessed_channel_wants_a_front_end():
    assert AsdConfig(channels=["near", "unprocessed"], front_end="wiener").channels
    with pytest.raises(StrictDataclassClassValidationError, match="processes nothing"):
        AsdConfig(channels=["near", "unprocessed"])


def test_a_newer_format_is_refused_with_what_to_do(tmp_path):
    AsdConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps(saved | {"format_version": FORMAT_VERSION + 1}))
    with pytest.raises(StrictDataclassClassValidationError, match="Update nearfar"):
        AsdConfig.from_pretrained(tmp_path)


def test_options_of_the_detector_are_checked_by_name_and_by_value():
    AsdConfig(detector="mahalanobis", detector_options={"shrink_to": "largest", "views": [0]})
    with pytest.raises(StrictDataclassClassValidationError, match="unknown to detector='lof'"):
        AsdConfig(detector="lof", detector_options={"num_neighbours": 4})
    with pytest.raises(StrictDataclassClassValidationError, match="covariance_type='tied' is not"):
        AsdConfig(detector="gmm", detector_options={"covariance_type": "tied"})
    with pytest.raises(StrictDataclassFieldValidationError, match="detector"):
        AsdConfig(detector="ocsvm")


def test_every_detector_can_be_named_in_a_configuration():
    for name in DETECTORS:
        assert AsdConfig(detector=name).detector == name


def test_a_detector_that_compares_nothing_cannot_be_named_in_a_configuration():
    with pytest.raises(StrictDataclassFieldValidationError, match="detector"):
        AsdConfig(detector="norm")


def test_a_wrong_type_is_refused():
    with pytest.raises(StrictDataclassFieldValidationError, match="projection_size"):
        AsdConfig(projection_size="128")
    with pytest.raises(StrictDataclassFieldValidationError, match="hidden_size"):
        BeatsConfig(hidden_size=32.5)


def test_heads_that_do_not_divide_the_hidden_size_are_refused():
    with pytest.raises(StrictDataclassClassValidationError, match="not a multiple"):
        BeatsConfig(hidden_size=30, num_attention_heads=4)


def test_groups_that_do_not_divide_the_hidden_size_are_refused():
    with pytest.raises(StrictDataclassClassValidationError, match="conv_position_groups=5"):
        BeatsConfig(hidden_size=32, num_attention_heads=4, conv_position_groups=5)


def test_bands_that_were_not_kept_cannot_be_joined(tiny_config):
    with pytest.raises(StrictDataclassClassValidationError, match="keep_bands"):
        tiny_config(join_bands=True)


def test_a_learnt_pooling_cannot_be_scored_beside_the_one_that_trains(tiny_config):
    with pytest.raises(StrictDataclassFieldValidationError, match="scored_pooling"):
        tiny_config(scored_pooling="attentive_statistics")


def test_a_pooling_that_would_not_be_scored_is_refused(tiny_config):
    with pytest.raises(StrictDataclassClassValidationError, match="is not projected"):
        tiny_config(scored_pooling="rdp", projection="linear", scored_embedding="projected")
    with pytest.raises(StrictDataclassClassValidationError, match="without a scored_pooling"):
        tiny_config(scored_pooling_options={"gamma": 4.0})


def test_options_of_the_scored_pooling_are_checked(tiny_config):
    tiny_config(scored_pooling="rdp", scored_pooling_options={"gamma": 4.0, "keep_bands": True})
    with pytest.raises(
        StrictDataclassClassValidationError, match="unknown to scored_pooling='rdp'"
    ):
        tiny_config(scored_pooling="rdp", scored_pooling_options={"p": 3.0})


def test_another_rate_than_the_encoders_is_refused(tiny_config):
    with pytest.raises(StrictDataclassClassValidationError, match="encoder hears 16000 Hz"):
        tiny_config(sampling_rate=32_000)
    tiny_config(sampling_rate=32_000, encoder=TINY_FISHER | {"sampling_rate": 32_000})


def test_every_field_survives_a_round_trip(tmp_path, tiny_config):
    config = tiny_config(
        front_end="complex_least_squares",
        front_end_options={"n_fft": 512, "hop_length": 256},
        channels=["far", "near"],
        layers=[2, 1],
        pooling_options={"keep_bands": True},
        projection="batch_norm_linear",
        projection_size=7,
        projection_dropout=0.1,
        join_bands=True,
        scored_pooling="gem",
        scored_pooling_options={"p": 6.0, "gamma": 10.0},
        head="os_scl",
        head_options={"margin": 0.2, "num_subcenters": 114, "temperature": 0.04},
        adversaries=["domain", "channel"],
        adversary_options={"weight": 0.1},
        num_labels=9,
    )
    config.save_pretrained(tmp_path)
    for cls in (AsdConfig, AutoConfig):
        loaded = cls.from_pretrained(tmp_path)
        assert type(loaded) is AsdConfig
        assert type(loaded.encoder_config) is BeatsConfig
        before, after = config.to_dict(), loaded.to_dict()
        for saved in (before, after):
            saved.pop("_name_or_path", None)
        assert after == before


@pytest.mark.parametrize("encoder", [None, {"hidden_size": 96}, BeatsConfig(hidden_size=96)])
def test_the_encoder_may_be_left_out_a_dict_or_a_config(encoder):
    config = AsdConfig(encoder_config=encoder)
    assert type(config.encoder_config) is BeatsConfig
    assert config.encoder_config.hidden_size == (96 if encoder else 768)
