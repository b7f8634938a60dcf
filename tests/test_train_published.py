"""Training, scoring and embedding do not care whether recordings are published."""

from pathlib import Path

import numpy as np
import pytest
import torch

import score
import train
from data_scripts.near_far import decoded, load_near_far
from data_scripts.publish import publish_recordings
from modeling import AsdFeatureExtractor, AsdModel, ReferenceBank
from nearfar.embeddings import extract_embeddings
from nearfar.files import read_json
from tests.scripts import TINY_RECIPE, run_script, weights


@pytest.fixture(scope="module")
def published(factory_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The factory, in files of about seven clips."""
    folder = tmp_path_factory.mktemp("published")
    publish_recordings(factory_dir, folder, max_shard_size=7 * 64_044)
    return folder


@pytest.mark.slow  # it trains twice
def test_a_run_of_published_recordings_is_that_of_the_recordings(
    factory_dir: Path, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = {}
    for name, data_dir in (("raw", factory_dir), ("published", published)):
        data = ["--data_dir", data_dir]
        run_script(
            train,
            [*TINY_RECIPE, "--num_train_epochs", 1, *data, "--output_dir", tmp_path / name],
            monkeypatch,
        )
        scores = tmp_path / f"{name}_scores"
        options = ["--num_resamples", 0, "--output_dir", scores]
        run_script(score, ["--model", tmp_path / name, *data, *options], monkeypatch)
        metrics[name] = read_json(scores / "metrics.json")
    assert metrics["raw"] == metrics["published"]
    raw, other = weights(tmp_path / "raw"), weights(tmp_path / "published")
    assert raw.keys() == other.keys()
    for name, tensor in raw.items():
        assert torch.equal(tensor, other[name]), name
    banks = [ReferenceBank.from_pretrained(tmp_path / name) for name in ("raw", "published")]
    for machine in banks[0].machines:
        assert torch.equal(*(bank.calibration_scores(machine) for bank in banks))

    # The same table, in the same order, of a stream.
    model = AsdModel.from_pretrained(tmp_path / "published")
    extractor = AsdFeatureExtractor.from_pretrained(tmp_path / "published")
    tables = [
        extract_embeddings(model, decoded(clips["test"]), extractor)
        for clips in (load_near_far(factory_dir), load_near_far(published, streaming=True))
    ]
    for column in ("embedding", "machines", "file_names", "domains", "conditions"):
        np.testing.assert_array_equal(*(getattr(table, column) for table in tables))
