"""The LSTM that training on a CPU takes: what PyTorch's gives, in values and in derivatives, whatever the batch."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from asr import lstm
from asr.compiled import SWITCH
from asr.encoder import Encoder, EncoderConfig
from tests.building import build

compiled = pytest.mark.skipif(not lstm.WORKS, reason="the processor multiplies no bfloat16")
sizes = st.tuples(st.integers(1, 30), st.integers(1, 40), st.sampled_from([8, 80]), st.sampled_from([32, 96, 160]))


def speech(rows: int, frames: int, inputs: int) -> Tensor:
    return torch.randn(rows, frames, inputs, generator=torch.Generator().manual_seed(rows + frames))


def layer(inputs: int, units: int) -> nn.LSTM:
    torch.manual_seed(inputs + units)
    cell = nn.LSTM(inputs, units, batch_first=True)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.mul_(2)  # as after some learning
    return cell


def learnt(cell: nn.LSTM, x: Tensor, run: Callable[[nn.LSTM, Tensor], Tensor]) -> list[Tensor]:
    """Hidden values, and the slopes of their weighted sum for x and the weights."""
    x = x.clone().requires_grad_()
    cell.zero_grad()
    hidden = run(cell, x)
    (hidden.float() * speech(*hidden.shape)).sum().backward()
    return [t.detach().clone() for t in (hidden, x.grad, *(p.grad for p in cell.parameters())) if t is not None]


def own(cell: nn.LSTM, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        assert lstm.fits(cell, x)
        return lstm.whole(cell, x)


def exact(cell: nn.LSTM, x: Tensor) -> Tensor:
    return cell(x)[0]


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / (other.norm() + 1e-6))


def test_the_kernel_can_be_built_from_this_checkout(tmp_path_factory: pytest.TempPathFactory) -> None:
    built = build(tmp_path_factory.mktemp("build"), "asr/_lstm_kernel")
    assert hasattr(lstm, "_lstm_kernel") >= bool(built), "build it in place: python setup.py build_ext --inplace"


@compiled
@given(sizes)
@settings(max_examples=40, deadline=None)
def test_values_and_slopes_are_those_of_the_layer_in_full_precision(size: tuple[int, int, int, int]) -> None:
    rows, frames, inputs, units = size
    cell, x = layer(inputs, units), speech(rows, frames, inputs)
    found, wanted = learnt(cell, x, own), learnt(cell, x, exact)
    assert len(found) == len(wanted) == 6
    for ours, right in zip(found, wanted, strict=True):
        assert ours.shape == right.shape
        assert distance(ours, right) < 0.02  # bfloat16 keeps 8 bits


@compiled
@given(sizes, st.integers(2, 5))
@settings(max_examples=20, deadline=None)
def test_any_number_of_threads_gives_the_same(size: tuple[int, int, int, int], threads: int) -> None:
    rows, frames, inputs, units = size
    cell, x = layer(inputs, units), speech(rows, frames, inputs)
    alone = learnt(cell, x, own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lstm.torch, "get_num_threads", lambda: threads)
        together = learnt(cell, x, own)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@compiled
@given(sizes, st.data())
@settings(max_examples=20, deadline=None)
def test_nothing_is_heard_before_it_is_said_or_in_another_text(
    size: tuple[int, int, int, int], data: st.DataObject
) -> None:
    rows, frames, inputs, units = size
    row, frame = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, frames - 1))
    cell, x = layer(inputs, units), speech(rows, frames, inputs)
    other = x.clone()
    other[row, frame] += 1
    with torch.no_grad():
        differs = (own(cell, x) != own(cell, other)).any(-1)
    assert differs[row, frame]
    differs[row, frame:] = False
    assert not differs.any()


@compiled
@pytest.mark.parametrize("kind", ["streaming", "bidirectional"])
@pytest.mark.parametrize("hidden", [0, 32])
def test_an_encoder_learns_what_it_would_without_the_kernel(
    kind: str, hidden: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(kind, n_mels=8, conv_channels=16, width=64, hidden=hidden, layers=2, dropout=0.0))
    features, lengths = speech(3, 60, 8), torch.tensor([60, 44, 13])

    def slopes() -> Tensor:
        encoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            log_probs, emissions = encoder(features, lengths)
        sum(row[:n, 1].sum() for row, n in zip(log_probs, emissions, strict=True)).backward()
        return torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])

    with_kernel = slopes()
    monkeypatch.setattr(lstm, "WORKS", False)
    assert distance(with_kernel, slopes()) < 0.02
    assert torch.equal(with_kernel, slopes()) == (kind == "bidirectional")


def test_other_layers_are_left_to_pytorch() -> None:
    x = speech(2, 3, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert lstm.fits(nn.LSTM(32, 32), x) == lstm.WORKS
        assert not lstm.fits(nn.GRU(32, 32), x)
        assert not lstm.fits(nn.LSTM(32, 40), x)
        assert not lstm.fits(nn.LSTM(32, 32, bidirectional=True), x)
        assert not lstm.fits(nn.LSTM(32, 32, device="meta"), x.to("meta"))
    assert not lstm.fits(nn.LSTM(32, 32), x)
    with torch.autocast("cpu", torch.float16):
        assert not lstm.fits(nn.LSTM(32, 32), x)


def test_the_switch_for_compiled_code_leaves_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")
    with torch.autocast("cpu", torch.bfloat16):
        assert not lstm.fits(nn.LSTM(32, 32), speech(2, 3, 32))


@compiled
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("weights", (4, 32, 31)),
        ("vector", (127,)),
        ("states", (2, 3, 31)),
        ("gates", (2, 3, 127)),
        ("cells", (2, 4, 32)),
    ],
)
def test_arrays_of_other_sizes_are_refused(name: str, shape: tuple[int, ...]) -> None:
    shapes = {"weights": (4, 32, 32), "vector": (128,), "states": (2, 3, 32), "gates": (2, 3, 128), "cells": (2, 3, 32)}
    types = {"vector": np.float32, "cells": np.float32}
    arrays = [np.zeros(shapes[key], types.get(key, np.int16)) for key in shapes]
    lstm._lstm_kernel.forward((2, 3, 32), 0, 2, *arrays)
    wrong = [np.zeros((shapes | {name: shape})[key], types.get(key, np.int16)) for key in shapes]
    with pytest.raises(ValueError, match="do not have the layer's sizes"):
        lstm._lstm_kernel.forward((2, 3, 32), 0, 2, *wrong)
    for first, last in ((0, 3), (-1, 2), (2, 1)):
        with pytest.raises(ValueError, match="do not have the layer's sizes"):
            lstm._lstm_kernel.forward((2, 3, 32), first, last, *arrays)
