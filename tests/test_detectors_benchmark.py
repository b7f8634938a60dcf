"""The benchmark of detectors at toy size: embeds once, runs what is new, tells both figures."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import detectors, lora
from benchmarks.detectors import CASES, PLAIN, Case
from benchmarks.small_systems import SYSTEMS
from nearfar.arguments import parse_arguments
from nearfar.files import read_json
from tests.scripts import run_script
from tests.small_systems import small_systems_at_toy_size, tiny_encoder

SIZES = {"num_machines": 2, "source_train": 12, "target_train": 6, "test_per_group": 2}
CHOSEN = [PLAIN, "bands apart, VarMin", "near and far"]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines of train.py that the benchmark runs, here for two steps at small size."""
    return small_systems_at_toy_size(monkeypatch, detectors, SIZES)


@pytest.mark.slow
def test_clips_are_embedded_once_and_only_what_is_new_is_measured(
    trained: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(detectors, "FUSION_STEP", 0.5)
    words = ["--output_dir", tmp_path, "--encoder_checkpoint", tiny_encoder(tmp_path / "encoder")]
    words += ["--seeds", 80, "--detectors"]
    run_script(detectors, [*words, *CHOSEN], monkeypatch)
    table = capsys.readouterr().out
    assert len(trained) == 2
    assert not list(tmp_path.rglob("*_run"))
    assert not list(tmp_path.rglob("*.wav"))
    folder = tmp_path / "seed_080"
    embedded, parts = detectors.read_embeddings(folder / "frozen")
    assert embedded.embedding.shape[:3] == (2 * (18 + 8), 3, 8)
    counts = {part: int((parts == part).sum()) for part in set(parts)}
    assert counts == {"reference": 24, "calibration": 12, "test": 16}
    assert set(embedded.conditions[parts != "test"]) == {"normal"}
    result = read_json(folder / "detectors.json")
    assert {name: list(cases) for name, cases in result["systems"].items()} == {
        "frozen": CHOSEN,
        "fine-tuned": [PLAIN, "near and far"],  # its bands are one vector
    }
    projected, _ = detectors.read_embeddings(folder / "fine-tuned")
    assert projected.embedding.shape[:3] == (2 * (18 + 8), 3, 1)
    assert result["fusions"].keys() == detectors.FUSIONS.keys()
    for fused in result["fusions"].values():
        assert fused["optimistic"] >= max(fused["even weights"] - 1e-9, 0)

    monkeypatch.setattr(detectors, "embed_seed", None)  # cannot be called
    run_script(detectors, [*words, *CHOSEN], monkeypatch)
    assert capsys.readouterr().out == table[table.index("frozen, official") :]
    scored = []
    monkeypatch.setattr(
        detectors,
        "score",
        lambda case, *others, f=detectors.score: scored.append(case) or f(case, *others),
    )
    run_script(detectors, [*words, *CHOSEN, "LOF"], monkeypatch)
    assert scored.count(CASES["LOF"]) == 2
    assert CASES["near and far"] not in scored


def test_a_case_scores_its_channels_and_bands_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {
            "file_name": f"{i}.wav",
            "machine": "2026/fan/00",
            "domain": "source",
            "condition": "normal",
            "attributes": "",
        }
        for i in range(12)
    ]
    embedding = rng.normal(size=(12, 3, 2, 4)).astype(np.float32)
    parts = np.array(["reference"] * 6 + ["calibration"] * 2 + ["test"] * 4, dtype=object)

    def scores(case: Case, values: np.ndarray) -> np.ndarray:
        table = detectors.EmbeddingTable.from_clips(values, rows)
        return detectors.score(case, table, parts)[0].anomaly_scores

    def distances(values: np.ndarray) -> np.ndarray:
        unit = values / np.linalg.norm(values, axis=-1, keepdims=True)
        return 1 - np.einsum("m...d,n...d->mn...", unit[8:], unit[:6])

    near = embedding[:, 0]
    joined = distances(near.reshape(12, 8)).min(axis=1)
    np.testing.assert_allclose(scores(CASES[PLAIN], embedding), joined, rtol=1e-5)
    apart = distances(near).min(axis=1).mean(axis=1)
    np.testing.assert_allclose(scores(CASES["bands apart"], embedding), apart, rtol=1e-5)
    changed = embedding.copy()
    changed[:, 1:] = rng.normal(size=changed[:, 1:].shape)
    np.testing.assert_array_equal(scores(CASES[PLAIN], changed), scores(CASES[PLAIN], embedding))
    far = scores(CASES["far only"], embedding)
    np.testing.assert_allclose(
        far, distances(embedding[:, 1].reshape(12, 8)).min(axis=1), rtol=1e-5
    )


def test_without_an_encoder_one_is_pre_trained_as_by_the_benchmark_of_objectives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, used = [], []

    def pretrain(names: list[str], folder: Path, **options: Any) -> None:
        inspect.signature(pretrain_for_real).bind(names, folder, **options)  # it takes these
        made.append((names, folder))

    pretrain_for_real = lora.pretrain
    monkeypatch.setattr(lora, "pretrain", pretrain)
    monkeypatch.setattr(detectors, "embed_seed", lambda *others, **_: used.append(others[3]))
    monkeypatch.setattr(detectors, "measure_seed", lambda *_: {})
    for name in ("format_detectors", "format_fusions"):
        monkeypatch.setattr(detectors, name, lambda *_: "")
    run_script(detectors, ["--output_dir", tmp_path, "--seeds", 80], monkeypatch)
    assert made == [(["beats"], tmp_path / "pretraining")]
    assert used == [tmp_path / "pretraining" / "beats" / "encoder"]


def test_every_case_has_options_that_its_detector_takes() -> None:
    for name, case in CASES.items():
        config = detectors.AsdConfig(detector=case.detector, detector_options=case.options)
        assert detectors.ReferenceBank(config)._new_detector() is not None, name
        assert set(case.channels) <= set(detectors.CHANNELS)
        assert case.bands in detectors.BANDS["frozen"]
    for members in detectors.FUSIONS.values():
        assert all(case in detectors.cases_of(system, list(CASES)) for system, case in members)


def test_the_tables_compare_with_plain_1_nn_and_tell_nested_beside_optimistic() -> None:
    def result(shift: float) -> dict[str, Any]:
        def values(official: float) -> dict[str, float]:
            return dict.fromkeys(("official_score", "auc_source", "auc_target", "pauc"), official)

        return {
            "systems": {s: {PLAIN: values(0.6), "LOF": values(0.62 + shift)} for s in SYSTEMS},
            "fusions": {
                name: dict(zip(detectors.FIGURES, (0.6, 0.61, 0.62 + shift, 0.66), strict=True))
                for name in detectors.FUSIONS
            },
        }

    results = [result(-0.01), result(0.01)]
    lines = detectors.format_detectors([PLAIN, "LOF"], results).splitlines()
    assert lines[1].split() == ["1-NN", "60.00", "(0.00)", "60.00", "60.00", "60.00"]
    # Differences 1 and 3: their standard error is 1, times Student's 12.7 for two.
    assert lines[2].endswith("+2.00 (-10.71 to +14.71), 2 of 2")
    assert lines[-1].startswith("2 factories; of 1 intervals")
    fused = detectors.format_fusions(results).splitlines()
    assert fused[1].split() == ["both", "encoders", "60.00", "61.00", "62.00", "66.00"]
    assert fused[3] == "  nested minus optimistic: -4.00 (-16.71 to +8.71), 0 of 2"
    assert "LOF" in detectors.format_detectors([PLAIN, "LOF"], results[:1])


def test_factories_are_none_of_those_for_tuning_and_unknown_detectors_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = parse_arguments(detectors.DetectorArguments, ["--output_dir", str(tmp_path)])
    assert args.seeds == [80, 81, 82, 83, 84]
    with pytest.raises(ValueError, match=r"\['2-NN'\] are unknown"):
        run_script(detectors, ["--output_dir", tmp_path, "--detectors", "2-NN"], monkeypatch)
