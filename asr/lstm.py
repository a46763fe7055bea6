"""An LSTM layer over whole texts for training on a CPU in bfloat16: PyTorch's own takes half as long again.

Sums over inputs, and slopes for weights and inputs, are each one multiplication for all frames; _lstm_kernel.c does the
steps, which wait for each other.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from asr.compiled import wanted

try:
    from asr import _lstm_kernel
except ImportError:  # where no compiler is
    WORKS = False
else:
    WORKS = _lstm_kernel.works()

LANES, GATES, PANEL = 16, 4, 32  # as in _lstm_kernel.c
_POOL = ThreadPoolExecutor()


def fits(cell: nn.Module, x: Tensor) -> bool:
    """Whether `whole` can do what the cell would: an LSTM in one direction, on a CPU, in bfloat16 under autocast."""
    return (
        WORKS
        and wanted()
        and isinstance(cell, nn.LSTM)
        and not cell.bidirectional
        and cell.hidden_size % PANEL == 0
        and x.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )


def whole(cell: nn.LSTM, x: Tensor) -> Tensor:
    """Hidden values of all frames from a state of zeros: x, shape = (batch, frames, inputs), to bfloat16."""
    weight_ih, weight_hh, bias_ih, bias_hh = cell.all_weights[0]
    return _Whole.apply(x, weight_ih, weight_hh, bias_ih + bias_hh)


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor) -> Tensor:
        x, weight_ih, weight_hh = (tensor.to(torch.bfloat16) for tensor in (x, weight_ih, weight_hh))
        rows, frames, _ = x.shape
        units = weight_hh.shape[1]
        gates = x @ weight_ih.t()
        hidden = x.new_empty(rows, frames, units)
        cells = x.new_empty(rows, frames, units, dtype=torch.float32)
        blocks = weight_hh.view(torch.int32).view(GATES, units // LANES, LANES, units // 2).permute(1, 3, 0, 2)
        _in_shares(_lstm_kernel.forward, (rows, frames, units), blocks, bias, hidden, gates, cells)
        ctx.save_for_backward(x, weight_ih, weight_hh, gates, hidden, cells)
        return hidden

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, ...]:
        x, weight_ih, weight_hh, gates, hidden, cells = ctx.saved_tensors
        rows, frames, units = hidden.shape
        carried = cells.new_zeros(rows, units)
        panels = weight_hh.t().contiguous().view(torch.int32).view(units // PANEL, PANEL, -1).transpose(1, 2)
        slopes = torch.empty_like(gates)
        sizes = rows, frames, units
        _in_shares(_lstm_kernel.backward, sizes, panels, carried, slope.contiguous(), gates, cells, slopes)
        before = nn.functional.pad(hidden[:, :-1], (0, 0, 1, 0)).flatten(0, 1)
        flat = slopes.flatten(0, 1).t()
        learnt = (flat @ x.flatten(0, 1)).float(), (flat @ before).float(), slopes.sum((0, 1), dtype=torch.float32)
        return slopes @ weight_ih, *learnt


def _in_shares(kernel: Callable[..., None], sizes: tuple[int, int, int], weights: Tensor, *tensors: Tensor) -> None:
    """The kernel in as many threads as PyTorch has, each with a share of the rows."""
    arrays = [_array(weights.contiguous()), *map(_array, tensors)]
    rows = sizes[0]
    shares = max(1, min(rows, torch.get_num_threads()))
    bounds = [rows * i // shares for i in range(shares + 1)]
    if shares == 1:
        kernel(sizes, 0, rows, *arrays)
        return
    begun = [_POOL.submit(kernel, sizes, bounds[i], bounds[i + 1], *arrays) for i in range(shares)]
    for share in begun:
        share.result()


def _array(tensor: Tensor) -> NDArray:
    """The tensor's own memory; NumPy knows no bfloat16."""
    tensor = tensor.detach()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
