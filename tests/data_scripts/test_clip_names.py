"""Laws of clip names: parsing and formatting undo each other, and nothing is invented."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_scripts.clip_names import ClipName

# A name of every form, and the years that have such names.
NAMES = {
    "normal_id_00_00000000.wav": [2020],
    "anomaly_id_06_00000123.wav": [2020],
    "id_01_00000000.wav": [2020],
    "section_00_source_train_normal_0025_strength_1_ambient.wav": range(2021, 2027),
    "section_00_source_test_normal_0000.wav": range(2021, 2027),
    "section_03_source_test_0000.wav": [2021],
    "section_03_target_test_0199.wav": [2021],
    "section_02_target_train_normal_0009_vel_6_loc_A.wav": range(2021, 2027),
    "section_03_0000.wav": range(2022, 2027),
    "section_03_test_0000.wav": range(2022, 2027),
    "section_00_source_train_normal_0990_noAttribute.wav": range(2021, 2027),
    "section_00_source_normal_0035_spd_1.wav": [2024],
    "section_00_machine_0001_.wav": [2025],
    "section_00_noise_0100_.wav": [2025],
    "section_00_target_test_anomaly_0005_car_A2_spd_4_mic_2_mic_1.wav": range(2021, 2027),
    "section_00_target_test_anomaly_0007_pro_y.wav": range(2021, 2027),
    "section_00_source_train_normal_12345_spd_1.wav": range(2021, 2027),
}


def optional(words):
    return st.none() | st.sampled_from(words)


@st.composite
def clip_names(draw):
    """Any combination of fields that some year uses."""
    width = draw(st.integers(1, 9))
    fields = {
        "section": draw(st.integers(0, 99)),
        "index": draw(st.integers(0, 10**width - 1)),
        "index_width": width,
    }
    form = draw(
        st.sampled_from(["id", "labelled", "unsplit", "domain only", "test", "supplemental"])
    )
    condition = draw(st.sampled_from(["normal", "anomaly"]))
    if form == "id":
        return ClipName(prefix="id", condition=draw(optional(["normal", "anomaly"])), **fields)
    fields["attributes"] = draw(st.none() | st.text(st.characters(exclude_characters="/")))
    if form == "test":
        return ClipName(split=draw(optional(["test"])), **fields)
    if form == "supplemental":
        return ClipName(supplemental=draw(st.sampled_from(["machine", "noise"])), **fields)
    fields["domain"] = draw(st.sampled_from(["source", "target"]))
    if form == "unsplit":
        return ClipName(condition=condition, **fields)
    if form == "domain only":
        return ClipName(split="test", **fields)
    split = draw(st.sampled_from(["train", "test"]))
    return ClipName(split=split, condition=condition, **fields)


@given(clip_names())
def test_parsing_undoes_formatting(name):
    assert ClipName.parse(name.format()) == name


@given(st.from_regex(r"(section|(normal_|anomaly_)?id)_[a-z0-9_]{2,60}\.wav", fullmatch=True))
def test_a_name_that_parses_is_written_back_unchanged(name):
    try:
        parsed = ClipName.parse(name)
    except ValueError:
        return
    assert parsed.format() == name


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_each_year_is_written_back_unchanged(name):
    assert ClipName.parse(name).format() == name


@pytest.mark.parametrize(("name", "years"), NAMES.items())
def test_a_name_tells_the_years_that_have_such_names(name, years):
    assert ClipName.parse(name).years == tuple(years)


def test_an_evaluation_clip_has_no_domain_no_split_no_condition_and_no_attributes():
    assert ClipName.parse("section_00_0001.wav") == ClipName(section=0, index=1)


def test_an_evaluation_clip_of_2021_has_a_domain_and_no_condition():
    expected = ClipName(section=3, index=7, domain="target", split="test")
    assert ClipName.parse("section_03_target_test_0007.wav") == expected


def test_a_clip_of_2020_has_an_eight_digit_index_and_no_domain():
    expected = ClipName(section=4, index=71, condition="normal", prefix="id")
    assert ClipName.parse("normal_id_04_00000071.wav") == expected
    assert (expected.domain, expected.split, expected.attributes) == (None, None, None)


def test_a_revealed_name_without_test_has_no_split():
    name = ClipName.parse("section_00_source_normal_0035_spd_1.wav")
    assert (name.domain, name.split, name.condition) == ("source", None, "normal")


def test_a_trailing_underscore_is_empty_attributes_and_not_unknown_ones():
    assert ClipName.parse("section_00_machine_0001_.wav").attributes == ""
    assert ClipName.parse("section_00_machine_0001.wav").attributes is None


@pytest.mark.parametrize(
    ("attributes", "pairs"),
    [
        ("spd_3", [("spd", "3")]),
        ("car_A2_spd_4_mic_2_mic_1", [("car", "A2"), ("spd", "4"), ("mic", "2"), ("mic", "1")]),
        ("pro_y", [("pro", "y")]),
        ("m-n_W", [("m-n", "W")]),
        ("v1pat_4_v2pat_none", [("v1pat", "4"), ("v2pat", "none")]),
        ("noAttribute", []),
        ("", []),
        ("strength_1_ambient", None),
        ("spd__1_", None),
        (None, None),
    ],
)
def test_attribute_pairs_keep_order_case_and_repeated_keys(attributes, pairs):
    assert ClipName(section=0, index=0, attributes=attributes).attribute_pairs() == pairs


@pytest.mark.parametrize(
    "name",
    [
        "fan/section_00_0000.wav",
        "section_00_0000.flac",
        "section_00_0000.WAV",
        "section_0_0000.wav",
        "section_00_source_0000.wav",
        "section_00_source_train_0000.wav",
        "section_00_train_0000.wav",
        "section_00_normal_0000.wav",
        "section_00_source_train_broken_0000.wav",
        "section_00_source_train_normal_machine_0000.wav",
        "normal_id_00_00000000_spd_1.wav",
        "normal_section_00_0000.wav",
        "section_00_source_train_normal.wav",
        "section_\u0660\u0660_0000.wav",
        "notes.wav",
        "",
    ],
)
def test_any_other_name_is_refused_with_examples(name):
    with pytest.raises(ValueError, match=r"is not a DCASE clip name\. Expected .*Rename") as caught:
        ClipName.parse(name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"domain": "Source"}, "domain='Source' is not one of 'source', 'target'"),
        ({"split": "dev"}, "split='dev' is not one of"),
        ({"condition": "abnormal"}, "condition='abnormal' is not one of 'normal', 'anomaly'"),
        ({"prefix": "clip"}, "prefix='clip' is not one of"),
        ({"section": 100}, "does not fit two digits"),
        ({"index": 10_000}, "does not fit 4 digits"),
        ({"index": -1}, "does not fit 4 digits"),
        ({"attributes": "a/b"}, "no name has a slash"),
        ({"prefix": "id", "attributes": "spd_1"}, "a name of 2020 has none"),
        ({"prefix": "id", "domain": "source"}, "gives just domain after 'id'"),
        ({"domain": "source"}, "gives just domain after 'section'"),
        ({"domain": "source", "split": "train"}, "gives just domain, split"),
    ],
)
def test_fields_that_no_name_can_hold_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ClipName(**{"section": 0, "index": 0, **fields})
