import inspect
import json
import logging
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from scipy import stats

from modeling import (
    AsdConfig,
    AsdFeatureExtractor,
    KnnDetector,
    ReferenceBank,
    UnknownMachineError,
    encoder_fingerprint,
    hub_files,
    reference_bank,
)
from modeling.configuration_asd import FORMAT_VERSION
from modeling.detectors import BANK_DETECTORS
from nearfar.embeddings import EmbeddingTable

FAN, PUMP = "2026/fan/00", "2026/pump/00"


def table(count, *, machine=FAN, seed=0, prefix="train", **columns) -> EmbeddingTable:
    """Return normal clips of one machine, (count, 2 views, 1 band, 8)."""
    rng = np.random.default_rng([seed, *map(ord, machine + prefix)])
    values = {
        "embedding": (2 + rng.standard_normal((count, 2, 1, 8))).astype(np.float32),
        "file_names": [f"{prefix}_{i:04d}.wav" for i in range(count)],
        "machines": [machine] * count,
        "domains": ["target" if i % 5 == 4 else "source" for i in range(count)],
        "conditions": ["normal"] * count,
        "attributes": [""] * count,
    } | columns
    embedding = values.pop("embedding")
    return EmbeddingTable(
        embedding=embedding, **{k: np.array(v, dtype=object) for k, v in values.items()}
    )


def joined(*tables: EmbeddingTable) -> EmbeddingTable:
    columns = vars(tables[0])
    return EmbeddingTable(**{k: np.concatenate([vars(t)[k] for t in tables]) for k in columns})


@pytest.fixture
def config() -> AsdConfig:
    return AsdConfig(detector_options={"num_neighbors": 2})


@pytest.fixture
def bank(config) -> ReferenceBank:
    """Return a bank of two machines, the fan calibrated and guarded."""
    return ReferenceBank(
        config, fingerprint=torch.ones(2, 1, 8), guard={FAN: 0.25}, provenance={"year": 2026}
    ).fit(
        joined(table(20), table(12, machine=PUMP)),
        calibration=table(19, prefix="held_out"),
    )


@pytest.fixture
def queries() -> torch.Tensor:
    return torch.from_numpy(table(6, prefix="test", seed=1).embedding)


def test_a_threshold_is_the_percentile_of_calibration_scores_and_no_clip_at_it_is_anomalous(
    bank,
) -> None:
    scores = bank.anomaly_score(table(19, prefix="held_out").embedding, FAN)
    torch.testing.assert_close(bank.calibration_scores(FAN), scores.sort().values)
    threshold = bank.decide(0.0, FAN).threshold
    assert threshold == pytest.approx(np.quantile(scores.double().numpy(), 0.9))
    assert bank.rule(FAN) == {"name": "percentile", "quantile": 0.9, "scores": "held_out"}
    assert bank.decide(threshold, FAN).anomalous is False
    assert bank.decide(np.nextafter(threshold, np.inf), FAN).anomalous is True


def test_a_p_value_is_the_conformal_share_of_calibration_scores(bank) -> None:
    scores = bank.calibration_scores(FAN)
    assert len(scores) == 19
    assert bank.decide(scores[-1].item() + 1, FAN).p_value == 1 / 20
    assert bank.decide(scores[-1].item(), FAN).p_value == 2 / 20  # a tie counts
    assert bank.decide(scores[0].item(), FAN).p_value == 1.0
    p_values = [bank.decide(score, FAN).p_value for score in np.linspace(0, 2, 50)]
    assert p_values == sorted(p_values, reverse=True)


def test_p_values_of_new_normal_clips_are_uniform(config) -> None:
    bank = ReferenceBank(config).fit(table(200), calibration=table(400, prefix="held_out"))
    scores = bank.anomaly_score(table(1000, prefix="test").embedding)
    p_values = np.array([bank.decide(score, FAN).p_value for score in scores.tolist()])
    anomalous = np.mean([bank.decide(score, FAN).anomalous for score in scores.tolist()])
    # Four standard errors: of the empirical distribution, calibration clips included.
    for share in (0.05, 0.1, 0.5):
        error = 4 * np.sqrt(share * (1 - share) * (1 / 1000 + 1 / 400))
        assert abs(np.mean(p_values <= share) - share) < error
    assert abs(anomalous - 0.1) < 0.06


def test_without_calibration_there_is_a_score_and_no_verdict(bank, queries, caplog) -> None:
    score = bank.anomaly_score(queries, PUMP)[0].item()
    with caplog.at_level(logging.WARNING):
        decisions = [bank.decide(score, PUMP) for _ in range(3)]
    assert decisions == [(score, None, None, None)] * 3
    assert caplog.text.count("2026/pump/00 has no threshold") == 1
    assert bank.rule(PUMP) is None
    assert bank.calibration_scores(PUMP).shape == (0,)


def test_leave_one_out_needs_the_word_that_the_encoder_is_frozen(config) -> None:
    bank = ReferenceBank(config).fit(table(20), frozen_encoder=True)
    assert bank.rule(FAN) == {"name": "percentile", "quantile": 0.9, "scores": "leave_one_out"}
    scores = []
    for i in range(20):
        others = ReferenceBank(config).fit(table(20).take([j for j in range(20) if j != i]))
        scores.append(others.anomaly_score(table(20).embedding[[i]]))
    torch.testing.assert_close(bank.calibration_scores(FAN), torch.cat(scores).sort().values)


def test_held_out_clips_are_preferred_to_leave_one_out(config) -> None:
    bank = ReferenceBank(config).fit(
        joined(table(20), table(12, machine=PUMP)),
        calibration=table(5, prefix="held_out"),
        frozen_encoder=True,
    )
    assert bank.rule(FAN)["scores"] == "held_out"
    assert bank.rule(PUMP)["scores"] == "leave_one_out"


def folds_of(clips: EmbeddingTable, number: int) -> list[tuple[EmbeddingTable, EmbeddingTable]]:
    """Return pairs of references and held-out clips, every clip held out once."""
    fold = np.arange(len(clips)) % number
    return [(clips.take(fold != k), clips.take(fold == k)) for k in range(number)]


def test_cross_fitted_scores_are_those_of_banks_without_the_fold(config) -> None:
    clips = table(20)
    bank = ReferenceBank(config).fit(clips, folds=folds_of(clips, 4))
    assert bank.rule(FAN) == {"name": "percentile", "quantile": 0.9, "scores": "cross_fitted"}
    expected = {}
    for references, held_out in folds_of(clips, 4):
        scores = ReferenceBank(config).fit(references).anomaly_score(held_out.embedding, FAN)
        expected |= dict(zip(held_out.file_names, scores.tolist(), strict=True))
    calibration = bank.calibration(FAN)
    found = dict(zip(calibration.file_names, calibration.anomaly_scores.tolist(), strict=True))
    assert found == expected
    assert len(found) == 20
    all_references = bank.nearest_references(clips.embedding[:1], FAN, k=99)[0]
    assert len(all_references) == 20  # none is lost to the calibration


def test_cross_fitting_by_one_clip_at_a_time_is_leaving_one_out(config) -> None:
    clips = table(12)
    crossed = ReferenceBank(config).fit(clips, folds=folds_of(clips, 12))
    left_out = ReferenceBank(config).fit(clips, frozen_encoder=True)
    torch.testing.assert_close(crossed.calibration_scores(FAN), left_out.calibration_scores(FAN))
    assert crossed.threshold(FAN) == pytest.approx(left_out.threshold(FAN))


def test_folds_that_let_a_clip_judge_itself_are_refused(config) -> None:
    clips = table(12)
    (references, held_out), *others = folds_of(clips, 3)
    with pytest.raises(ValueError, match="4 calibration clips of 2026/fan/00 are references too"):
        ReferenceBank(config).fit(clips, folds=[(clips, held_out)])
    with pytest.raises(ValueError, match=r"train_0000.wav is held out in two folds"):
        ReferenceBank(config).fit(clips, folds=[(references, held_out)] * 2)
    with pytest.raises(ValueError, match="Give one of the two"):
        ReferenceBank(config).fit(clips, calibration=held_out, folds=others)
    with pytest.raises(ValueError, match=f"holds out clips of {PUMP} but has no references"):
        ReferenceBank(config).fit(clips, folds=[(references, table(3, machine=PUMP))])


def test_machines_without_folds_stay_uncalibrated(config) -> None:
    clips = table(12)
    both = joined(clips, table(12, machine=PUMP))
    bank = ReferenceBank(config).fit(both, folds=folds_of(clips, 3))
    assert bank.rule(FAN)["scores"] == "cross_fitted"
    assert bank.rule(PUMP) is None


def test_a_gamma_threshold_is_fitted_and_kept_for_machines_enrolled_later(config, tmp_path) -> None:
    bank = ReferenceBank(config, threshold="gamma", threshold_quantile=0.95)
    bank.fit(table(20), calibration=table(19, prefix="held_out"))
    assert bank.rule(FAN) == {"name": "gamma", "quantile": 0.95, "scores": "held_out"}
    scores = bank.calibration_scores(FAN).double().numpy()
    expected = stats.gamma.ppf(0.95, *stats.gamma.fit(scores, floc=0))
    assert bank.threshold(FAN) == pytest.approx(expected, rel=1e-6)
    bank.save_pretrained(tmp_path)
    loaded = ReferenceBank.from_pretrained(tmp_path)
    assert loaded.threshold(FAN) == bank.threshold(FAN)
    loaded.enroll("press", table(9), calibration=table(9, prefix="held_out"))
    assert loaded.rule("press")["name"] == "gamma"


def test_a_threshold_that_cannot_be_found_names_the_machine(config) -> None:
    same = table(9, prefix="held_out", embedding=table(1).embedding[[0] * 9])
    bank = ReferenceBank(config, threshold="gamma")
    with pytest.raises(ValueError, match=r"2026/fan/00: A gamma distribution .* all"):
        bank.fit(table(20), calibration=same)
    with pytest.raises(ValueError, match="threshold='median' is not one of"):
        ReferenceBank(config, threshold="median")


def test_a_domains_p_value_is_there_for_readers_before_and_after_saving(bank, tmp_path) -> None:
    scores = bank.calibration_scores(FAN)
    values = bank.domain_p_values(scores[-1].item() + 1, FAN)
    assert values["target"] == (1 / 4, 1 / 4)  # 3 of 19 clips are of the target domain
    assert values["source"] == (1 / 17, 1 / 17)
    bank.save_pretrained(tmp_path)
    loaded = ReferenceBank.from_pretrained(tmp_path)
    assert loaded.domain_p_values(0.5, FAN) == bank.domain_p_values(0.5, FAN)
    assert loaded.calibration(FAN).file_names == bank.calibration(FAN).file_names
    assert set(loaded.calibration(FAN).file_names) == set(table(19, prefix="held_out").file_names)


def test_a_bank_that_does_not_name_its_calibration_clips_still_loads(bank, tmp_path) -> None:
    bank.save_pretrained(tmp_path)
    path = tmp_path / "reference_bank.json"
    described = json.loads(path.read_text())
    del described["threshold_rule"]
    for machine in described["machines"].values():
        del machine["calibration_file_names"], machine["calibration_domains"]
    path.write_text(json.dumps(described))
    loaded = ReferenceBank.from_pretrained(tmp_path)
    assert loaded.decide(0.3, FAN) == bank.decide(0.3, FAN)
    assert loaded.calibration(FAN).file_names == [None] * 19
    assert loaded.domain_p_values(0.3, FAN) == {}


def test_a_machine_is_scored_by_its_own_references_only(config, bank, queries) -> None:
    alone = ReferenceBank(config).fit(table(12, machine=PUMP))
    assert torch.equal(alone.anomaly_score(queries), bank.anomaly_score(queries, "pump"))
    assert not torch.equal(bank.anomaly_score(queries, "fan"), bank.anomaly_score(queries, "pump"))


def test_fitting_again_forgets_and_enrolling_adds(bank, queries) -> None:
    before = bank.anomaly_score(queries, FAN)
    bank.enroll("press", table(6, machine="somewhere/else/07"), frozen_encoder=True)
    assert bank.machines == [FAN, PUMP, "local/press/00"]
    assert torch.equal(bank.anomaly_score(queries, FAN), before)
    assert bank.decide(0.0, "press").anomalous is False
    bank.fit(table(3, machine=PUMP))
    assert bank.machines == [PUMP]


def test_enrolling_a_name_again_replaces_it(bank, queries) -> None:
    bank.enroll("press", table(6))
    first = bank.anomaly_score(queries, "press")
    bank.enroll("press", table(6, seed=1), calibration=table(4, prefix="more"))
    assert not torch.equal(bank.anomaly_score(queries, "press"), first)
    assert bank.rule("press")["scores"] == "held_out"


@pytest.mark.parametrize("name", ["", "hall/press"])
def test_a_name_that_cannot_be_one_is_refused(bank, name) -> None:
    with pytest.raises(ValueError, match="cannot name a machine"):
        bank.enroll(name, table(6))


@pytest.mark.parametrize(
    ("references", "calibration", "message"),
    [
        (table(3, conditions=["normal", "anomaly", None]), None, "1 references of 2026/fan/00 are"),
        (
            table(3),
            table(2, prefix="test", conditions=[None, "anomaly"]),
            "1 calibration clips of 2026/fan/00 are anomalies, the first is test_0001.wav",
        ),
        (table(3), table(2), "2 calibration clips of 2026/fan/00 are references too"),
        (table(1), None, "2026/fan/00 has 1 reference clips, but a bank needs two or more"),
        (table(3), table(2, machine=PUMP), r"no references of \['2026/pump/00'\]"),
        (table(0), None, "got no clips"),
    ],
)
def test_clips_that_a_bank_must_not_learn_from_are_refused(
    config, references, calibration, message
) -> None:
    with pytest.raises(ValueError, match=message):
        ReferenceBank(config).fit(references, calibration=calibration)


def test_the_same_file_name_in_another_machine_is_another_clip(config) -> None:
    both = joined(table(5), table(5, machine=PUMP))
    ReferenceBank(config).fit(both, calibration=table(3, machine=PUMP, prefix="held_out"))


def test_a_profile_is_the_mean_over_a_machines_clips_and_changes_no_score(
    config, bank, queries, tmp_path
) -> None:
    before = bank.anomaly_score(queries, FAN)
    means = joined(table(5, prefix="profile"), table(4, machine=PUMP, prefix="profile"))
    bank.keep_profiles(means)
    expected = means.select(FAN).embedding.astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(bank.profiles[FAN], expected, rtol=1e-6)
    assert torch.equal(bank.anomaly_score(queries, FAN), before)
    for detector in ("knn", "kmeans"):  # neighbours and a model, whose states differ
        other = ReferenceBank(AsdConfig(detector=detector)).fit(means).keep_profiles(means)
        other.save_pretrained(tmp_path)
        loaded = ReferenceBank.from_pretrained(tmp_path)
        assert loaded.profiles.keys() == {FAN, PUMP}
        assert torch.equal(loaded.profiles[FAN], bank.profiles[FAN])
        assert torch.equal(loaded.anomaly_score(queries, FAN), other.anomaly_score(queries, FAN))


def test_a_machine_that_is_learned_again_has_no_profile_of_before(bank) -> None:
    bank.enroll("press", table(6)).keep_profiles(table(3, machine="local/press/00"))
    bank.keep_profiles(table(3))
    bank.enroll("press", table(6, seed=1))
    assert set(bank.profiles) == {FAN}
    assert not bank.fit(table(5)).profiles


def test_a_profile_of_anomalies_or_of_an_unknown_machine_is_refused(bank) -> None:
    with pytest.raises(ValueError, match="1 profile clips of 2026/fan/00 are anomalies"):
        bank.keep_profiles(table(2, conditions=["normal", "anomaly"]))
    with pytest.raises(UnknownMachineError, match="'2026/slider/00' has no references"):
        bank.keep_profiles(table(2, machine="2026/slider/00"))
    assert not bank.profiles


def test_an_unknown_machine_is_answered_with_what_the_bank_holds_and_what_to_do(bank) -> None:
    with pytest.raises(UnknownMachineError) as caught:
        bank.resolve("slider")
    assert isinstance(caught.value, KeyError)
    assert str(caught.value) == (
        "The reference bank has no machine 'slider'. It holds: '2026/fan/00', '2026/pump/00'. "
        "Give ReferenceBank.enroll normal clips of 'slider' first."
    )


def test_a_bare_machine_type_works_where_it_is_unambiguous(bank) -> None:
    assert bank.resolve("fan") == FAN
    bank.enroll("fan", table(4))
    assert bank.resolve(FAN) == FAN
    with pytest.raises(UnknownMachineError, match="'2026/fan/00', 'local/fan/00'"):
        bank.resolve("fan")


def test_a_single_machine_needs_no_name(config, bank, queries) -> None:
    alone = ReferenceBank(config).fit(table(20))
    assert alone.resolve(None) == FAN
    assert alone.anomaly_score(queries).shape == (6,)
    with pytest.raises(UnknownMachineError, match="Which machine"):
        bank.anomaly_score(queries)


def test_an_empty_bank_says_so(config, queries) -> None:
    with pytest.raises(UnknownMachineError, match="It holds: none"):
        ReferenceBank(config).anomaly_score(queries, "fan")


def test_the_guard_decides_the_front_end_strength_of_its_machines_only(bank) -> None:
    assert bank.front_end_strength("fan") == 0.25
    assert bank.front_end_strength("pump") == 1.0


def test_a_guard_outside_its_range_is_refused(config) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        ReferenceBank(config, guard={FAN: 1.5})


def test_nearest_references_are_named(bank) -> None:
    references = table(20)
    (clip,) = bank.nearest_references(torch.from_numpy(references.embedding[[4]]), "fan", k=3)
    assert clip[0]["file_name"] == "train_0004.wav"
    assert clip[0]["domain"] == "target"
    assert clip[0]["distance"] == pytest.approx(0, abs=1e-6)
    assert [reference["distance"] for reference in clip] == sorted(r["distance"] for r in clip)
    json.dumps(clip)  # plain Python values


@pytest.mark.parametrize("detector", BANK_DETECTORS)
def test_a_bank_of_any_detector_judges_names_references_and_comes_back(
    detector, queries, tmp_path
) -> None:
    choice = SimpleNamespace(detector=detector, detector_options=None)
    bank = ReferenceBank(choice).fit(table(20), frozen_encoder=True)
    assert bank.decide(bank.anomaly_score(queries)[0].item(), FAN).p_value <= 1
    (nearest,) = bank.nearest_references(torch.from_numpy(table(20).embedding[[4]]), k=2)
    assert [nearest[0][key] for key in ("file_name", "domain")] == ["train_0004.wav", "target"]
    assert nearest[0]["distance"] < 1e-6 < nearest[1]["distance"]
    bank.save_pretrained(tmp_path)
    assert all_answers(ReferenceBank.from_pretrained(tmp_path), queries) == all_answers(
        bank, queries
    )


def test_a_bank_of_constant_embeddings_tells_what_is_not_constant(config) -> None:
    """As of a microphone that hears nothing: every score is the same, and no rule breaks."""
    flat = np.ones((10, 2, 1, 8), dtype=np.float32)
    held_out = table(9, prefix="held_out", embedding=flat[:9])
    bank = ReferenceBank(config).fit(table(10, embedding=flat), calibration=held_out)
    same, other = (
        bank.decide(bank.anomaly_score(torch.from_numpy(clip)).item())
        for clip in (flat[:1], table(1, seed=3).embedding)
    )
    assert (same.anomalous, same.p_value) == (False, 1.0)
    assert (other.anomalous, other.p_value) == (True, 0.1)
    with pytest.raises(ValueError, match=f"{FAN}: A gamma distribution .*'percentile'"):
        ReferenceBank(config, threshold="gamma").fit(
            table(10, embedding=flat), calibration=held_out
        )


def test_a_score_that_is_nan_gets_no_verdict(bank) -> None:
    with pytest.raises(ValueError, match="is NaN"):
        bank.decide(float("nan"), FAN)


def test_a_bank_is_refused_behind_an_extractor_of_other_settings(
    config, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(reference_bank, "encoder_fingerprint", lambda _: torch.ones(2, 1, 8))
    model = torch.nn.Linear(1, 1)
    extractor = AsdFeatureExtractor(peak_normalize=True)
    bank = ReferenceBank(config, fingerprint=torch.ones(2, 1, 8), extractor=extractor)
    bank.fit(table(4)).save_pretrained(tmp_path)
    loaded = ReferenceBank.from_pretrained(tmp_path)
    loaded.check_encoder(model, extractor)
    loaded.check_encoder(model, AsdFeatureExtractor(peak_normalize=True, min_num_samples=400))
    loaded.check_encoder(model)  # nothing is said of an extractor
    with pytest.raises(ValueError, match=r"with peak_normalize=True, but .*peak_normalize=False"):
        loaded.check_encoder(model, AsdFeatureExtractor())
    described = json.loads((tmp_path / "reference_bank.json").read_text())
    del described["extractor_settings"]  # as the first versions wrote it
    (tmp_path / "reference_bank.json").write_text(json.dumps(described))
    ReferenceBank.from_pretrained(tmp_path).check_encoder(model, AsdFeatureExtractor())


def test_a_saved_bank_may_be_read_by_whom_the_umask_lets(bank, tmp_path) -> None:
    (tmp_path / "other").touch()
    bank.save_pretrained(tmp_path)
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_an_unknown_detector_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="detector='consine' is not one of 'knn'"):
        ReferenceBank(SimpleNamespace(detector="consine", detector_options=None))


def all_answers(bank: ReferenceBank, queries: torch.Tensor) -> list:
    return [
        (
            bank.anomaly_score(queries, name).tolist(),
            bank.decide(0.3, name),
            bank.rule(name),
            bank.calibration_scores(name).tolist(),
            bank.nearest_references(queries, name, k=2),
            bank.front_end_strength(name),
        )
        for name in bank.machines
    ]


def test_a_saved_bank_answers_as_before_and_saving_it_again_changes_no_byte(
    bank, queries, tmp_path
) -> None:
    bank.enroll("Förderband 3", table(4, domains=[None] * 4), frozen_encoder=True)
    bank.save_pretrained(tmp_path / "once")
    loaded = ReferenceBank.from_pretrained(tmp_path / "once")
    assert loaded.machines == bank.machines
    assert all_answers(loaded, queries) == all_answers(bank, queries)
    assert loaded.provenance == {"year": 2026}
    assert torch.equal(loaded.fingerprint, bank.fingerprint)
    loaded.save_pretrained(tmp_path / "twice")
    names = ["reference_bank.json", "reference_bank.safetensors"]
    for folder in ("once", "twice"):
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == names
    for name in names:
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()


def test_the_file_says_every_option_of_the_detector_also_those_left_at_their_default(
    bank, tmp_path
) -> None:
    bank.save_pretrained(tmp_path)
    described = json.loads((tmp_path / "reference_bank.json").read_text(encoding="utf-8"))
    parameters = inspect.signature(KnnDetector).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    assert described["detector_options"] == defaults | {"num_neighbors": 2}
    assert defaults["num_neighbors"] == 1
    assert described["format_version"] == FORMAT_VERSION
    assert described["machines"][FAN]["rule"]["quantile"] == 0.9


def test_a_loaded_bank_can_learn_more(bank, queries, tmp_path) -> None:
    bank.save_pretrained(tmp_path)
    loaded = ReferenceBank.from_pretrained(tmp_path)
    for either in (bank, loaded):
        either.enroll("press", table(6), frozen_encoder=True)
    assert all_answers(loaded, queries) == all_answers(bank, queries)


def test_a_bank_that_cannot_be_written_leaves_the_old_one(bank, queries, tmp_path) -> None:
    bank.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    bank.enroll("press", table(6))
    bank.provenance["made_by"] = object()  # JSON has no such value
    with pytest.raises(TypeError):
        bank.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def truncate(folder) -> None:
    path = folder / "reference_bank.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def tamper(folder) -> None:
    path = folder / "reference_bank.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut_json(folder) -> None:
    path = folder / "reference_bank.json"
    path.write_text(path.read_text(encoding="utf-8")[:200], encoding="utf-8")


def make_newer(folder) -> None:
    path = folder / "reference_bank.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(described | {"format_version": FORMAT_VERSION + 1}))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (truncate, ValueError, "is damaged, or is not the file"),
        (tamper, ValueError, "is damaged, or is not the file"),
        (cut_json, ValueError, "reference_bank.json of .* is damaged"),
        (make_newer, ValueError, "Update nearfar"),
        (
            lambda folder: (folder / "reference_bank.safetensors").unlink(),
            FileNotFoundError,
            "has no reference_bank.safetensors",
        ),
        (
            lambda folder: (folder / "reference_bank.json").unlink(),
            FileNotFoundError,
            "has no reference_bank.json. Fit a ReferenceBank",
        ),
    ],
)
def test_a_bank_that_is_not_whole_is_refused(bank, tmp_path, damage, error, message) -> None:
    bank.save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=message):
        ReferenceBank.from_pretrained(tmp_path)


def test_a_bank_accepts_its_encoder_in_half_precision_and_refuses_another(
    tiny_model, config
) -> None:
    model = tiny_model(layers=[1, 2], front_end="complex_least_squares", channels=["near", "far"])
    bank = ReferenceBank(config, fingerprint=encoder_fingerprint(model))
    bank.check_encoder(model)
    bank.check_encoder(model.asd)
    for dtype in (torch.bfloat16, torch.float16):
        half = type(model)(model.config)
        half.load_state_dict(model.state_dict())
        bank.check_encoder(half.to(dtype))
    with torch.no_grad():
        for parameter in model.asd.encoder.layers[-1].parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    with pytest.raises(ValueError, match="another encoder: their fingerprints differ"):
        bank.check_encoder(model)
    with pytest.raises(ValueError, match=r"another encoder: it gives \(1, 1, 32\)"):
        bank.check_encoder(tiny_model())


def test_a_bank_without_fingerprint_belongs_to_no_model(config, tiny_model) -> None:
    with pytest.raises(ValueError, match="encoder_fingerprint"):
        ReferenceBank(config).check_encoder(tiny_model())


def test_a_fingerprint_is_repeatable_and_leaves_the_model_as_it_was(tiny_model) -> None:
    model = tiny_model(encoder={"hidden_dropout": 0.5})
    once = encoder_fingerprint(model)
    assert torch.equal(encoder_fingerprint(model.train()), once)  # no dropout
    model.asd.encoder.eval()  # frozen while the head is trained
    modes = [module.training for module in model.modules()]
    assert torch.equal(encoder_fingerprint(model), once)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_repository_is_asked_for_both_files_at_one_revision_with_one_token(
    bank, queries, tmp_path, monkeypatch
) -> None:
    bank.save_pretrained(tmp_path)
    asked = []

    def download(repository, name, **origin):
        asked.append((repository, name, *origin.values()))
        return str(tmp_path / name)

    monkeypatch.setattr(hub_files, "hf_hub_download", download)
    loaded = ReferenceBank.from_pretrained("someone/fan", revision="v2", token="t")
    assert all_answers(loaded, queries) == all_answers(bank, queries)
    names = ("reference_bank.json", "reference_bank.safetensors")
    assert asked == [("someone/fan", name, "v2", "t", False) for name in names]


@pytest.mark.parametrize(
    ("answer", "known", "error", "message"),
    [
        (EntryNotFoundError("404"), None, FileNotFoundError, "has no reference_bank.json"),
        (LocalEntryNotFoundError("offline"), None, ConnectionError, "the Hub cannot be asked"),
        (
            LocalEntryNotFoundError("offline"),
            huggingface_hub._CACHED_NO_EXIST,
            FileNotFoundError,
            "has no reference_bank.json",
        ),
    ],
)
def test_a_bank_that_is_not_there_is_told_from_a_hub_that_cannot_be_asked(
    monkeypatch, answer, known, error, message
) -> None:
    def download(*args, **origin):
        raise answer

    monkeypatch.setattr(hub_files, "hf_hub_download", download)
    monkeypatch.setattr(hub_files, "try_to_load_from_cache", lambda *args, **options: known)
    with pytest.raises(error, match=message) as caught:
        ReferenceBank.from_pretrained("someone/fan")
    assert caught.type is error
