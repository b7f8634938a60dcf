"""Which weights a fusion has, which members, and which of these options make no sense together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from nearfar.arguments import nearest_name
from nearfar.fusion import (
    Combination,
    Normalization,
    ScoreFusion,
    check_weights,
    smallest_of,
)
from nearfar.weight_search import SearchMethod

Mappings = list[dict]  # type: ignore[type-arg] # HfArgumentParser knows no other spelling
MEMBER_KEYS = ("name", "recipe", "overrides")


@dataclass(kw_only=True)
class WeightOptions:
    """The weights of a fusion, stated or searched."""

    weights: list[float] | None = field(
        default=None, metadata={"help": "Of the members, in their order; their sum is 1."}
    )
    search_weights: bool = field(
        default=False, metadata={"help": "Search the weights on labelled development clips."}
    )
    search_method: SearchMethod = field(
        default="grid", metadata={"help": "grid, or bayesian (with the extra fusion)."}
    )
    search_step: float = field(default=0.05, metadata={"help": "Of the grid."})
    num_trials: int = field(default=200, metadata={"help": "Of one Bayesian search."})
    search_seed: int = field(default=0, metadata={"help": "Of a Bayesian search."})
    normalization: Normalization = field(
        default="z", metadata={"help": "A member's scale: z, quantile or min_max."}
    )
    combination: Combination = field(
        default="sum", metadata={"help": "sum, weighted; or minimum, which takes no weights."}
    )

    def check_combination(self) -> None:
        """Raise ValueError where weights are given, or searched, that a minimum has not."""
        if self.combination == "minimum" and (self.weights or self.search_weights):
            raise ValueError(
                "combination='minimum' takes the smallest of the members' scores. Leave --weights "
                "and --search_weights out, or take combination='sum'."
            )


@dataclass(kw_only=True)
class MemberOptions(WeightOptions):
    """The members that train.py fuses."""

    members: Mappings | None = field(
        default=None,
        metadata={"help": "Of a fusion: {recipe, name, overrides} each, a base recipe's name."},
    )
    members_dir: Path | None = field(
        default=None,
        metadata={"help": "Trained members, new or finished; None: output_dir/trainer_state."},
    )
    encoder_checkpoints: list[str] | None = field(
        default=None, metadata={"help": "Of a fusion's members: MODEL_TYPE=PATH each."}
    )
    encoder_configs: dict | str | None = field(  # type: ignore[type-arg] # as above
        default=None,
        metadata={"help": "Of members from scratch, as JSON: model type -> encoder_config."},
    )


class Member(NamedTuple):
    """A member of a fusion, as its recipe describes it.

    Attributes:
        name: Of its folder.
        recipe: The base recipe.
        overrides: Values in place of the base recipe's.
    """

    name: str
    recipe: Path
    overrides: dict[str, Any]


def read_members(described: Sequence[Mapping[str, Any]], folder: Path) -> list[Member]:
    """Return the members that a fusion's recipe describes.

    Args:
        described: As the recipe has them; the name is the base recipe's where there is none.
        folder: Where base recipes are looked for: that of the fusion's recipe.

    Raises:
        ValueError: A key is unknown or missing, a name comes twice or cannot name a folder, or
            there is only one member.
    """
    members = []
    for values in described:
        for key in values:
            if key not in MEMBER_KEYS:
                raise ValueError(
                    f"A member of a fusion has an unknown key {key!r}."
                    f"{nearest_name(str(key), MEMBER_KEYS)}"
                )
        recipe, overrides = values.get("recipe"), values.get("overrides") or {}
        if not isinstance(recipe, str) or not isinstance(overrides, dict):
            raise ValueError(
                f"A member of a fusion is {dict(values)}; it needs a recipe, by its name, and may "
                "have overrides, a mapping."
            )
        name = str(values.get("name", Path(recipe).stem))
        if not name or "/" in name or name.startswith("."):
            raise ValueError(f"A member's name is {name!r}, which cannot name a folder.")
        path = folder / (recipe if recipe.endswith(".yaml") else f"{recipe}.yaml")
        members.append(Member(name, path, dict(overrides)))
    names = [member.name for member in members]
    if len(names) < 2:
        raise ValueError(f"A fusion needs two members or more, but its recipe names {names}.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"Two members of the fusion are called {twice[0]!r}. Give each a name.")
    return members


def stated_weights(options: WeightOptions, num_members: int) -> ScoreFusion | None:
    """Return the fusion with the stated weights, or with none; None where they are to be searched.

    Raises:
        ValueError: There are no weights, not one for each member, or some that do not count.
    """
    options.check_combination()
    if options.combination == "minimum":
        return smallest_of(num_members, normalization=options.normalization)
    if options.weights is None:
        if not options.search_weights:
            raise ValueError("A fusion needs weights, one per member, or search_weights.")
        return None
    weights = check_weights(options.weights)
    if len(weights) != num_members:
        raise ValueError(f"{len(weights)} weights came for {num_members} members. Give one each.")
    return ScoreFusion(weights, normalization=options.normalization)


def by_encoder_type(pairs: Sequence[str], types: Sequence[str]) -> dict[str, Path]:
    """Return model type -> checkpoint of "MODEL_TYPE=PATH" words.

    Args:
        pairs: The words.
        types: The model types that the members take.

    Raises:
        ValueError: A word is of another form, or its type is none of the members', or comes twice.
    """
    found: dict[str, Path] = {}
    for pair in pairs:
        name, separator, path = pair.partition("=")
        if not separator or name not in types or name in found:
            raise ValueError(
                f"--encoder_checkpoints {pair!r} is not MODEL_TYPE=PATH, once for each type; the "
                f"members take {sorted(set(types))}."
            )
        found[name] = Path(path)
    return found
