"""Finished runs go on record: the median of the seeds, with its artifact, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments import publish

FIGURES = dict.fromkeys(publish._FIGURES, 1.0)


def finished(folder: Path, seed: int, accuracy: float, epochs: int = 3) -> Path:
    folder.mkdir()
    settings = {
        "seed": seed,
        "epochs": epochs,
        "data_dir": "/data",
        "init": "/there/net.safetensors",
    }
    results = FIGURES | {"accuracy": accuracy, "seed": seed, "started": {"settings": settings}}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "artifact.jpq").write_bytes(b"file of %d" % seed)
    return folder


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(publish, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(publish, "ARTIFACTS", tmp_path / "artifacts")
    return tmp_path


def test_the_median_of_the_seeds_is_on_record_without_places(records: Path):
    runs = [finished(records / str(seed), seed, 0.9 + seed / 100) for seed in (2, 0, 1)]
    assert publish.main("net", runs) == 0
    assert (records / "artifacts" / "net.jpq").read_bytes() == b"file of 1"
    text = (records / "results" / "net.json").read_text()
    record = json.loads(text)
    assert (record["artifact_seed"], record["median"]["accuracy"]) == (1, 0.91)
    assert "/data" not in text
    assert "/there" not in text


def test_what_cannot_go_on_record_leaves_what_was_there(
    records: Path, capsys: pytest.CaptureFixture[str]
):
    one = finished(records / "one", 0, 0.9)
    assert publish.main("net", [one]) == 0
    other = finished(records / "other", 1, 0.8, epochs=4)
    twice = finished(records / "twice", 0, 0.8)
    lost = finished(records / "lost", 1, 0.95)
    (lost / "artifact.jpq").unlink()
    (records / "empty").mkdir()
    for runs, message in (
        ([one, other], "its settings differ"),
        ([one, twice], "runs of different seeds"),
        ([lost], "artifact.jpq"),
        ([records / "empty"], "not finished"),
    ):
        assert publish.main("net", runs) == 2
        assert message in capsys.readouterr().err
    assert (records / "artifacts" / "net.jpq").read_bytes() == b"file of 0"
