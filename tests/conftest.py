"""What more than one test file uses."""

import os
import select
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says more about what else the machine does.
settings.register_profile("asr", deadline=None)
settings.load_profile("asr")


@pytest.fixture
def sound_server() -> Iterator[dict[str, str]]:
    """The environment of programs that shall play to, and record from, a sound server of their own.

    What is played with paplay into its only, silent output is heard on the microphone "pulse". Needs the system
    packages pulseaudio, pulseaudio-utils, libasound2-plugins and libportaudio2.
    """
    with tempfile.TemporaryDirectory(prefix="pulse") as home:  # not tmp_path: a socket's path must be short
        own = {name: value for name, value in os.environ.items() if not name.startswith(("PULSE_", "XDG_", "DBUS_"))}
        environment = {**own, "HOME": home, "XDG_RUNTIME_DIR": home}
        modules = ["--load=module-native-protocol-unix", "--load=module-null-sink"]
        # With --daemonize the command returns as soon as the server is ready.
        start = ["pulseaudio", "-n", "--daemonize", "--exit-idle-time=-1", *modules]
        subprocess.run(start, env=environment, check=True, capture_output=True, timeout=60)
        server = os.pidfd_open(int(Path(home, "pulse", "pid").read_text()))
        try:
            yield environment
        finally:
            subprocess.run(["pulseaudio", "--kill"], env=environment, capture_output=True, timeout=60)
            select.select([server], [], [], 60)  # until it has ended, and with it its work in the folder
            os.close(server)


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
    directory = tmp_path_factory.mktemp("models") / "tiny"
    export_model(encoder, Tokenizer(), FeatureConfig(), directory, name="tiny")
    return directory
