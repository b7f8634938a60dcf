"""The card of a published data set: what the Hub, `load_dataset` and a reader need of it."""

import importlib.resources
from string import Template

import datasets
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCardData

from .credits import UNKNOWN_LICENSE, citation_of, homepage_of, license_of, licenses_of
from .features import row_features
from .publication import ClipCounts, Publication

ORIGINAL = """\
The recordings of [DCASE {year} Task 2]({homepage}), anomalous sound detection for machine condition
monitoring: {subsets}."""
SIMULATED = """\
Recordings that `data_scripts.factory` of nearfar simulated: machines, rooms, two microphones and
faults, in the layout of [DCASE {year} Task 2]({homepage}). No machine made these sounds, and what
is measured on them does not say how a detector does on the challenge's recordings."""
UNCHANGED = "no clip was left out or cut, and no sample changed"
RESAMPLED = f"{UNCHANGED} but where a recording of another sampling rate was brought to 16 kHz"
SUBSET_NAMES = {
    "dev": "development set",
    "eval_train": "additional training set",
    "eval_test": "evaluation set",
}
NON_COMMERCIAL = """\
Commercial use is not permitted; say so in the card of a model that is trained on them, too."""
UNSTATED = """\
The licence of {what} was not known when this card was made. Read it where the recordings were
published before you use them or pass them on."""


def dataset_card(publication: Publication) -> str:
    """Return the README.md of a publication."""
    year, example = publication.year, publication.machine_types[0]
    origin = (SIMULATED if publication.simulated else ORIGINAL).format(
        year=year,
        homepage=homepage_of(year),
        subsets=", ".join(SUBSET_NAMES[subset] for subset in publication.subsets),
    )
    template = importlib.resources.files(__package__).joinpath("dataset_card_template.md")
    return Template(template.read_text(encoding="utf-8")).substitute(
        metadata=card_data(publication).to_yaml().strip(),
        title=publication.title,
        origin=origin,
        table="\n".join(_rows(publication)),
        name=publication.repo_id or "path/to/this/folder",
        example=example,
        split=next(iter(publication.patterns(example))),
        year=year,
        year_option="" if year == 2026 else f" --year {year}",
        treatment=RESAMPLED if publication.resampled else UNCHANGED,
        licence=_licence(publication),
        citation=citation_of(year),
    )


def card_data(publication: Publication) -> DatasetCardData:
    """Return the card's metadata: licence, tags, configurations, features and splits."""
    num_clips = sum(file.num_clips for file in publication.files)
    data = DatasetCardData(
        license=publication.licenses[0] if len(publication.licenses) == 1 else publication.licenses,
        pretty_name=publication.title,
        task_categories=["audio-classification"],
        tags=[
            *("audio", "anomalous-sound-detection", "machine-condition-monitoring", "dcase"),
            *(["simulated"] if publication.simulated else []),
        ],
        size_categories=[_size_category(num_clips)],
    )
    configs, infos = MetadataConfigs(), DatasetInfosDict()
    for machine_type in publication.machine_types:
        patterns = publication.patterns(machine_type)
        configs[machine_type] = {
            "data_files": [{"split": split, "path": paths} for split, paths in patterns.items()]
        }
        infos[machine_type] = _info(publication, machine_type)
    configs.to_dataset_card_data(data)
    infos.to_dataset_card_data(data)
    return data


def _info(publication: Publication, machine_type: str) -> datasets.DatasetInfo:
    files = publication.of_machine(machine_type)
    splits = datasets.SplitDict()
    for split in publication.patterns(machine_type):
        own = [file for file in files if file.group.split == split]
        splits.add(
            datasets.SplitInfo(
                name=split,
                num_bytes=sum(file.num_plain_bytes for file in own),
                num_examples=sum(file.num_clips for file in own),
            )
        )
    return datasets.DatasetInfo(
        features=row_features(decode=True),
        splits=splits,
        download_size=sum(file.num_bytes for file in files),
        dataset_size=sum(file.num_plain_bytes for file in files),
    )


def _rows(publication: Publication) -> list[str]:
    """Return the rows of the card's table."""
    rows = []
    for group, counts in publication.counts.items():
        clips = sum(f.num_clips for f in publication.files if f.group == group)
        sections = ", ".join(f"{section:02d}" for section in counts.sections)
        rows.append(
            f"| {group.machine_type} | {group.subset} | {group.split} | {sections} | {clips} | "
            f"{_tally(counts, 'domains')} | {_tally(counts, 'conditions')} |"
        )
    return rows


def _tally(counts: ClipCounts, field: str) -> str:
    values: dict[str | None, int] = getattr(counts, field)
    ordered = sorted(values.items(), key=lambda item: (item[0] is None, item[0] or ""))
    return ", ".join(f"{number} {word or 'unknown'}" for word, number in ordered)


def _licence(publication: Publication) -> str:
    """Return what the card says of the licence, by subset where they differ."""
    known = [f"`{name}`" for name in publication.licenses if name != UNKNOWN_LICENSE]
    paragraphs = [", ".join(known) + "."] if known else []
    year, subsets = publication.year, publication.subsets
    if len(publication.licenses) > 1 and publication.licenses == licenses_of(year, subsets):
        lines = [
            f"- {SUBSET_NAMES[subset]}: `{license_of(year, subset) or UNKNOWN_LICENSE}`"
            for subset in subsets
        ]
        paragraphs.append("\n".join(lines))
    if any("-nc" in name for name in publication.licenses):
        paragraphs.append(NON_COMMERCIAL)
    if UNKNOWN_LICENSE in publication.licenses:
        paragraphs.append(UNSTATED.format(what="some of these" if known else "these recordings"))
    return "\n\n".join(paragraphs)


def _size_category(num_clips: int) -> str:
    for limit, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K")):
        if num_clips < limit:
            return name
    return "100K<n<1M"
