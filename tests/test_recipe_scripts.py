"""Small programs of the recipes: losses drawn, weights averaged, cells compared, recordings split fairly."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asr.encoder import Encoder
from asr.text import normalize
from asr.tokenizer import Tokenizer
from asr.training.checkpoint import Checkpoint, load, save
from asr.training.config import TrainingConfig, read_config
from asr.training.manifest import COLUMNS, Utterance, read

RECIPES = Path(__file__).parents[1] / "recipes"
CLIPS = read(Path(__file__).parent / "data" / "clips.tsv")
PNG = b"\x89PNG"


def script(path: str) -> ModuleType:
    name = path.replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{path}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


losses, average = script("losses"), script("average")
compare, demonstrate = script("cells/compare"), script("finetune/demonstrate")


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=2000))
def test_smoothing_keeps_the_mean_and_bounds_the_points(values: list[float]) -> None:
    steps, means = losses.smoothed((list(range(1, len(values) + 1)), values))
    assert len(steps) == len(means) <= losses.SMOOTHED
    assert steps == sorted(steps)
    assert min(values) - 1e-9 <= min(means) <= max(means) <= max(values) + 1e-9
    size = -(-len(values) // losses.SMOOTHED)
    assert np.isclose(means[0], np.mean(values[:size]))


def test_losses_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, picture = tmp_path / "run", tmp_path / "new" / "losses.png"
    run.mkdir()
    assert losses.main([str(run)]) == 1
    assert "there is no" in capsys.readouterr().err
    (run / "losses.tsv").write_text("1\ttrain\t3.5\n2\ttrain\tnan\n2\tdev\t3.0\n2\tdev WER\t0.9\n3\ttrain\t2")
    assert losses.read(run) == {"train": ([1], [3.5]), "dev": ([2], [3.0]), "dev WER": ([2], [0.9])}
    assert losses.main([str(run), "--output", str(picture)]) == 0
    assert picture.read_bytes().startswith(PNG)
    (run / "losses.tsv").write_text("")
    assert losses.main([str(run)]) == 1
    assert "holds no step yet" in capsys.readouterr().err


def cell_encoder(cell: str) -> Encoder:
    torch.manual_seed(1)
    return Encoder(read_config(compare.CONFIG, compare.changes(cell, 1e-3, 1, 100)).encoder).eval()


def test_the_cells_have_equally_many_parameters() -> None:
    counts = [sum(p.numel() for p in cell_encoder(cell).parameters()) for cell in compare.WIDTHS]
    assert max(counts) < 1.01 * min(counts)


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
def test_gradients_are_those_of_a_small_change(cell: str) -> None:
    encoder = cell_encoder(cell)
    curve = compare.gradients(encoder, [u for u in CLIPS if u.seconds > 5])
    assert curve.shape == (compare.REACH,)
    assert (curve >= 0).all()
    assert 0 < curve.max() <= 1
    assert curve[:5].max() > 10 * curve[-5:].max()  # before training, what is near counts most
    assert 0 < compare.reach(curve) < compare.REACH * 0.04


def test_no_sentence_is_both_learnt_and_measured(tmp_path: Path) -> None:
    utterances = [
        Utterance(Path(f"{voice}{n}.wav"), 1.0, voice, "cmu-arctic", f"Sentence {n}.")
        for voice in "ab"
        for n in range(99)
    ]
    compare.split([*utterances, Utterance(Path("c.wav"), 1.0, "c", "other", "Another.")], tmp_path)
    train, dev = ({normalize(u.text) for u in read(tmp_path / name)} for name in ("train.tsv", "dev.tsv"))
    assert train.isdisjoint(dev)
    assert len(train | dev) == 99
    assert 0 < len(dev) < len(train)


def test_cells_are_trained_measured_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "WIDTHS", {"lstm": 8, "gru": 10, "rnn": 16})
    monkeypatch.setattr(compare, "HELD_OUT", 2)
    monkeypatch.setattr(compare, "POSITIONS", 2)
    rows = ["\t".join((str(u.path), str(u.seconds), "a", "cmu-arctic", u.text)) for u in CLIPS]
    (tmp_path / "train.tsv").write_text("\n".join(("\t".join(COLUMNS), *rows, "")))
    command = ["--data", str(tmp_path), "--output", str(tmp_path / "runs"), "--steps", "2", "--rates", "1e-3"]
    for _ in range(2):  # the second time from what is there
        assert compare.main(command) == 0
        table = capsys.readouterr().out
        assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == ["| LSTM", "| GRU", "| plain RNN"]
        assert (tmp_path / "runs" / "cells.png").read_bytes().startswith(PNG)


def test_a_voice_s_recordings_are_halved_by_name() -> None:
    names = [Utterance(Path(f"1-{n}.ogg"), 1.0, "1", "c", "Words.") for n in range(400)]
    share = np.mean([demonstrate.is_for_learning(u) for u in names])
    assert 0.4 < share < 0.6


def run_of(weights: dict[str, torch.Tensor]) -> Checkpoint:
    return Checkpoint(TrainingConfig(), Tokenizer(), weights, weights, {"state": {0: 1}}, 7, 1, 2, 3.0)


@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(0.1, 5)), min_size=1, max_size=4))
def test_averaged_weights_are_the_mean_by_shares(runs: list[tuple[float, float]]) -> None:
    values, shares = zip(*runs, strict=True)
    found = average.average([run_of({"w": torch.full((2,), value)}) for value in values], shares)
    assert found.average["w"].tolist() == pytest.approx([np.average(values, weights=shares)] * 2, abs=1e-4)
    assert found.weights["w"].equal(found.average["w"])
    assert found.step == 7
    assert found.optimizer["state"] == {}


def test_runs_are_averaged_and_wrong_ones_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, size in (("a", 2), ("b", 2), ("c", 3)):
        (tmp_path / name).mkdir()
        save(run_of({"w": torch.full((size,), float(size))}), tmp_path / name / "last.pt")
    a, b, c, out = (str(tmp_path / name) for name in ("a", "b", "c", "out"))
    assert average.main([f"{a}=1", f"{b}=3", "--output", out]) == 0
    assert load(out).average["w"].tolist() == [2.0, 2.0]
    assert average.main([f"{a}=1", f"{c}=1", "--output", out]) == 1
    assert "shapes" in capsys.readouterr().err
    for wrong in (a, f"{a}=0", f"{a}=x", "=1"):
        with pytest.raises(SystemExit):
            average.main([wrong, "--output", out])
        assert "share" in capsys.readouterr().err
