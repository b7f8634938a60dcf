"""File names of DCASE Task 2 clips, 2020 to 2026: the only place that reads or builds one."""

import re
from dataclasses import dataclass
from typing import Self

from nearfar.schema import CONDITIONS, DOMAINS

YEARS = tuple(range(2020, 2027))
SPLITS = ("train", "test")
NO_ATTRIBUTE = "noAttribute"  # what the names of a machine without attributes say instead

_SECTION_NAME = re.compile(
    r"section_(?P<section>[0-9]{2})"
    r"(?:_(?P<domain>source|target))?"
    r"(?:_(?P<split>train|test))?"
    r"(?:_(?P<condition>normal|anomaly))?"
    r"(?:_(?P<supplemental>machine|noise))?"
    r"_(?P<index>[0-9]+)(?:_(?P<attributes>[^/]*))?\.wav"
)
_ID_NAME = re.compile(
    r"(?:(?P<condition>normal|anomaly)_)?id_(?P<section>[0-9]{2})_(?P<index>[0-9]+)\.wav"
)
_EXAMPLES = (
    "'section_00_source_train_normal_0000_<attributes>.wav' (2021 to 2026), "
    "'section_00_0000.wav' (evaluation sets of 2022 to 2026), "
    "'section_03_source_test_0000.wav' (evaluation set of 2021) "
    "or 'normal_id_00_00000000.wav' (2020)"
)

# What stands between the section and the index -> the years whose sets hold such names.
_YEARS_OF_FORM = {
    ("domain", "split", "condition"): YEARS[1:],
    ("domain", "split"): (2021,),  # its evaluation set: domain known, condition not
    ("domain", "condition"): (2024,),  # RoboticArm's revealed names, without "test"
    ("split",): YEARS[2:],  # evaluation sets, as the READMEs write them
    (): YEARS[2:],  # evaluation sets, as they are
    ("supplemental",): (2025,),
}
_YEARS_OF_ID_FORM: dict[tuple[str, ...], tuple[int, ...]] = {(): (2020,), ("condition",): (2020,)}
_VOCABULARY = {
    "domain": DOMAINS,
    "split": SPLITS,
    "condition": CONDITIONS,
    "supplemental": ("machine", "noise"),
    "prefix": ("section", "id"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipName:
    """What a clip's file name says; a field that the name leaves out is None.

    Indices are as written: they start at 1 in 2024, and some machines count through their groups.

    Attributes:
        section: 0 to 99; in 2020 the machine's id.
        index: Number of the clip.
        domain: "source" or "target".
        split: "train" or "test".
        condition: "normal" or "anomaly".
        attributes: The text after the index, as it stands; "" if the name ends in an underscore.
        supplemental: "machine" or "noise", in the supplemental folder of 2025.
        prefix: The word before the section: "section", or "id" in 2020.
        index_width: Digits of the index; None takes the official ones, 4, or 8 in 2020.
    """

    section: int
    index: int
    domain: str | None = None
    split: str | None = None
    condition: str | None = None
    attributes: str | None = None
    supplemental: str | None = None
    prefix: str = "section"
    index_width: int | None = None

    def __post_init__(self) -> None:
        for field, words in _VOCABULARY.items():
            value = getattr(self, field)
            if value is not None and value not in words:
                raise ValueError(f"{field}={value!r} is not one of {', '.join(map(repr, words))}.")
        if self.index_width is None:
            object.__setattr__(self, "index_width", 8 if self.prefix == "id" else 4)
        if not 0 <= self.section <= 99:
            raise ValueError(f"section={self.section} does not fit two digits. Use 0 to 99.")
        if self.index < 0 or len(str(self.index)) > self._width:
            raise ValueError(
                f"index={self.index} does not fit {self._width} digits. Pass a larger index_width."
            )
        if self.attributes is not None and (self.prefix == "id" or "/" in self.attributes):
            raise ValueError(
                f"attributes={self.attributes!r} cannot be written into a name: a name of 2020 "
                "has none, and no name has a slash. Leave them out."
            )
        if not self.years:
            raise ValueError(
                f"No DCASE clip name gives just {', '.join(self._form) or 'an index'} after "
                f"{self.prefix!r}. Expected the parts of {_EXAMPLES}."
            )

    @classmethod
    def parse(cls, name: str) -> Self:
        """Read a base name such as "section_00_0000.wav"; the inverse of `format`.

        Raises:
            ValueError: No year has names like it.
        """
        for prefix, pattern in (("section", _SECTION_NAME), ("id", _ID_NAME)):
            match = pattern.fullmatch(name)
            if match is None:
                continue
            fields = match.groupdict()
            section, index = fields.pop("section"), fields.pop("index")
            try:
                return cls(
                    section=int(section),
                    index=int(index),
                    index_width=len(index),
                    prefix=prefix,
                    **fields,
                )
            except ValueError:
                break  # each part is right, but no year puts them together like this
        raise ValueError(
            f"{name!r} is not a DCASE clip name. Expected {_EXAMPLES}. "
            "Rename the clip, or move it out of the folder."
        )

    def format(self) -> str:
        """Return the base name; the inverse of `parse`."""
        index = f"{self.index:0{self._width}d}"
        if self.prefix == "id":
            condition = "" if self.condition is None else f"{self.condition}_"
            return f"{condition}id_{self.section:02d}_{index}.wav"
        origin = (self.domain, self.split, self.condition, self.supplemental)
        words = [f"section_{self.section:02d}", *origin, index, self.attributes]
        return "_".join(word for word in words if word is not None) + ".wav"

    def attribute_pairs(self) -> list[tuple[str, str]] | None:
        """Return (key, value) in the order of the name; a key may come twice.

        `mic_2_mic_1` is the id of the near microphone, then that of the far one. A machine without
        attributes has an empty list. None: the name does not tell, or, as in 2021
        (`strength_1_ambient`), its text is not made of pairs.
        """
        if self.attributes is None:
            return None
        if self.attributes in ("", NO_ATTRIBUTE):
            return []
        words = self.attributes.split("_")
        keys, values = words[::2], words[1::2]
        if len(keys) != len(values) or not all(words) or not all(key[0].isalpha() for key in keys):
            return None
        return list(zip(keys, values, strict=True))

    @property
    def years(self) -> tuple[int, ...]:
        """The years whose official sets hold names of this form."""
        if self.split == "train" and self.condition is None:
            return ()  # every training name says that its clip is normal
        forms = _YEARS_OF_ID_FORM if self.prefix == "id" else _YEARS_OF_FORM
        return forms.get(self._form, ())

    @property
    def _form(self) -> tuple[str, ...]:
        origin = ("domain", "split", "condition", "supplemental")
        return tuple(field for field in origin if getattr(self, field) is not None)

    @property
    def _width(self) -> int:
        assert self.index_width is not None  # __post_init__ fills it
        return self.index_width
