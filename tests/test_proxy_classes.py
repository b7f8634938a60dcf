"""How many proxy classes a recipe makes of the recordings of 2026, by the official names."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assembly.labels import check_num_classes, make_labels, pool_of_2026
from assembly.models import asd_config, build_model, subcenter_options
from data_scripts.clip_names import NO_ATTRIBUTE, ClipName
from modeling import BeatsModel
from modeling.configuration_asd import BeatsConfig
from nearfar.arguments import read_recipe
from nearfar.embeddings import EmbeddingTable
from nearfar.proxy_labels import ProxyLabels, pseudo_attributes
from nearfar.schema import machine_name
from nearfar.splits import held_out_rows
from nearfar.training_arguments import TrainArguments
from tests.tiny import TINY_ENCODER

RECIPES = sorted((Path(__file__).resolve().parents[1] / "recipes").glob("*.yaml"))
NUM_SOURCE, NUM_TARGET = 63, 10  # the recordings have 990 and 10

CARS = [
    f"car_{car}_spd_{speed}_mic_2_mic_1" for car, speed in product(("A1", "A2", "B1"), "123456")
]
# Machine type -> settings of the source and of the target domain.
SETTINGS: dict[str, tuple[list[str], list[str]]] = {
    "ToyCarEmu": (CARS, [f"car_D{i}_spd_5_mic_2_mic_1" for i in range(1, 5)]),
    "fan": ([f"spd_{i}" for i in (1, 2, 3)],) * 2,
    "gearboxEmu": ([f"pro_{i}" for i in "ABCDEF"], [f"pro_{i}" for i in "XYZ"]),
    "BlowerDustCollector": (
        [f"nzl_{n}_pow_{p}" for n, p in product("12", "13")],
        [f"nzl_{n}_pow_2" for n in "12"],
    ),
    "Sander": (
        [f"spd_{s}_grit_{g}" for s, g in product("24", ("60", "120", "240"))],
        [f"spd_{s}_grit_{g}" for s, g in product("135", ("60", "120", "240"))],
    ),
    "ToyDrone": (
        [f"car_{c}_spd_{s}_mic_2_mic_1" for c, s in product(("A1", "A2", "B1", "B2"), "12")],
        [f"car_C{i}_spd_3_mic_2_mic_1" for i in "12"],
    ),
}
WITHOUT = ("ToyCar", "bearingEmu", "sliderEmu", "valveEmu", "SewingMachine", "ToothBrush")


def official_rows() -> list[dict[str, Any]]:
    """Return what the official names tell of normal training clips of all machines of 2026."""
    rows = []
    for machine_type in (*SETTINGS, *WITHOUT):
        settings = SETTINGS.get(machine_type, (["noAttribute"], ["noAttribute"]))
        for domain, count, texts in zip(
            ("source", "target"), (NUM_SOURCE, NUM_TARGET), settings, strict=True
        ):
            for i in range(count):
                text = texts[i % len(texts)]
                name = f"section_00_{domain}_train_normal_{i:04d}_{text}.wav"
                clip = ClipName.parse(name)
                rows.append(
                    {
                        "file_name": name,
                        "machine": machine_name(2026, machine_type, clip.section),
                        "domain": clip.domain,
                        "condition": clip.condition,
                        "attributes": "" if clip.attributes == NO_ATTRIBUTE else clip.attributes,
                    }
                )
    return rows


ROWS = official_rows()


def references(seed: int = 0) -> list[dict[str, Any]]:
    """Return the clips that are not held out."""
    held_out = held_out_rows(
        [row["machine"] for row in ROWS],
        [row["domain"] for row in ROWS],
        attributes=[row["attributes"] for row in ROWS],
        share=0.1,
        seed=seed,
    )
    return [row for row, held in zip(ROWS, held_out, strict=True) if not held]


def arguments(**values: Any) -> TrainArguments:
    return TrainArguments(data_dir=Path("data"), output_dir=Path("run"), **values)


def test_the_pool_is_the_twelve_machines() -> None:
    assert {row["machine"] for row in ROWS} == pool_of_2026()
    assert len(pool_of_2026()) == 12


@pytest.mark.parametrize(
    ("parts", "num_classes"), [(["composite"], 80), (["attribute"], 71), (["section"], 12)]
)
@pytest.mark.parametrize("seed", range(5))
def test_the_twelve_machines_make_80_classes_and_71_without_domain(
    parts, num_classes, seed
) -> None:
    """Whatever is held out: Sander's ten target clips have nine settings."""
    assert ProxyLabels.from_clips(references(seed), parts=parts).num_classes == num_classes


def test_pseudo_labels_of_six_machines_make_116_classes() -> None:
    rows = references()
    embedding = np.random.default_rng(0).normal(size=(len(rows), 1, 1, 4)).astype(np.float32)
    table = EmbeddingTable.from_clips(embedding, rows)
    recipe = next(path for path in RECIPES if path.stem == "beyond_lora")
    values = read_recipe(TrainArguments, recipe)
    pseudo = pseudo_attributes(
        table,
        num_clusters=values["num_pseudo_labels"],
        min_clips=values["min_pseudo_label_clips"],
    )
    labels = ProxyLabels.from_clips(rows, pseudo_attributes=pseudo)
    assert labels.num_classes == values["num_classes_2026"] == 116
    assert labels.without_attributes.sum() == 6 * 8


def test_every_recipe_that_trains_on_all_machines_states_what_the_names_give() -> None:
    checked = []
    for path in RECIPES:
        values = read_recipe(TrainArguments, path)
        if values.get("train_subsets") == ["dev", "eval_train"] and not values.get("no_training"):
            due = 116 if path.stem in ("beyond_lora", "beyond_na") else 80
            assert values["num_classes_2026"] == due, path.stem
            checked.append(path.stem)
    assert {"unis_1", "unis_2", "xju_1", "xju_2", "xju_3", "audiocc_1", "audiocc_2"} <= {*checked}


def test_another_number_of_classes_stops_where_the_pool_is_complete_and_only_there() -> None:
    rows = [row for row in references() if "spd_5_grit" not in row["file_name"]]
    args = arguments(num_classes_2026=80)
    with pytest.raises(ValueError, match=r"expects 80 .*num_classes_2026.*have 77.*are complete"):
        make_labels(args, None, None, rows, None)
    fewer = [row for row in rows if "ToyDrone" not in row["machine"]]
    assert make_labels(args, None, None, fewer, None).num_classes == 67
    none = arguments(num_classes_2026=None)
    assert make_labels(none, None, None, rows, None).num_classes == 77
    stated = arguments(num_classes=3)
    with pytest.raises(ValueError, match=r"expects 3 proxy classes \(num_classes\)"):
        make_labels(stated, None, None, fewer, None)


def test_the_whole_pool_of_the_right_number_trains() -> None:
    rows = references()
    labels = make_labels(arguments(num_classes_2026=80), None, None, rows, None)
    check_num_classes(arguments(num_classes_2026=80), labels, pool_of_2026())
    assert labels.num_classes == 80


def test_classes_of_machines_without_attributes_get_their_own_number_of_subcenters() -> None:
    labels = ProxyLabels.from_clips(references(), parts=["composite"])
    args = arguments(head_options={"margin": 0.2}, subcenters_without_attributes=16)
    options = subcenter_options(args, labels)
    assert options["margin"] == 0.2
    expected = [
        16 if any(f"/{machine}/" in name for machine in WITHOUT) else 1
        for name in labels.class_names
    ]
    assert options["num_subcenters"] == expected
    assert sum(expected) == 68 + 12 * 16
    encoder = BeatsModel(
        BeatsConfig(**{k: v for k, v in TINY_ENCODER.items() if k != "model_type"})
    )
    model = build_model(args, encoder, labels)
    assert model.head.weight.shape[0] == sum(expected)
    args.head = "os_scl"
    assert asd_config(args, encoder, labels).head_options["num_subcenters"] == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"head": "adacos"}, r"no num_subcenters. Take one of \['arcface', 'os_scl'\]"),
        ({"head_options": {"num_subcenters": [1, 2]}}, "both count class by class"),
    ],
)
def test_subcenters_by_attributes_need_a_head_that_counts_them_so(values, message: str) -> None:
    labels = ProxyLabels.from_clips(ROWS[:2])
    with pytest.raises(ValueError, match=message):
        subcenter_options(arguments(subcenters_without_attributes=16, **values), labels)
