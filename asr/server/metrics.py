"""What a server counts about itself, in the form that Prometheus reads."""

import os

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

SHARED = "PROMETHEUS_MULTIPROC_DIR"  # environment variable: a folder in which processes share their figures

SECONDS = (0.01, 0.02, 0.04, 0.08, 0.12, 0.16, 0.2, 0.25, 0.3, 0.4, 0.6, 1.0, 2.0, 5.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The figures of one server."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        here = self._registry
        coming = "From the coming of audio to its decoding"
        self.streams = Gauge(
            "asr_streams", "Streams that are live now", ["protocol"], registry=here, multiprocess_mode="livesum"
        )
        self.latency = Histogram("asr_chunk_seconds", coming, buckets=SECONDS, registry=here)
        self.batch = Histogram("asr_batch_streams", "Streams in a run of the encoder", buckets=SIZES, registry=here)
        self.audio = Counter("asr_audio_seconds", "Seconds of audio decoded", registry=here)
        self.refusals = Counter("asr_refusals", "Requests refused or ended early", ["code"], registry=here)

    def text(self) -> bytes:
        """All figures, of all processes that share theirs, in Prometheus' text format."""
        if SHARED not in os.environ:
            return generate_latest(self._registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)
        return generate_latest(together)
