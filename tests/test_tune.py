"""Tuning: recorded emissions are those of the recogniser, survive a file, and lead to settings that are no worse."""

from pathlib import Path

import numpy as np
import pytest

import asr
from asr.decoding.beam import BeamConfig
from asr.decoding.greedy import Greedy
from asr.decoding.kneser_ney import build_corpus, train
from asr.decoding.lm import NgramModel
from asr.text import normalize
from asr.tokenizer import Tokenizer
from asr.training.manifest import Utterance, read
from asr.training.tune import Emissions, load, record, record_all, save, transcribe, trial, tune

CLIPS = read(Path(__file__).parent / "data" / "clips.tsv")
TOKENS = ["<blank>", "▁", "a", "b", "c"]


@pytest.fixture(scope="module")
def lm() -> NgramModel:
    return train(build_corpus(["ab ba cab", "ab ab c", "ba cab ab"], 10), 2)


def spelled(text: str, seed: int) -> np.ndarray:
    """Noisy emissions of a text, two frames a token."""
    rng = np.random.default_rng(seed)
    ids = [TOKENS.index("▁" if letter == " " else letter) for letter in text]
    x = rng.normal(size=(2 * len(ids), len(TOKENS)))
    x[np.arange(0, len(x), 2), ids] += 2.5
    x[1::2, 0] += 2.5
    return (x - np.log(np.exp(x).sum(axis=1, keepdims=True))).astype(np.float32)


def recordings() -> list[Emissions]:
    texts = ["ab ba cab", "ab ab c", "cab ab ba"]
    return [Emissions((spelled(text, i),), text, "xy"[i % 2]) for i, text in enumerate(texts * 3)]


@pytest.mark.parametrize("utterance", CLIPS[::4], ids=lambda u: u.path.stem)
def test_recorded_emissions_decode_as_the_recogniser_does(tiny_model: Path, utterance: Utterance) -> None:
    recognizer = asr.load(tiny_model, decoder="greedy")
    recording = record(recognizer, utterance)
    assert recording.reference == normalize(utterance.text)
    assert transcribe(Greedy(), recording) == recognizer.transcribe(utterance.path).text


def test_a_file_gives_back_the_same_recordings(tmp_path: Path) -> None:
    made = [*recordings(), Emissions((spelled("ab", 7), spelled("c", 8)), "ab c", "x")]
    save(tmp_path / "emissions.npz", made)
    for before, after in zip(made, load(tmp_path / "emissions.npz"), strict=True):
        assert (before.reference, before.corpus) == (after.reference, after.corpus)
        assert all(np.array_equal(a, b) for a, b in zip(before.segments, after.segments, strict=True))


def test_emissions_that_are_kept_are_not_made_again(tiny_model: Path, tmp_path: Path) -> None:
    recognizer = asr.load(tiny_model, decoder="greedy")
    shown: list[tuple[int, str]] = []
    made = record_all(recognizer, CLIPS[:2], tmp_path / "emissions.npz", lambda *news: shown.append(news))
    assert shown == [(i, clip.path.name) for i, clip in enumerate(CLIPS[:2])]
    kept = record_all(recognizer, (), tmp_path / "emissions.npz")
    assert [recording.reference for recording in kept] == [normalize(clip.text) for clip in CLIPS[:2]]
    for before, after in zip(made, kept, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(before.segments, after.segments, strict=True))


def test_the_last_setting_is_the_best_of_all_tried(lm: NgramModel) -> None:
    choices = {"lm_weight": (0.0, 1.0), "word_bonus": (-2.0, 2.0)}
    trials = list(tune(recordings(), Tokenizer(TOKENS), lm, BeamConfig(lm_weight=0.0), choices))
    means = [np.mean(list(result.corpora.values())) for result in trials]
    assert means[-1] == min(means) < means[0]
    assert len({result.config for result in trials}) == len(trials) - 1  # the best is named again at the end
    assert "lm_weight" in str(trials[-1])


def test_a_trial_counts_errors_per_corpus(lm: NgramModel) -> None:
    clear = [Emissions((20 * spelled(text, 1),), text, text) for text in ("ab ba", "cab")]
    result = trial(clear, Tokenizer(TOKENS), lm, BeamConfig(lm_weight=0.0, oov_penalty=0.0))
    assert (result.wer, result.corpora) == (0.0, {"ab ba": 0.0, "cab": 0.0})
    assert result.seconds > 0
