"""What more than one test file uses."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.sound_server import running

# How long an example takes says more about what else the machine does.
settings.register_profile("asr", deadline=None)
settings.load_profile("asr")


@pytest.fixture
def sound_server() -> Iterator[dict[str, str]]:
    """The environment of programs that shall play to, and record from, a sound server of their own."""
    with running() as environment:
        yield environment


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A streaming model directory of random weights, so sharp that real speech makes it utter words and pauses."""
    import torch

    from asr.encoder import Encoder, EncoderConfig
    from asr.features import FeatureConfig
    from asr.tokenizer import Tokenizer
    from asr.training.export import export_model

    torch.manual_seed(4)
    encoder = Encoder(EncoderConfig(conv_channels=24, width=48, layers=2, lookahead=3)).eval()
    with torch.no_grad():
        encoder.mean.fill_(-8.0)
        encoder.std.fill_(3.0)
        encoder.output.weight.mul_(8.0)
        encoder.output.bias[:2] += torch.tensor([4.0, 1.0])  # blanks, then spaces, are what it says most
        for i, block in enumerate(encoder.blocks):  # the exporter would make one tensor of equal ones
            for parameter in block.norm.parameters():
                parameter.add_(1e-4 * (i + 1))
    directory = tmp_path_factory.mktemp("models") / "tiny"
    export_model(encoder, Tokenizer(), FeatureConfig(), directory, name="tiny")
    return directory
