"""Whose licence a checkpoint comes under: a ban on commercial use is kept, whoever made it."""

from pathlib import Path

import pytest

from nearfar.licenses import (
    card_license,
    license_metadata,
    license_section,
    members_metadata,
    members_section,
    stated_license,
)


@pytest.mark.parametrize(
    ("encoder", "data", "expected"),
    [
        (None, None, "apache-2.0"),
        ("mit", None, "mit"),
        ("MIT", "cc-by-4.0", "mit"),
        ("mit", "cc-by-nc-sa-4.0", "cc-by-nc-sa-4.0"),
        ("cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-4.0"),
        (None, "CC-BY-NC-4.0", "cc-by-nc-4.0"),
        ("ACME Research-only", None, "other\nlicense_name: acme-research-only"),
        ("mit", "Institute non-commercial", "other\nlicense_name: institute-non-commercial"),
    ],
)
def test_the_strictest_licence_counts(encoder, data, expected) -> None:
    assert license_metadata(encoder, data) == expected
    recipe = {"encoder_license": encoder, "data_license": data, "encoder_checkpoint": "x.pt"}
    forbidden = "Commercial use is not allowed" in license_section(recipe)
    assert forbidden == (expected not in ("apache-2.0", "mit"))


def test_the_licence_of_an_encoder_is_its_cards_or_its_authors(tmp_path: Path) -> None:
    assert stated_license(None, "nearfar_beats") is None
    assert stated_license(tmp_path / "BEATs_iter3.pt", "nearfar_beats") == "mit"
    assert stated_license(tmp_path, "nearfar_eat") == "mit"
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    assert stated_license(tmp_path, "nearfar_eat") == "cc-by-nc-4.0"
    (tmp_path / "README.md").write_text("No metadata.\n")
    assert stated_license(tmp_path, "nearfar_eat") == "mit"


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (["apache-2.0", "apache-2.0"], "apache-2.0"),
        (["apache-2.0", "mit"], "mit"),
        (["mit", None], "unknown"),
        ([None, "cc-by-nc-4.0"], "cc-by-nc-4.0"),
        (["mit", "acme-research-only"], "other\nlicense_name: acme-research-only"),
    ],
)
def test_a_fusion_is_as_free_as_its_strictest_member(members, expected, tmp_path: Path) -> None:
    assert members_metadata(members) == expected
    told = members_section(dict(zip("ab", members, strict=True)))
    assert ("Commercial use is not allowed" in told) == ("-nc" in expected or "only" in expected)
    assert ("not given" in told) == (None in members)
    (tmp_path / "README.md").write_text(f"---\nlicense: {expected}\n---\n")
    assert card_license(tmp_path / "none") is None
    own = None if expected == "unknown" else expected.rpartition(" ")[2]
    assert card_license(tmp_path) == own  # a fusion can be a member


def test_an_unknown_licence_is_said_to_be_unknown() -> None:
    told = license_section({"encoder_checkpoint": "x.pt"})
    assert "The licence of the encoder's weights (x.pt) was not given" in told
    assert "The licence of the recordings was not given" in told
    assert "nobody else's weights" in license_section({"encoder_checkpoint": None})
