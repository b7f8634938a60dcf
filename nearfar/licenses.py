"""Which licence a checkpoint comes under: that of its encoder and data, where they ask for more."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.repocard import ModelCard

OWN_LICENSE = "apache-2.0"
# model_type -> where the authors' weights are from, and their licence there.
AUTHORS = {
    "nearfar_beats": ("microsoft/unilm", "mit"),
    "nearfar_eat": ("cwx-worst-one/EAT", "mit"),
    "nearfar_fisher": ("jianganbai/FISHER", "mit"),
}
# What the Hub calls licences; another name is published as "other" with the name beside it.
HUB_LICENSES = {
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "openrail", "gpl-3.0", "agpl-3.0"),
    *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
    *("cc-by-nd-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0"),
}
NONCOMMERCIAL = ("-nc", "noncommercial", "non-commercial", "research-only")


def stated_license(checkpoint: Path | None, model_type: str) -> str | None:
    """Return the licence of an encoder's weights; None for an encoder from scratch.

    Args:
        checkpoint: A folder, whose own card counts, or the authors' file; None: from scratch.
        model_type: Of the encoder.
    """
    if checkpoint is None:
        return None
    card = checkpoint / "README.md"
    if card.is_file():
        stated: Any = ModelCard.load(card, ignore_metadata_errors=True).data.get("license")
        if stated:
            return str(stated)
    _, authors_license = AUTHORS.get(model_type, (None, None))
    return authors_license


def license_metadata(encoder_license: str | None, data_license: str | None) -> str:
    """Return the card's `license`, with `license_name` for one that the Hub has no name for.

    A licence that forbids commercial use is kept, be it the encoder's or the data's; otherwise it
    is the encoder's, and that of nearfar for an encoder from scratch.
    """
    given = [name for name in (encoder_license, data_license) if name]
    strict = [name for name in given if forbids_commerce(name)]
    chosen = (strict or ([encoder_license] if encoder_license else []) or [OWN_LICENSE])[0]
    return _on_the_hub(chosen)


def card_license(folder: Path) -> str | None:
    """Return the licence that a run folder's card states, by its own name; None if not known."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    data: Any = ModelCard.load(card, ignore_metadata_errors=True).data
    stated = data.get("license")
    return None if stated in (None, "unknown") else str(data.get("license_name") or stated)


def members_metadata(licenses: Iterable[str | None]) -> str:
    """Return the `license` of a fusion's card, from those of its members' cards.

    One that forbids commercial use is kept. Without one, a member whose licence is not known leaves
    the fusion's unknown, and otherwise the first that is not nearfar's own counts.
    """
    given = list(licenses)
    if strict := [name for name in given if name and forbids_commerce(name)]:
        return _on_the_hub(strict[0])
    if None in given:
        return "unknown"
    others = [name for name in given if name and slug(name) != OWN_LICENSE]
    return _on_the_hub((others or [OWN_LICENSE])[0])


def members_section(licenses: Mapping[str, str | None]) -> str:
    """Return what a fusion's card says of the licences: member -> licence, None where not given."""
    lines = ["Each member is under a licence of its own; its card says of what.", ""]
    lines += [f"- `{name}`: {given or 'not given'}" for name, given in licenses.items()]
    if any(forbids_commerce(name) for name in licenses.values() if name):
        lines += ["", "**Commercial use is not allowed.**"]
    return "\n".join(lines)


def license_section(recipe: Mapping[str, Any]) -> str:
    """Return what the card says of the licences, from the recipe as resolved."""
    encoder, data = recipe.get("encoder_license"), recipe.get("data_license")
    source = recipe.get("encoder_checkpoint")
    if encoder:
        lines = [f"The encoder's weights ({source}) came under the licence {encoder}."]
    elif source:
        lines = [f"The licence of the encoder's weights ({source}) was not given."]
    else:
        lines = ["The encoder was trained from scratch; nobody else's weights are in here."]
    lines.append(
        f"The recordings came under the licence {data}."
        if data
        else "The licence of the recordings was not given: ask who made them before you sell this."
    )
    if any(forbids_commerce(name) for name in (encoder, data) if name):
        lines.append("**Commercial use is not allowed.**")
    return "\n".join(lines)


def forbids_commerce(name: str) -> bool:
    """Return whether a licence's name says that it forbids commercial use."""
    return any(word in slug(name) for word in NONCOMMERCIAL)


def slug(name: str) -> str:
    """Return a licence's name as the Hub writes names."""
    return "-".join(name.lower().split())


def _on_the_hub(license_name: str) -> str:
    """Return the value of a card's `license`, and a line of its name if the Hub has none for it."""
    name = slug(license_name)
    return name if name in HUB_LICENSES else f"other\nlicense_name: {name}"
