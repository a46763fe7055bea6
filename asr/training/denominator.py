"""The denominator of CTC-CRF: how likely emissions make any text at all, weighed by a trigram model of tokens.

CTC asks that the right text be likely; a search with a language model asks that it be likelier than every other text
that the language allows. The denominator is the sum over those texts, so that training learns what the search compares
(Xiang & Ou, "CRF-based single-stage acoustic modeling with CTC topology", 2019; Povey et al., "Purely sequence-trained
neural networks for ASR based on lattice-free MMI", 2016).
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asr.ctc import BLANK_ID

EDGE = BLANK_ID  # what stands before a text and after it: no text has blanks of its own
LARGEST_VOCABULARY = 64  # tokens; work and memory grow with the cube
PRIOR_COUNT = 4.0  # how many sightings the shorter context's estimate is worth


def trigrams(texts: Iterable[list[int]], vocabulary: int) -> NDArray[np.float32]:
    """Probabilities of a token after two others, shape = (first, second, token); EDGE as token ends the text.

    Counts of a context are mixed with PRIOR_COUNT sightings drawn from the shorter one (MacKay & Peto, 1995).
    """
    counts = np.zeros((vocabulary,) * 3)
    for ids in texts:
        padded = np.array([EDGE, EDGE, *ids, EDGE])
        np.add.at(counts, (padded[:-2], padded[1:-1], padded[2:]), 1)
    given: NDArray[np.float64] = np.full(vocabulary, 1 / vocabulary)
    for context in (counts.sum((0, 1)), counts.sum(0), counts):
        seen = context.sum(-1, keepdims=True)
        given = (context + PRIOR_COUNT * given) / (seen + PRIOR_COUNT)
    return given.astype(np.float32)


def log_prior(targets: Tensor, target_lengths: Tensor, model: Tensor) -> Tensor:
    """Log-probability of each text under a model of `trigrams`, in nats, shape = (batch,); targets: all in one row."""
    edge = targets.new_tensor([EDGE])
    texts = [torch.cat((edge, edge, text, edge)) for text in targets.split(target_lengths.tolist())]
    return torch.stack([model[text[:-2], text[1:-1], text[2:]].log().sum() for text in texts])


def log_denominator(log_probs: Tensor, lengths: Tensor, model: Tensor) -> Tensor:
    """Logarithm of the sum over texts of p(text) p_ctc(text | audio), in nats, shape = (batch,).

    log_probs: shape = (batch, frames, vocabulary); model: of `trigrams`. Its gradient is the posterior of each token in
    each frame under all texts.
    """
    return _LogDenominator.apply(log_probs, lengths, model)


class _LogDenominator(torch.autograd.Function):
    """Forward and backward recursions over the last two tokens and whether a blank came since, in probabilities.

    `spoken[k, b, j]` is the sum over alignments whose last frame is token k after token j, `paused[k, b, j]` of those
    in which blanks have followed; both divided by all that came before, whose logarithm `scale` holds.
    """

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, lengths: Tensor, model: Tensor) -> Tensor:
        batch, frames, size = log_probs.shape
        inside = torch.arange(frames, device=log_probs.device) < lengths[:, None]
        silent = torch.zeros(size, device=log_probs.device)
        silent[BLANK_ID] = 1  # frames after the end are blanks, which change nothing
        probs = torch.where(inside[..., None], log_probs.float().exp(), silent)
        by_frame = probs.permute(1, 2, 0).contiguous()  # (frames, vocabulary, batch)
        arcs, twice, ends = _arcs(model)
        spoken = torch.zeros(size, batch, size, device=log_probs.device)
        paused = torch.zeros_like(spoken)
        paused[EDGE, :, EDGE] = 1
        all_spoken = torch.empty(frames, *spoken.shape, device=log_probs.device)
        all_paused = torch.empty_like(all_spoken)
        scales = torch.empty(frames, batch, device=log_probs.device)
        for t in range(frames):
            both = spoken + paused
            entered = torch.bmm(both, arcs)  # (second, batch, token)
            again = (paused * twice[:, None]).sum(-1)  # the same token twice needs a blank between: (token, batch)
            entered.diagonal(dim1=0, dim2=2).copy_(again.T)
            spoken = (entered.transpose(0, 2) + spoken) * by_frame[t][:, :, None]
            paused = both * by_frame[t, BLANK_ID][:, None]
            scale = spoken.sum((0, 2)) + paused.sum((0, 2))
            spoken, paused = spoken / scale[:, None], paused / scale[:, None]
            all_spoken[t], all_paused[t], scales[t] = spoken, paused, scale
        last = ((spoken + paused) * ends).sum((0, 2))
        ctx.save_for_backward(by_frame, inside, all_spoken, all_paused, scales, last, model)
        return scales.log().sum(0) + last.log()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        by_frame, inside, all_spoken, all_paused, scales, last, model = ctx.saved_tensors
        arcs, twice, ends = _arcs(model)
        back = arcs.transpose(1, 2).contiguous()
        ahead_spoken = ahead_paused = ends / last[:, None]  # what follows, by the state that it follows
        posteriors = torch.empty_like(by_frame)
        for t in range(len(by_frame) - 1, -1, -1):
            posteriors[t] = (all_spoken[t] * ahead_spoken).sum(-1)
            posteriors[t, BLANK_ID] = (all_paused[t] * ahead_paused).sum((0, 2))
            kept = ahead_spoken * (by_frame[t][:, :, None] / scales[t][:, None])  # (token, batch, second)
            rest = ahead_paused * (by_frame[t, BLANK_ID] / scales[t])[:, None]
            left = torch.bmm(kept.transpose(0, 2), back)  # (second, batch, first)
            ahead_paused = rest + left
            doubled = kept.diagonal(dim1=0, dim2=2).T  # (token, batch)
            ahead_spoken = ahead_paused + kept - doubled[:, :, None] * twice[:, None]
        result = posteriors.permute(2, 0, 1) * inside[..., None] * gradients[0][:, None, None]
        return result, None, None


def _arcs(model: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The model by second token, shape = (second, first, token), without ends; p(second | first, second); and the ends.

    The last two have the shapes (second, first) and (second, 1, first).
    """
    arcs = model.transpose(0, 1).clone(memory_format=torch.contiguous_format)
    ends = arcs[:, None, :, EDGE].clone()
    arcs[:, :, EDGE] = 0
    return arcs, arcs.diagonal(dim1=0, dim2=2).T.contiguous(), ends
