"""The denominator: a sum over all texts, checked against sums that spell every text out."""

from itertools import product

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from asr.ctc import ctc_loss, frames_needed
from asr.training.denominator import EDGE, log_denominator, log_prior, trigrams

TEXTS = [[1, 2, 2], [2, 1], [1, 1, 2], [], [2]]


def logits(seed: int, batch: int, frames: int, vocabulary: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(batch, frames, vocabulary, generator=generator)


def spelt_out(log_probs: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """The same sum over every text that fits, each by the CTC loss; log_probs: shape = (1, frames, vocabulary)."""
    frames, vocabulary = log_probs.shape[1:]
    terms = []
    for size in range(frames + 1):
        for text in product(range(1, vocabulary), repeat=size):
            if frames_needed(list(text)) > frames:
                continue
            targets = torch.tensor(text, dtype=torch.long)
            lengths = torch.tensor([frames]), torch.tensor([size])
            nll = ctc_loss(log_probs, lengths[0], targets[None], lengths[1])
            terms.append((log_prior(targets, lengths[1], model) - nll)[0])
    return torch.stack(terms).logsumexp(0)


@given(st.integers(0, 1000), st.integers(1, 5))
def test_it_is_the_sum_over_every_text(seed: int, frames: int) -> None:
    model = torch.from_numpy(trigrams(TEXTS, 3))
    raw = logits(seed, 1, frames, 3).requires_grad_()
    log_probs = raw.log_softmax(-1)
    result = log_denominator(log_probs, torch.tensor([frames]), model)
    expected = spelt_out(log_probs, model)
    torch.testing.assert_close(result[0], expected, rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(result.sum(), raw, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected, raw)
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-4)


@given(st.integers(0, 1000), st.lists(st.integers(1, 12), min_size=2, max_size=4))
def test_neighbours_and_padding_change_nothing(seed: int, sizes: list[int]) -> None:
    model = torch.from_numpy(trigrams(TEXTS, 4))
    log_probs = logits(seed, len(sizes), max(sizes), 4).log_softmax(-1).requires_grad_()
    together = log_denominator(log_probs, torch.tensor(sizes), model)
    (gradient,) = torch.autograd.grad(together.sum(), log_probs)
    for row, size in enumerate(sizes):
        alone = log_denominator(log_probs[row : row + 1, :size], torch.tensor([size]), model)
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-4)
        assert not gradient[row, size:].any()
        torch.testing.assert_close(gradient[row, :size].sum(-1), torch.ones(size), rtol=1e-3, atol=1e-3)


def test_long_speech_neither_overflows_nor_vanishes() -> None:
    model = torch.from_numpy(trigrams(TEXTS, 41))
    log_probs = (20 * logits(1, 2, 900, 41)).log_softmax(-1).requires_grad_()
    result = log_denominator(log_probs, torch.tensor([900, 450]), model)
    result.sum().backward()
    assert log_probs.grad is not None
    assert log_probs.grad.isfinite().all()
    assert (result < 0).all()


def test_a_text_is_as_likely_as_its_tokens_with_its_end() -> None:
    model = torch.from_numpy(trigrams(TEXTS, 3))
    found = log_prior(torch.tensor([1, 2, 2]), torch.tensor([2, 0, 1]), model).exp()
    expected = [
        model[EDGE, EDGE, 1] * model[EDGE, 1, 2] * model[1, 2, EDGE],
        model[EDGE, EDGE, EDGE],
        model[EDGE, EDGE, 2] * model[EDGE, 2, EDGE],
    ]
    torch.testing.assert_close(found, torch.stack(expected))


@given(st.lists(st.lists(st.integers(1, 4), max_size=6), min_size=1, max_size=5))
def test_trigrams_are_distributions_that_favour_what_was_seen(texts: list[list[int]]) -> None:
    model = trigrams(texts, 5)
    np.testing.assert_allclose(model.sum(-1), 1, rtol=1e-5)
    assert (model > 0).all()
    text = texts[0]
    first = text[0] if text else EDGE
    assert model[EDGE, EDGE, first] > 1 / 5 - 1e-6 or len(texts) > 1
