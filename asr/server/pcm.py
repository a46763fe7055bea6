"""Bytes of PCM as they come over a network, cut anywhere, to samples."""

import numpy as np

from asr.server.refusal import Refusal
from asr.server.session import Pcm


class PcmReader:
    """Joins what was cut within a frame. dtype: NumPy's name, such as "<i2"."""

    def __init__(self, dtype: str, channels: int = 1) -> None:
        self._dtype = np.dtype(dtype)
        self._channels = channels
        self._frame = self._dtype.itemsize * channels  # bytes
        self._rest = b""

    def read(self, data: bytes) -> Pcm:
        """The whole frames so far, shape = (n,) or (n, channels)."""
        data = self._rest + data
        whole = len(data) // self._frame * self._frame
        self._rest = data[whole:]
        samples = np.frombuffer(data[:whole], self._dtype)
        return samples.reshape(-1, self._channels) if self._channels > 1 else samples

    def close(self) -> None:
        """Refusal where bytes are left that make no frame."""
        if self._rest:
            raise Refusal(
                "bad_audio",
                f"the stream ends {len(self._rest)} bytes into a frame of {self._frame}; send whole samples",
            )
