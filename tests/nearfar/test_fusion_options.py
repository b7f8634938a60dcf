"""How a recipe names the members of a fusion and their weights."""

from pathlib import Path
from typing import Any

import pytest

from nearfar.fusion_options import (
    Member,
    WeightOptions,
    by_encoder_type,
    read_members,
    stated_weights,
)

FOLDER = Path("recipes")


def test_a_member_is_a_base_recipe_beside_the_fusions_with_a_name_and_overrides() -> None:
    described: list[dict[str, Any]] = [
        {"recipe": "unis_1"},
        {"recipe": "unis_1", "name": "short", "overrides": {"crop_seconds": 6}},
        {"recipe": "mine/own.yaml"},
    ]
    assert read_members(described, FOLDER) == [
        Member("unis_1", FOLDER / "unis_1.yaml", {}),
        Member("short", FOLDER / "unis_1.yaml", {"crop_seconds": 6}),
        Member("own", FOLDER / "mine" / "own.yaml", {}),
    ]


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ([{"recipe": "a"}], r"two members or more, but its recipe names \['a'\]"),
        ([], r"two members or more"),
        ([{"recipe": "a"}, {"recipe": "a"}], "called 'a'. Give each a name"),
        ([{"recipe": "a"}, {"recipe": "b", "override": {}}], "Did you mean 'overrides'"),
        ([{"recipe": "a"}, {"name": "b"}], "needs a recipe"),
        ([{"recipe": "a"}, {"recipe": "b", "overrides": [1]}], "overrides, a mapping"),
        ([{"recipe": "a"}, {"recipe": "b", "name": "../b"}], "cannot name a folder"),
    ],
)
def test_members_that_are_described_wrongly_are_refused(described, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_members(described, FOLDER)


def test_stated_weights_win_over_a_search_and_none_of_both_is_refused() -> None:
    stated = stated_weights(WeightOptions(weights=[0.25, 0.75], search_weights=True), 2)
    assert stated is not None
    assert stated.weights == (0.25, 0.75)
    assert stated_weights(WeightOptions(search_weights=True), 2) is None
    with pytest.raises(ValueError, match="needs weights, one per member, or search_weights"):
        stated_weights(WeightOptions(), 2)
    with pytest.raises(ValueError, match="2 weights came for 3 members"):
        stated_weights(WeightOptions(weights=[0.5, 0.5]), 3)


def test_a_minimum_needs_no_weights_and_refuses_them() -> None:
    fusion = stated_weights(WeightOptions(combination="minimum", normalization="quantile"), 3)
    assert fusion is not None
    assert (fusion.combination, fusion.normalization) == ("minimum", "quantile")
    assert len(fusion.weights) == 3
    for wrong in ({"weights": [0.5, 0.5]}, {"search_weights": True}):
        with pytest.raises(ValueError, match="Leave --weights and --search_weights out"):
            stated_weights(WeightOptions(combination="minimum", **wrong), 2)


def test_checkpoints_are_told_by_the_model_type_of_the_encoder() -> None:
    types = ["nearfar_eat", "nearfar_beats"]
    pairs = ["nearfar_eat=a=b.pt", "nearfar_beats=c"]
    assert by_encoder_type(pairs, types) == {
        "nearfar_eat": Path("a=b.pt"),
        "nearfar_beats": Path("c"),
    }
    for wrong in (["a.pt"], ["nearfar_fisher=a.pt"], ["nearfar_eat=a", "nearfar_eat=b"]):
        with pytest.raises(
            ValueError, match=r"not MODEL_TYPE=PATH.*'nearfar_beats', 'nearfar_eat'"
        ):
            by_encoder_type(wrong, types)
