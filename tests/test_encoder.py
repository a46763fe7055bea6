"""The encoder: what streams equals what was trained, for every cell, lookahead and cutting; padding changes nothing."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asr.encoder import CACHED, SUBSAMPLING, Encoder, EncoderConfig
from asr.errors import ASRError

SMALL: dict[str, Any] = {"n_mels": 8, "conv_channels": 6, "width": 12, "layers": 3, "vocabulary": 5}
CELLS = ("lstm", "gru", "rnn")
TOLERANCE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-4}

streaming_configs = st.builds(
    EncoderConfig,
    cell=st.sampled_from(CELLS),
    lookahead=st.integers(0, 4),
    hidden=st.sampled_from([0, 7]),
    layer_norm=st.booleans(),
    **{name: st.just(value) for name, value in SMALL.items()},
)
any_configs = streaming_configs | st.builds(
    EncoderConfig,
    kind=st.just("bidirectional"),
    cell=st.sampled_from(CELLS),
    hidden=st.sampled_from([0, 7]),
    layer_norm=st.booleans(),
    **{name: st.just(value) for name, value in SMALL.items()},
)


def make(config: EncoderConfig, seed: int = 0) -> Encoder:
    """An encoder of random weights that hears like a trained one: with statistics, and a lookahead that is used."""
    torch.manual_seed(seed)
    encoder = Encoder(config).eval()
    with torch.no_grad():
        encoder.mean.fill_(-7.0)
        encoder.std.fill_(3.0)
        if isinstance(encoder.ahead, torch.nn.Conv1d):
            torch.nn.init.normal_(encoder.ahead.weight)
    return encoder


def speech_like(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3 - 7


@given(streaming_configs, st.integers(1, 12), st.lists(st.integers(0, 12), max_size=5), st.integers(1, 3))
def test_steps_give_what_forward_gives(config: EncoderConfig, emissions: int, cuts: list[int], batch: int) -> None:
    encoder, late = make(config), config.lookahead
    features = speech_like(batch, emissions * SUBSAMPLING, config.n_mels)
    fed = torch.cat((features, encoder.mean.expand(batch, late * SUBSAMPLING, -1)), 1)
    bounds = sorted({0, emissions + late, *(min(cut, emissions + late) for cut in cuts)})
    state, parts = encoder.start(batch), []
    with torch.no_grad():
        for begin, end in pairwise(bounds):
            log_probs, state = encoder.step(fed[:, begin * SUBSAMPLING : end * SUBSAMPLING], state)
            parts.append(log_probs)
        whole, lengths = encoder(features, torch.full((batch,), emissions * SUBSAMPLING))
    assert lengths.tolist() == [emissions] * batch
    torch.testing.assert_close(torch.cat(parts, 1)[:, late:], whole, **TOLERANCE)


@given(any_configs, st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(0, 20), st.floats(-30, 30))
def test_padding_changes_nothing(config: EncoderConfig, frames: list[int], more: int, padding: float) -> None:
    encoder = make(config)
    features = torch.full((len(frames), max(frames) + more, config.n_mels), padding)
    for row, length in enumerate(frames):
        features[row, :length] = speech_like(length, config.n_mels, seed=row)
    with torch.no_grad():
        together, lengths = encoder(features, torch.tensor(frames))
        for row, length in enumerate(frames):
            alone, one = encoder(features[row : row + 1, :length], torch.tensor([length]))
            assert lengths[row] == one[0] == -(-length // SUBSAMPLING)
            torch.testing.assert_close(together[row, : one[0]], alone[0], **TOLERANCE)


@given(streaming_configs, st.integers(2, 10), st.data())
def test_an_emission_sees_no_further_than_its_lookahead(
    config: EncoderConfig, emissions: int, data: st.DataObject
) -> None:
    encoder = make(config)
    features = speech_like(1, emissions * SUBSAMPLING, config.n_mels)
    at = data.draw(st.integers(0, features.shape[1] - 1))
    changed = features.clone()
    changed[:, at] += 10.0
    lengths = torch.tensor([features.shape[1]])
    with torch.no_grad():
        before, after = encoder(features, lengths)[0], encoder(changed, lengths)[0]
    first = max(0, at // SUBSAMPLING - config.lookahead)
    assert torch.equal(before[:, :first], after[:, :first])
    assert not torch.equal(before[:, first:], after[:, first:])


@pytest.mark.parametrize("cell", CELLS)
def test_a_bidirectional_encoder_hears_the_end_at_the_beginning(cell: str) -> None:
    encoder = make(EncoderConfig(kind="bidirectional", cell=cell, **SMALL))
    features = speech_like(1, 40, SMALL["n_mels"])
    changed = features.clone()
    changed[:, -1] += 10.0
    with torch.no_grad():
        before, after = (encoder(x, torch.tensor([40]))[0] for x in (features, changed))
    assert not torch.equal(before[:, 0], after[:, 0])


@given(streaming_configs, st.integers(1, 3))
def test_the_state_is_zero_at_first_and_keeps_its_shapes(config: EncoderConfig, batch: int) -> None:
    encoder = make(config)
    start = encoder.start(batch)
    with torch.no_grad():
        _, state = encoder.step(speech_like(batch, 8, config.n_mels), start)
    assert state.conv1.shape == (batch, CACHED, config.n_mels)
    for before, after in zip(flat(start), flat(state), strict=True):
        assert not before.any()
        assert before.shape == after.shape
        assert before.shape[0] == batch
    assert bool(state.cell) == (config.cell == "lstm")


def flat(state: Any) -> list[torch.Tensor]:
    return [state.conv1, state.conv2, state.ahead, *state.hidden, *state.cell]


@given(any_configs)
def test_every_parameter_learns(config: EncoderConfig) -> None:
    encoder = make(config).train()
    log_probs, _ = encoder(speech_like(2, 24, config.n_mels), torch.tensor([24, 20]))
    log_probs[:, :, 1].sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(log_probs.shape[:2]))


def test_a_new_lookahead_changes_nothing_until_it_is_trained() -> None:
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(lookahead=3, **SMALL)).eval()
    x = torch.randn(1, 9, SMALL["width"])
    y, _ = encoder._look_ahead(x, encoder.start().ahead)
    with torch.no_grad():
        bias = encoder.ahead.bias
        assert isinstance(bias, torch.Tensor)
        torch.testing.assert_close(y[:, 3:], x[:, :-3] + bias)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"kind": "offline"}, "'offline'.*streaming, bidirectional"),
        ({"cell": "transformer"}, "'transformer'.*lstm, gru, rnn"),
        ({"lookahead": -1}, "-1"),
        ({"kind": "bidirectional", "lookahead": 2}, "2 for a bidirectional"),
    ],
)
def test_impossible_encoders_are_named(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ASRError, match=named):
        EncoderConfig(**wrong)
