"""Connectionist temporal classification (Graves et al., 2006): loss, greedy collapse, forced alignment, word times."""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from asr.errors import ASRError
from asr.tokenizer import BOUNDARY

if TYPE_CHECKING:
    import torch

BLANK_ID = 0


def ctc_loss(
    log_probs: "torch.Tensor", lengths: "torch.Tensor", targets: "torch.Tensor", target_lengths: "torch.Tensor"
) -> "torch.Tensor":
    """Negative log-likelihood per utterance in nats, shape = (batch,); an utterance too short for its text counts zero.

    log_probs: shape = (batch, frames, vocabulary); targets: shape = (batch, longest text) or all texts in one row.
    """
    from torch.nn.functional import ctc_loss

    return ctc_loss(
        log_probs.transpose(0, 1), targets, lengths, target_lengths, BLANK_ID, reduction="none", zero_infinity=True
    )


def collapse(best: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Best token of each frame, shape = (frames,), to the tokens left and their first frames."""
    best = np.array(best, np.int64)
    starts = np.flatnonzero((best != BLANK_ID) & (np.diff(best, prepend=BLANK_ID) != 0)).astype(np.int64)
    return best[starts].astype(np.int64), starts


def frames_needed(tokens: list[int]) -> int:
    """The fewest frames that can spell `tokens`: one each, and a blank between equal neighbours."""
    return len(tokens) + sum(a == b for a, b in pairwise(tokens))


@dataclass(frozen=True)
class Span:
    """One token of an alignment: frames [start, end) and its mean log-probability there."""

    token: int
    start: int
    end: int
    log_prob: float


def align(log_probs: NDArray[np.float32], tokens: list[int]) -> list[Span]:
    """The likeliest alignment of `tokens` to emissions, shape = (frames, vocabulary): Viterbi over labels and blanks.

    Raises ASRError where the text needs more frames than there are.
    """
    frames, states = len(log_probs), 2 * len(tokens) + 1
    if frames_needed(tokens) > frames:
        raise ASRError(
            f"a text of {len(tokens)} tokens needs at least {frames_needed(tokens)} frames and the audio has {frames}; "
            "check that the text belongs to the audio"
        )
    if not tokens:
        return []
    labels = np.full(states, BLANK_ID)
    labels[1::2] = tokens
    may_skip = np.zeros(states, bool)  # from the label before last, over a blank between two different tokens
    may_skip[3::2] = labels[3::2] != labels[1:-2:2]
    emissions = log_probs[:, labels]  # (frames, states)

    score = np.full(states, -np.inf)
    score[:2] = emissions[0, :2]
    came_from = np.zeros((frames, states), np.int8)
    for t in range(1, frames):
        step = np.concatenate(([-np.inf], score[:-1]))
        skip = np.where(may_skip, np.concatenate(([-np.inf, -np.inf], score[:-2])), -np.inf)
        choices = np.stack((score, step, skip))
        came_from[t] = choices.argmax(axis=0)
        score = choices.max(axis=0) + emissions[t]

    state = states - 1 if score[-1] >= score[-2] else states - 2
    path = np.empty(frames, np.int64)
    for t in range(frames - 1, -1, -1):
        path[t] = state
        state -= int(came_from[t, state])
    spans = []
    for i, token in enumerate(tokens):
        at = np.flatnonzero(path == 2 * i + 1)
        spans.append(Span(token, int(at[0]), int(at[-1]) + 1, float(log_probs[at, token].mean())))
    return spans


def word_spans(spans: list[Span], tokens: list[str]) -> list[tuple[str, int, int]]:
    """Words with their frames [start, end), from aligned token spans and the model's token list."""
    words: list[tuple[str, int, int]] = []
    open_word = False
    for span in spans:
        text = tokens[span.token]
        if text.startswith(BOUNDARY):
            open_word, text = False, text.removeprefix(BOUNDARY)
        if not text:
            continue
        if open_word:
            word, start, _ = words[-1]
            words[-1] = (word + text, start, span.end)
        else:
            words.append((text, span.start, span.end))
            open_word = True
    return words
