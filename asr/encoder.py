"""The acoustic encoder: causal convolutions that subsample by four, residual recurrent blocks, a linear output.

    log-mel (batch, frames, n_mels) -> (batch, frames / 4, width) -> blocks -> logits (batch, frames / 4, vocabulary)

A streaming encoder is a causal machine with a fixed delay: with a lookahead of L emission frames, the emission of frame
t leaves at step t + L. `forward` runs that same machine over whole utterances: training sees what streaming will do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asr import lstm
from asr.errors import ASRError

SUBSAMPLING = 4
STRIDE = 2  # of each of the two convolutions
KERNEL = 5  # frames
CACHED = KERNEL - STRIDE  # input frames that a convolution keeps between steps
CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
KINDS = ("streaming", "bidirectional")


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of the encoder; it travels inside the checkpoint and the model directory."""

    kind: str = "streaming"  # or "bidirectional": whole segments only
    cell: str = "lstm"  # or "gru", "rnn"
    n_mels: int = 80
    conv_channels: int = 256
    width: int = 384
    layers: int = 4
    hidden: int = 0  # units of a cell (per direction); 0: as the width. Unlike the width, outputs are projected
    lookahead: int = 0  # emission frames of 40 ms that a streaming encoder waits for
    layer_norm: bool = True
    dropout: float = 0.1
    vocabulary: int = 29
    auxiliary: int = 0  # tokens of a second output that only training reads: letters beside phones

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ASRError(f"encoder kind {self.kind!r} is unknown; choose one of {', '.join(KINDS)}")
        if self.cell not in CELLS:
            raise ASRError(f"encoder cell {self.cell!r} is unknown; choose one of {', '.join(CELLS)}")
        if self.lookahead < 0 or (self.lookahead and self.kind != "streaming"):
            raise ASRError(
                f"lookahead is {self.lookahead} for a {self.kind} encoder; it must be 0 or more, and 0 unless streaming"
            )


class EncoderState(NamedTuple):
    """All that a streaming encoder remembers; every tensor has the batch as its first dimension."""

    conv1: Tensor  # (batch, CACHED, n_mels), normalised frames
    conv2: Tensor  # (batch, CACHED, conv_channels)
    ahead: Tensor  # (batch, lookahead, width), outputs of the lower blocks
    hidden: tuple[Tensor, ...]  # one (batch, hidden) per block
    cell: tuple[Tensor, ...]  # likewise for an LSTM, empty for other cells


class Block(nn.Module):
    """x + dropout(project(cell(norm(x)))): a recurrent layer with a residual path around it."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        bidirectional = config.kind == "bidirectional"
        hidden = config.hidden or config.width // (2 if bidirectional else 1)
        out = hidden * (2 if bidirectional else 1)
        self.norm = nn.LayerNorm(config.width) if config.layer_norm else nn.Identity()
        self.cell = CELLS[config.cell](config.width, hidden, batch_first=True, bidirectional=bidirectional)
        self.project = nn.Linear(out, config.width) if out != config.width else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, state: tuple[Tensor, ...] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """x: shape = (batch, frames, width); state: (hidden,) or (hidden, cell), each (batch, hidden)."""
        given = None if state is None else tuple(s.unsqueeze(0) for s in state)
        y, last = self.cell(self.norm(x), given[0] if given and len(given) == 1 else given)
        last = last if isinstance(last, tuple) else (last,)
        return x + self.dropout(self.project(y)), tuple(s[0] for s in last)

    def whole(self, x: Tensor, lengths: Tensor) -> Tensor:
        """As forward, for whole utterances; in both directions each is read from its own last frame."""
        given = self.norm(x)
        if lstm.fits(self.cell, given):
            y = lstm.whole(self.cell, given)
        elif not self.cell.bidirectional:
            y, _ = self.cell(given)
        else:
            packed = nn.utils.rnn.pack_padded_sequence(given, lengths.cpu(), batch_first=True, enforce_sorted=False)
            y, _ = nn.utils.rnn.pad_packed_sequence(self.cell(packed)[0], batch_first=True, total_length=x.shape[1])
        return x + self.dropout(self.project(y))


class Encoder(nn.Module):
    """Log-mel frames to CTC logits. `mean` and `std` are the training data's, per band, and part of the weights."""

    blocks: Sequence[Block]
    mean: Tensor
    std: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(config.n_mels))
        self.register_buffer("std", torch.ones(config.n_mels))
        self.conv1 = nn.Conv1d(config.n_mels, config.conv_channels, KERNEL, STRIDE)
        self.conv2 = nn.Conv1d(config.conv_channels, config.width, KERNEL, STRIDE)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))  # type: ignore[assignment]
        # Row convolution (Wang et al., 2016): each channel mixes its present with `lookahead` future frames.
        self.ahead = (
            nn.Conv1d(config.width, config.width, config.lookahead + 1, groups=config.width)
            if config.lookahead
            else nn.Identity()
        )
        self.norm = nn.LayerNorm(config.width) if config.layer_norm else nn.Identity()
        self.output = nn.Linear(config.width, config.vocabulary + config.auxiliary)
        with torch.no_grad():
            if isinstance(self.ahead, nn.Conv1d):
                nn.init.zeros_(self.ahead.weight)[:, :, 0] = 1.0
            for name, p in self.named_parameters():
                if "cell.weight_hh" in name:
                    for gate in p.chunk(p.shape[0] // p.shape[1]):
                        nn.init.orthogonal_(gate)
                elif "cell.bias_ih" in name and config.cell == "lstm":
                    p.view(4, -1)[1] = 1.0  # forget gate open at first (Jozefowicz et al., 2015)

    def start(self, batch: int = 1) -> EncoderState:
        """The state of `batch` streams that have heard nothing."""
        c = self.config
        hidden = c.hidden or c.width

        def zeros(*shape: int) -> Tensor:
            return self.mean.new_zeros(batch, *shape)

        return EncoderState(
            zeros(CACHED, c.n_mels),
            zeros(CACHED, c.conv_channels),
            zeros(c.lookahead, c.width),
            tuple(zeros(hidden) for _ in range(c.layers)),
            tuple(zeros(hidden) for _ in range(c.layers)) if c.cell == "lstm" else (),
        )

    def step(self, features: Tensor, state: EncoderState) -> tuple[Tensor, EncoderState]:
        """Features, shape = (batch, a multiple of 4 frames, n_mels), to log-probabilities and the next state.

        The first `lookahead` emissions of a stream are not of its audio; drop them, and feed as many more at its end.
        """
        x, conv1, conv2 = self._subsample((features - self.mean) / self.std, state.conv1, state.conv2)
        hidden, cell = [], []
        for i, block in enumerate(self.blocks):
            if i == len(self.blocks) // 2:
                x, ahead = self._look_ahead(x, state.ahead)
            given = (state.hidden[i], state.cell[i]) if state.cell else (state.hidden[i],)
            x, last = block(x, given)
            hidden.append(last[0])
            cell.extend(last[1:])
        return self.emissions(x), EncoderState(conv1, conv2, ahead, tuple(hidden), tuple(cell))

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Whole utterances: log-probabilities, shape = (batch, emission frames, vocabulary + auxiliary), and lengths.

        The probabilities of the vocabulary add up to one, and so do those of the auxiliary tokens after them.

        features: shape = (batch, frames, n_mels), padded at the end; lengths: frames of each, shape = (batch,).
        """
        c = self.config
        emission_lengths = (lengths + SUBSAMPLING - 1) // SUBSAMPLING
        x = (features - self.mean) / self.std
        frames = torch.arange(x.shape[1], device=x.device)
        x = torch.where((frames < lengths[:, None])[:, :, None], x, 0.0)
        missing = -x.shape[1] % SUBSAMPLING + c.lookahead * SUBSAMPLING
        x = F.pad(x, (0, 0, 0, missing))
        start = self.start(len(x))
        x, *_ = self._subsample(x, start.conv1, start.conv2)
        for i, block in enumerate(self.blocks):
            if i == len(self.blocks) // 2:
                x, _ = self._look_ahead(x, start.ahead)
            x = block.whole(x, emission_lengths)
        logits = self.output(self.norm(x[:, c.lookahead :])).float()
        parts = logits.split((c.vocabulary, c.auxiliary), -1)
        return torch.cat([part.log_softmax(-1) for part in parts], -1), emission_lengths

    def emissions(self, x: Tensor) -> Tensor:
        """Log-probabilities of the vocabulary alone, from the outputs of the last block."""
        size = self.config.vocabulary
        return F.linear(self.norm(x), self.output.weight[:size], self.output.bias[:size]).log_softmax(-1)

    def _subsample(self, x: Tensor, conv1: Tensor, conv2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.cat((conv1.to(x.dtype), x), 1)
        y = F.relu(self.conv1(x.transpose(1, 2)).transpose(1, 2))
        y = torch.cat((conv2.to(y.dtype), y), 1)
        z = F.relu(self.conv2(y.transpose(1, 2)).transpose(1, 2))
        return self.dropout(z), x[:, -CACHED:], y[:, -CACHED:]

    def _look_ahead(self, x: Tensor, ahead: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat((ahead.to(x.dtype), x), 1)
        kept = x[:, x.shape[1] - self.config.lookahead :]
        return self.ahead(x.transpose(1, 2)).transpose(1, 2), kept
