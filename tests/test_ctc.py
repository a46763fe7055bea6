"""CTC: collapse, loss and alignment against counting all alignments and against torchaudio."""

import math
from itertools import product

import numpy as np
import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from asr.ctc import BLANK_ID, Span, align, collapse, ctc_loss, frames_needed, word_spans
from asr.errors import ASRError

VOCABULARY = 4
labels = st.lists(st.integers(0, VOCABULARY - 1), max_size=40)
texts = st.lists(st.integers(1, VOCABULARY - 1), max_size=4)


def emissions(frames: int, vocabulary: int = VOCABULARY, seed: int = 0) -> NDArray[np.float32]:
    logits = np.random.default_rng(seed).normal(size=(frames, vocabulary)) * 2
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def collapsed(path: tuple[int, ...] | list[int]) -> list[int]:
    """The definition: repeats first, then blanks."""
    return [token for i, token in enumerate(path) if token != BLANK_ID and (i == 0 or path[i - 1] != token)]


def alignments(log_probs: NDArray[np.float32], tokens: list[int]) -> list[float]:
    """Scores of all alignments of `tokens`, by counting them out."""
    return [
        float(sum(log_probs[t, token] for t, token in enumerate(path)))
        for path in product(range(log_probs.shape[1]), repeat=len(log_probs))
        if collapsed(path) == tokens
    ]


@given(labels)
def test_collapse_is_its_definition(path: list[int]) -> None:
    tokens, frames = collapse(np.array(path, np.int64))
    assert tokens.tolist() == collapsed(path)
    assert [path[frame] for frame in frames] == tokens.tolist()
    assert (np.diff(frames) > 0).all()
    assert all(frame == 0 or path[frame - 1] != path[frame] for frame in frames)


@given(labels, st.data())
def test_repeating_a_label_or_adding_blanks_beside_one_changes_nothing(path: list[int], data: st.DataObject) -> None:
    counts = [data.draw(st.integers(1, 3)) for _ in path]
    stretched = [label for label, count in zip(path, counts, strict=True) for _ in range(count)]
    ends = [BLANK_ID] * data.draw(st.integers(0, 3))
    assert collapse(np.array(ends + stretched + ends))[0].tolist() == collapse(np.array(path, np.int64))[0].tolist()


@given(texts)
def test_as_many_frames_as_needed_and_no_fewer(tokens: list[int]) -> None:
    frames = frames_needed(tokens)
    assert frames == 0 or alignments(emissions(frames), tokens)
    assert frames == 0 or not alignments(emissions(frames - 1), tokens)


@given(st.integers(1, 6), texts, st.integers(0, 1000))
def test_loss_is_the_sum_over_all_alignments(frames: int, tokens: list[int], seed: int) -> None:
    log_probs = emissions(frames, seed=seed)
    scores = alignments(log_probs, tokens)
    loss = ctc_loss(
        torch.from_numpy(log_probs)[None],
        torch.tensor([frames]),
        torch.tensor([tokens], dtype=torch.int64).reshape(1, -1),
        torch.tensor([len(tokens)]),
    )
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx(-np.logaddexp.reduce(scores) if scores else 0.0, abs=1e-4)


@given(st.integers(1, 6), texts, st.integers(0, 1000))
def test_alignment_is_the_likeliest_of_all(frames: int, tokens: list[int], seed: int) -> None:
    log_probs = emissions(frames, seed=seed)
    if frames_needed(tokens) > frames:
        with pytest.raises(ASRError, match=f"at least {frames_needed(tokens)} frames and the audio has {frames}"):
            align(log_probs, tokens)
        return
    spans = align(log_probs, tokens)
    assert score(spans, log_probs) == pytest.approx(max(alignments(log_probs, tokens)), abs=1e-4)
    assert [span.token for span in spans] == tokens


def score(spans: list[Span], log_probs: NDArray[np.float32]) -> float:
    """Log-probability of the alignment that the spans and blanks between them make."""
    path = [BLANK_ID] * len(log_probs)
    for span in spans:
        path[span.start : span.end] = [span.token] * (span.end - span.start)
    return float(sum(log_probs[t, label] for t, label in enumerate(path)))


@settings(max_examples=50)
@given(st.integers(1, 60), st.lists(st.integers(1, 28), min_size=1, max_size=25), st.integers(0, 1000))
def test_alignment_equals_torchaudio(extra: int, tokens: list[int], seed: int) -> None:
    log_probs = emissions(frames_needed(tokens) + extra, vocabulary=29, seed=seed)
    theirs, _ = torchaudio.functional.forced_align(
        torch.from_numpy(log_probs)[None], torch.tensor([tokens]), blank=BLANK_ID
    )
    spans = align(log_probs, tokens)
    path = np.zeros(len(log_probs), np.int64)
    for span in spans:
        path[span.start : span.end] = span.token
        assert span.log_prob == pytest.approx(float(log_probs[span.start : span.end, span.token].mean()), abs=1e-5)
    assert path.tolist() == theirs[0].tolist()


def test_a_text_of_hundreds_of_tokens_aligns() -> None:
    tokens = [1, 2, 3] * 200
    log_probs = emissions(2 * len(tokens), VOCABULARY)
    assert [span.token for span in align(log_probs, tokens)] == tokens


def test_nothing_aligns_to_nothing() -> None:
    assert align(emissions(3), []) == []
    assert align(emissions(0), []) == []


def test_words_span_their_tokens() -> None:
    characters = ["<blank>", "▁", "a", "b"]
    pieces = ["<blank>", "▁a", "b", "▁"]
    spans = [Span(token, 10 * i, 10 * i + 4, -0.1) for i, token in enumerate([1, 2, 3, 1, 1, 3])]
    assert word_spans(spans, characters) == [("ab", 10, 24), ("b", 50, 54)]
    spans = [Span(token, 10 * i, 10 * i + 4, -0.1) for i, token in enumerate([2, 1, 2, 1, 3, 2])]
    assert word_spans(spans, pieces) == [("b", 0, 4), ("ab", 10, 24), ("a", 30, 34), ("b", 50, 54)]


def test_an_impossible_text_costs_nothing() -> None:
    log_probs = torch.full((1, 2, 3), math.log(1 / 3), requires_grad=True)
    loss = ctc_loss(log_probs, torch.tensor([2]), torch.tensor([[1, 2, 1]]), torch.tensor([3]))
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert log_probs.grad is not None
    assert not log_probs.grad.any()
