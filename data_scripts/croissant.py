"""The Croissant description of a published data set (MLCommons, version 1.0), made of its features.

The Hub makes one, too, from the Parquet files; this one is there wherever the files are, and adds
their checksums, the subsets, and what the numbers in the label columns stand for.
"""

import hashlib
from typing import Any

import datasets

from nearfar.schema import CONDITIONS, DOMAINS, UNKNOWN

from .credits import LICENSE_URLS, citation_of, homepage_of
from .features import row_features
from .publication import Publication

CONFORMS_TO = "http://mlcommons.org/croissant/1.0"
CROISSANT = "croissant.json"

_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_REPOSITORY = "repository"
_MEANINGS = {
    "near": "What the microphone at the machine hears.",
    "far": "What the microphone that hears the room hears; null where there is none.",
    "file_name": "Of the recording.",
    "machine_type": "Which machine.",
    "section": "Which part of the machine's data.",
    "domain": "Recording conditions.",
    "condition": "Ground truth, as far as the file name tells it.",
    "attributes": "The text after the index in the file name.",
    "year": "Of the challenge.",
}


def croissant(publication: Publication, *, version: str, url: str | None) -> dict[str, Any]:
    """Return the description, to be written as JSON.

    Args:
        publication: What there is.
        version: Of the rows, such as "1.0.0".
        url: Of the data set's page; None: it is not known, and the description's own folder counts.
    """
    page = url or "./"
    makers = "nearfar's simulated factory" if publication.simulated else "DCASE Task 2 organisers"
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": publication.title,
        "description": _described(publication),
        "license": [
            LICENSE_URLS.get(name, {"@type": "sc:CreativeWork", "name": name})
            for name in publication.licenses
        ],
        "url": page,
        "sameAs": [] if publication.simulated else [homepage_of(publication.year)],
        "creator": {"@type": "sc:Organization", "name": makers},
        "datePublished": str(publication.year),
        "version": version,
        "citeAs": citation_of(publication.year),
        "keywords": ["audio", "anomalous sound detection", "machine condition monitoring"],
        "isLiveDataset": False,
        "distribution": _distribution(publication, page),
        "recordSet": [
            _splits(publication),
            _labels("domains", DOMAINS),
            _labels("conditions", CONDITIONS),
            *(_clips(publication, machine_type) for machine_type in publication.machine_types),
        ],
    }


def _described(publication: Publication) -> str:
    clips = sum(file.num_clips for file in publication.files)
    return (
        f"{publication.title}: {clips} clips of {len(publication.machine_types)} machine types "
        f"({', '.join(publication.subsets)}). near is the microphone at the machine, far the one "
        "that hears the room; training clips are normal."
    )


def _distribution(publication: Publication, page: str) -> list[dict[str, Any]]:
    """Return the files: each with its checksum, and those of a machine type as a set."""
    listing = "".join(f"{file.sha256}  {file.path}\n" for file in publication.files)
    container = {
        "@type": "cr:FileObject",
        "@id": _REPOSITORY,
        "name": _REPOSITORY,
        "description": "The folder of all files; its checksum is of the list of theirs.",
        "contentUrl": page,
        "encodingFormat": "git+https",
        "sha256": hashlib.sha256(listing.encode()).hexdigest(),
    }
    objects = [
        {
            "@type": "cr:FileObject",
            "@id": file.path,
            "name": file.path.rpartition("/")[2],
            "containedIn": {"@id": _REPOSITORY},
            "contentUrl": file.path,
            "contentSize": f"{file.num_bytes} B",
            "encodingFormat": "application/x-parquet",
            "sha256": file.sha256,
        }
        for file in publication.files
    ]
    sets = [
        {
            "@type": "cr:FileSet",
            "@id": _files(machine_type),
            "name": _files(machine_type),
            "containedIn": {"@id": _REPOSITORY},
            "encodingFormat": "application/x-parquet",
            "includes": [
                pattern
                for patterns in publication.patterns(machine_type).values()
                for pattern in patterns
            ],
        }
        for machine_type in publication.machine_types
    ]
    return [container, *objects, *sets]


def _splits(publication: Publication) -> dict[str, Any]:
    """Return the splits that there are, as records with the semantics of splits."""
    meanings = {"train": "cr:TrainingSplit", "test": "cr:TestSplit"}
    present = {file.group.split for file in publication.files}
    return {
        "@type": "cr:RecordSet",
        "@id": "splits",
        "name": "splits",
        "dataType": "cr:Split",
        "key": {"@id": "splits/name"},
        "field": [
            {"@type": "cr:Field", "@id": "splits/name", "name": "name", "dataType": "sc:Text"},
            {"@type": "cr:Field", "@id": "splits/url", "name": "url", "dataType": "sc:URL"},
        ],
        "data": [
            {"splits/name": split, "splits/url": url}
            for split, url in meanings.items()
            if split in present
        ],
    }


def _labels(name: str, words: tuple[str, ...]) -> dict[str, Any]:
    """Return what the numbers of a label column stand for."""
    values = [(UNKNOWN, "unknown"), *enumerate(words)]
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "dataType": "sc:Enumeration",
        "key": {"@id": f"{name}/id"},
        "field": [
            {"@type": "cr:Field", "@id": f"{name}/id", "name": "id", "dataType": "sc:Integer"},
            {"@type": "cr:Field", "@id": f"{name}/name", "name": "name", "dataType": "sc:Text"},
        ],
        "data": [{f"{name}/id": value, f"{name}/name": word} for value, word in values],
    }


def _clips(publication: Publication, machine_type: str) -> dict[str, Any]:
    """Return the rows of one machine type, a field for each column and one for the split."""
    patterns = publication.patterns(machine_type)
    counts = {
        split: sum(
            file.num_clips
            for file in publication.of_machine(machine_type)
            if file.group.split == split
        )
        for split in patterns
    }
    source = {"fileSet": {"@id": _files(machine_type)}}
    split = {
        "@type": "cr:Field",
        "@id": f"{machine_type}/split",
        "name": "split",
        "description": "Of the clip, from its file's name.",
        "dataType": "sc:Text",
        "references": {"field": {"@id": "splits/name"}},
        "source": source
        | {
            "extract": {"fileProperty": "fullpath"},
            "transform": {"regex": r"^.*/(train|test)-\d{5}-of-\d{5}\.parquet$"},
        },
    }
    return {
        "@type": "cr:RecordSet",
        "@id": machine_type,
        "name": machine_type,
        "description": ", ".join(f"{name}: {number} clips" for name, number in counts.items()),
        "key": [
            {"@id": f"{machine_type}/split"},
            {"@id": f"{machine_type}/file_name"},
        ],
        "field": [
            split,
            *(
                _field(machine_type, column, feature, source)
                for column, feature in row_features().items()
            ),
        ],
    }


def _field(
    machine_type: str,
    column: str,
    feature: Any,  # noqa: ANN401 - datasets is untyped
    source: dict[str, Any],
) -> dict[str, Any]:
    """Return one column's field."""
    field: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"{machine_type}/{column}",
        "name": column,
        "description": _MEANINGS[column],
        "dataType": "sc:Text",
        "source": source | {"extract": {"column": column}},
    }
    if isinstance(feature, datasets.Audio):
        field["dataType"] = "sc:AudioObject"
        field["source"] |= {"transform": {"jsonPath": "bytes"}}
    elif isinstance(feature, datasets.ClassLabel):
        field["dataType"] = ["sc:Integer", "cr:Label"]
        field["references"] = {"field": {"@id": f"{column}s/id"}}
    elif feature.dtype.startswith("int"):
        field["dataType"] = "sc:Integer"
    return field


def _files(machine_type: str) -> str:
    return f"files-of-{machine_type}"
