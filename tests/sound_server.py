"""A sound server of one's own, whose speaker is heard by its microphone."""

import os
import select
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def running() -> Iterator[dict[str, str]]:
    """The environment of programs that shall play to, and record from, a PulseAudio that ends with the context.

    What is played with paplay into its only, silent output is heard on the microphone "pulse". Needs the system
    packages pulseaudio, pulseaudio-utils, libasound2-plugins and libportaudio2.
    """
    with tempfile.TemporaryDirectory(prefix="pulse") as home:  # a socket's path must be short
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
