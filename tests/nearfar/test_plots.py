"""Plots are pictures, of whatever is known of the clips, and need no window."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image, pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nearfar.metrics import overall_metrics
from nearfar.plots import (
    COLORS,
    plot_anomaly_map,
    plot_calibration,
    plot_drift,
    plot_embeddings,
    plot_machine,
    plot_spectrograms,
    power_db,
)


def column(values: list[str | None]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


KNOWN = [
    (domain, condition) for domain in ("source", "target") for condition in ("normal", "anomaly")
]
BOTH = ["source normals", "target normals"]
CASES = {  # (domain, condition) of each clip, and the ROC curves they allow
    "labelled": (KNOWN * 5, BOTH),
    "no domains": ([(None, condition) for _, condition in KNOWN] * 5, ["all normals"]),
    "some domains": ([*KNOWN * 3, (None, "normal"), (None, "anomaly")], BOTH),
    "normals only": ([("source", "normal"), ("target", "normal")] * 5, []),
    "anomalies only": ([("source", "anomaly")] * 5, []),
    "unlabelled": ([(None, None)] * 5, []),
    "some unlabelled": ([*KNOWN * 3, ("source", None), (None, None)], BOTH),
    "one clip": ([("source", "normal")], []),
}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """Return a list that receives the panels of each figure saved."""
    panels: list[Axes] = []
    save = Figure.savefig

    def watched(figure: Figure, *args: object, **kwargs: object) -> None:
        panels.extend(figure.axes)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", watched)
    return panels


def plot(path: Path, pairs: list[tuple[str | None, str | None]], **options: float | None) -> None:
    scores = np.random.default_rng(0).normal(size=len(pairs))
    domains, conditions = ([pair[i] for pair in pairs] for i in (0, 1))
    plot_machine(path, "2026/fan/00", scores, column(conditions), column(domains), **options)


@pytest.mark.parametrize(("pairs", "curves"), CASES.values(), ids=CASES)
def test_every_kind_of_table_gives_a_real_picture_without_a_warning(
    tmp_path: Path,
    drawn: list[Axes],
    pairs: list[tuple[str | None, str | None]],
    curves: list[str],
) -> None:
    path = tmp_path / "plots" / "fan.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot(path, pairs)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = image.imread(path)
    assert pixels.ndim == 3
    assert pixels.std() > 0.05  # it is not blank
    histogram, roc = drawn
    entries = [text.get_text() for text in histogram.get_legend().get_texts()]
    assert len(entries) == len(set(pairs))
    counted = sum(int(entry.rsplit("(", 1)[1].rstrip(")")) for entry in entries)
    assert counted == len(pairs)  # every clip is in a histogram
    labels = [line.get_label() for line in roc.lines if not str(line.get_label()).startswith("_")]
    assert labels == curves
    assert [text.get_text()[:6] for text in roc.texts] == ([] if curves else ["no ROC"])


def test_the_curve_of_a_domain_sees_its_normals_and_all_anomalies(
    tmp_path: Path, drawn: list[Axes]
) -> None:
    means = {("source", "normal"): 0.0, ("target", "normal"): 2.0}
    means |= {("source", "anomaly"): 3.0, ("target", "anomaly"): 1.0, ("source", None): 9.0}
    pairs = list(means) * 5
    domains, conditions = column([p[0] for p in pairs]), column([p[1] for p in pairs])
    scores = np.array([means[pair] for pair in pairs])
    plot_machine(tmp_path / "fan.png", "2026/fan/00", scores, conditions, domains)
    areas = {
        line.get_label(): np.trapezoid(line.get_ydata(), line.get_xdata())
        for line in drawn[1].lines
    }
    assert areas["source normals"] == 1.0
    assert areas["target normals"] == 0.5


def test_the_shaded_area_is_the_one_the_pauc_measures(tmp_path: Path, drawn: list[Axes]) -> None:
    rng = np.random.default_rng(3)
    pairs = KNOWN * 30
    domains, conditions = column([p[0] for p in pairs]), column([p[1] for p in pairs])
    scores = rng.normal(size=len(pairs)) + (conditions == "anomaly")
    plot_machine(tmp_path / "fan.png", "2026/fan/00", scores, conditions, domains)
    (shade,) = [c for c in drawn[1].collections if "pAUC" in str(c.get_label())]
    outline = shade.get_paths()[0].vertices
    x, y = outline[:, 0], outline[:, 1]
    area = abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2  # the shoelace formula
    pauc = overall_metrics(conditions == "anomaly", scores).pauc
    assert 0.5 * (1 + (area - 0.005) / (0.1 - 0.005)) == pytest.approx(pauc)
    assert x.max() == pytest.approx(0.1)


def test_the_calibration_curve_is_the_share_of_normals_up_to_each_rate(
    tmp_path: Path, drawn: list[Axes]
) -> None:
    p_values = np.r_[[0.1, 0.2, 0.2, 0.9], [0.5, np.nan], np.zeros(6)]
    domains = column(["source"] * 4 + ["target"] * 2 + ["source"] * 6)
    conditions = column(["normal"] * 6 + ["anomaly"] * 5 + [None])
    path = tmp_path / "plots" / "calibration.png"
    assert plot_calibration(path, p_values, conditions, domains)
    assert image.imread(path).std() > 0.05
    curves = {line.get_label(): line for line in drawn[0].lines}
    source, target = curves["source (4)"], curves["target (1)"]
    share = dict(zip(np.round(source.get_xdata(), 3), source.get_ydata(), strict=True))
    expected = {0.0: 0, 0.095: 0, 0.105: 0.25, 0.2: 0.75, 0.895: 0.75, 1.0: 1}
    assert {rate: share[rate] for rate in expected} == expected
    assert set(target.get_ydata()) == {0, 1}
    assert len(drawn[0].collections) == 2  # a band for each domain


def test_without_normals_that_have_a_p_value_there_is_no_calibration_plot(tmp_path: Path) -> None:
    path, domains = tmp_path / "calibration.png", column(["source"] * 3)
    assert not plot_calibration(path, np.full(3, np.nan), column(["normal"] * 3), domains)
    assert not plot_calibration(path, np.zeros(3), column(["anomaly", None, None]), domains)
    assert not path.exists()


def test_a_threshold_is_drawn_where_it_lies(tmp_path: Path, drawn: list[Axes]) -> None:
    plot(tmp_path / "without.png", KNOWN)
    plot(tmp_path / "with.png", KNOWN, threshold=0.75)
    assert list(drawn[0].lines) == []
    assert list(drawn[2].lines[0].get_xdata()) == [0.75, 0.75]


def test_conditions_and_domains_have_colours_of_their_own() -> None:
    known = [COLORS[condition, domain] for domain, condition in KNOWN]
    assert len(set(known)) == len(known)


def test_spectrograms_share_their_axes_and_their_colours(tmp_path: Path, drawn: list[Axes]) -> None:
    time = np.arange(8_000) / 16_000
    loud = np.sin(2 * np.pi * 1_000 * time).astype(np.float32)
    waveforms = {"near": loud, "far": 0.1 * loud, "silence": 0 * loud}
    plot_spectrograms(tmp_path / "a" / "clip.png", "a clip", waveforms, sampling_rate=16_000)
    assert image.imread(tmp_path / "a" / "clip.png").std() > 0.05
    pictures = [panel.images[0] for panel in drawn[:3]]
    assert [panel.get_title() for panel in drawn[:3]] == list(waveforms)
    assert len({picture.get_clim() for picture in pictures}) == 1
    assert list(pictures[0].get_extent()) == [0, 0.5, 0, 8]
    near, far = (picture.get_array().max() for picture in pictures[:2])
    assert near - far == pytest.approx(20)


def points_of(axes: Axes) -> np.ndarray:
    return np.concatenate([np.asarray(group.get_offsets()) for group in axes.collections])


@pytest.mark.parametrize("projection", ["pca", "tsne"])
def test_every_clip_and_reference_is_a_point_of_the_embedding_map(
    tmp_path: Path, drawn: list[Axes], projection: str
) -> None:
    rng = np.random.default_rng(0)
    pairs = [*KNOWN * 3, (None, None)]
    domains, conditions = column([p[0] for p in pairs]), column([p[1] for p in pairs])
    clips, references = rng.normal(size=(13, 2, 1, 5)), rng.normal(size=(7, 2, 1, 5))
    path = tmp_path / "a" / "fan.png"
    options = {"references": references, "projection": projection}
    plot_embeddings(path, "2026/fan/00", clips, conditions, domains, **options)
    assert image.imread(path).std() > 0.05
    assert len(points_of(drawn[0])) == 20
    names = [text.get_text() for text in drawn[0].get_legend().get_texts()]
    assert names[0] == "references (7)"
    assert sorted(names[1:]) == sorted(
        [f"{domain} {condition} (3)" for domain, condition in KNOWN] + ["unlabelled (1)"]
    )
    assert drawn[0].get_title() == "2026/fan/00: embeddings"


def test_principal_components_are_the_references_alone(tmp_path: Path, drawn: list[Axes]) -> None:
    rng = np.random.default_rng(0)
    references = rng.normal(size=(30, 1, 1, 3)) * [1.0, 5.0, 0.1]  # nothing happens in the third
    clips = rng.normal(size=(4, 1, 1, 3)) * [0.1, 0.1, 100.0]
    unknown = column([None] * 4)
    for known in (references, None):
        plot_embeddings(tmp_path / "fan.png", "fan", clips, unknown, unknown, references=known)
    assert abs(points_of(drawn[0])[30:]).max() < 20
    assert abs(points_of(drawn[1])).max() > 50


def test_what_has_no_plane_is_refused(tmp_path: Path) -> None:
    unknown = column([None] * 2)
    with pytest.raises(ValueError, match="fan has 2 clips; a plane takes three"):
        plot_embeddings(tmp_path / "fan.png", "fan", np.ones((2, 1, 1, 4)), unknown, unknown)
    with pytest.raises(ValueError, match="fan has one number for each clip"):
        plot_embeddings(tmp_path / "fan.png", "fan", np.ones((2, 1, 1, 1)), unknown, unknown)
    assert not list(tmp_path.iterdir())


def test_a_trend_is_that_of_the_normal_clips_and_outliers_do_not_bend_it(
    tmp_path: Path, drawn: list[Axes]
) -> None:
    times = np.arange(40.0)
    scores = 0.5 + 0.01 * times
    scores[7] = 100.0
    conditions = column(["normal"] * 30 + ["anomaly"] * 10)
    scores[30:] += 5.0
    domains = column(["source"] * 40)
    for given in (None, 2 * times):
        plot_drift(
            tmp_path / "fan.png", "fan", scores, conditions, domains, times=given, threshold=0.75
        )
    by_order, by_time = drawn
    assert by_order.get_title().startswith("fan: trend +1 per 100 clips")
    assert by_time.get_title().startswith("fan: trend +0.5 per 100 hours")
    lines = {line.get_label(): line for line in by_order.lines}
    assert lines["trend"].get_ydata() == pytest.approx([0.5, 0.79], abs=0.02)
    assert list(lines["threshold"].get_ydata()) == [0.75, 0.75]
    assert len(points_of(by_order)) == 40


def test_too_few_clips_have_no_trend(tmp_path: Path, drawn: list[Axes]) -> None:
    unknown = column([None])
    plot_drift(tmp_path / "fan.png", "2026/fan/00", np.ones(1), unknown, unknown)
    assert drawn[0].get_title() == "2026/fan/00"
    assert not drawn[0].lines


def test_a_map_lies_over_the_spectrogram_and_by_itself(tmp_path: Path, drawn: list[Axes]) -> None:
    values = np.array([[0.0, -1.0], [2.0, 0.5], [0.25, 0.0]])
    drawing = {
        "values": values.tolist(),
        "time_edges_seconds": [0.0, 0.2, 0.4, 0.6],
        "band_edges_hz": [20.0, 1_000.0, 8_000.0],
        "method": "additive",
    }
    tone = np.sin(np.arange(9_600) * 0.5).astype(np.float32)
    nearest = [{"file_name": "a.wav", "domain": None, "distance": 0.123456}]
    for beside in (None, {"the fault": tone}):
        plot_anomaly_map(
            tmp_path / "map.png",
            "2026/fan/00, clip",
            tone,
            drawing,
            sampling_rate=16_000,
            beside=beside,
            nearest=nearest,
        )
    over, alone = drawn[:2]
    assert alone.collections[0].get_array().tolist() == values.T.tolist()
    assert over.collections[1].get_array().min() == 0  # only what makes the clip anomalous
    low, high = alone.collections[0].get_clim()
    assert (low, high) == (-2.0, 2.0)  # white is zero
    assert alone.get_ylim() == (0, 8)
    assert (
        over.get_figure()._supxlabel.get_text().endswith("a.wav (unknown domain, distance 0.123)")
    )
    assert [axes.get_title() for axes in drawn[4:7]][1] == "the fault"


def test_a_tone_lies_in_its_bin() -> None:
    tone = np.sin(2 * np.pi * 1_000 * np.arange(4_000) / 16_000).astype(np.float32)
    assert set(power_db(tone).argmax(axis=0)) == {32}  # bins are 31.25 Hz apart


def test_plotting_leaves_no_figure_open(tmp_path: Path) -> None:
    plot(tmp_path / "fan.png", KNOWN)
    assert pyplot.get_fignums() == []
