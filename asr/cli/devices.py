"""`asr devices`: the microphones there are."""

import argparse

HELP = "list the microphones that live can listen to"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's options, of which there are none."""


def run(args: argparse.Namespace) -> int:
    """Prints one line a device; the default one is marked with a star."""
    from asr.microphone import devices, no_microphone

    found = devices()
    if not found:
        raise no_microphone()
    width = max(len(device.name) for device in found)
    for device in found:
        star = "*" if device.is_default else " "
        channels = f"{device.channels} channel{'s' if device.channels > 1 else ''}"
        print(f"{star} {device.index:3}  {device.name:{width}}  {device.host}, {channels}, {device.sample_rate} Hz")
    return 0
