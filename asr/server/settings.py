"""What a server is told by its operator, and what a stream is told by its client."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from asr.audio import MAX_CHANNELS, check_rate
from asr.errors import ASRError
from asr.recognizer import Recognizer, Stream
from asr.segmenter import EndpointRules
from asr.server.refusal import Refusal
from asr.transcript import Seconds

MIB = 2**20

PCM = {"pcm_s16le": "<i2", "pcm_f32le": "<f4"}  # encodings of samples, with NumPy's names for them
CONTAINER = "container"
MOST_PHRASES, LONGEST_PHRASE = 1000, 100  # hot-words of a stream; letters of one
LM_WEIGHTS = (0.0, 5.0)


@dataclass(frozen=True)
class Limits:
    """How much a server takes on."""

    streams: int = 100  # live at the same time, recordings included
    upload: int = 1024 * MIB  # bytes of a recording
    message: int = MIB  # bytes of a message of a WebSocket or of Wyoming
    stream_seconds: Seconds = 4 * 3600.0  # of audio in a stream
    idle_seconds: Seconds = 30.0  # until a client that sends nothing is let go
    send_seconds: Seconds = 10.0  # until a client that reads nothing is let go


@dataclass(frozen=True)
class StreamSettings:
    """What a client wants of its stream."""

    encoding: str = "pcm_s16le"
    sample_rate: int = 16_000  # Hz
    channels: int = 1
    hotwords: Mapping[str, float | None] = field(default_factory=dict)  # phrases with their boosts in nats
    lm_weight: float | None = None
    endpoint: Mapping[str, float] = field(default_factory=dict)  # fields of EndpointRules to change
    partials: bool = True
    words: bool = True

    def open(self, recognizer: Recognizer) -> Stream:
        """The stream of these settings; Refusal where they cannot be. May take a while: not for an event loop."""
        try:
            rules = replace(recognizer.rules, **self.endpoint)
            return recognizer.stream(
                self.sample_rate, rules=rules, hotwords=dict(self.hotwords), partials=self.partials
            )
        except ASRError as error:
            raise Refusal("bad_setting", str(error)) from None

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "StreamSettings":
        """Settings from a message of the protocol; Refusal where a key is unknown or a value cannot be."""
        if unknown := sorted(set(values) - set(_CHECKS)):
            raise Refusal("bad_setting", f'the setting "{unknown[0]}" is unknown; known are {", ".join(_CHECKS)}')
        return cls(**{key: _CHECKS[key](value) for key, value in values.items()})


def hotwords(value: object) -> dict[str, float | None]:
    """Phrases, or objects of a phrase and its boost, as a mapping; Refusal where it is anything else."""
    given = value if isinstance(value, list) else [None]
    if len(given) > MOST_PHRASES:
        raise Refusal("bad_setting", f"there are {len(given)} hot-words; send up to {MOST_PHRASES}")
    found: dict[str, float | None] = {}
    for item in given:
        entry = {"phrase": item} if isinstance(item, str) else item
        if not isinstance(entry, dict) or not isinstance(entry.get("phrase"), str) or set(entry) - {"phrase", "boost"}:
            raise Refusal("bad_setting", '"hotwords" must be a list of phrases or of {"phrase": ..., "boost": ...}')
        phrase, boost = entry["phrase"], entry.get("boost")
        if len(phrase) > LONGEST_PHRASE:
            raise Refusal("bad_setting", f"a hot-word has {len(phrase)} letters; it may have {LONGEST_PHRASE}")
        if not phrase.isascii() or any(letter.isdigit() for letter in phrase):
            raise Refusal(
                "bad_setting", f"the hot-word {phrase!r} must be written in letters from a to z, as it is spoken"
            )
        found[phrase] = None if boost is None else _number("boost", 0.0, 1000.0)(boost)
    return found


def _number(name: str, low: float, high: float) -> Callable[[object], float]:
    def check(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise Refusal("bad_setting", f'"{name}" is {value!r}; it must be a number from {low:g} to {high:g}')
        return float(value)

    return check


def _rate(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refusal("bad_setting", f'"sample_rate" is {value!r}; it must be a number of Hz')
    try:
        return check_rate(value, '"sample_rate"')
    except (ASRError, OverflowError) as error:
        raise Refusal("bad_setting", str(error)) from None


def _channels(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_CHANNELS:
        raise Refusal("bad_setting", f'"channels" is {value!r}; it must be a whole number from 1 to {MAX_CHANNELS}')
    return value


def _encoding(value: object) -> str:
    if not isinstance(value, str) or value not in (*PCM, CONTAINER):
        raise Refusal("bad_setting", f'"encoding" is {value!r}; it must be one of {", ".join((*PCM, CONTAINER))}')
    return value


def _flag(name: str) -> Callable[[object], bool]:
    def check(value: object) -> bool:
        if not isinstance(value, bool):
            raise Refusal("bad_setting", f'"{name}" is {value!r}; it must be true or false')
        return value

    return check


_RULES = {
    "silence_seconds": _number("silence_seconds", 0.1, 10.0),
    "max_seconds": _number("max_seconds", 2.0, EndpointRules.max_seconds * 3),
}


def _endpoint(value: object) -> dict[str, float]:
    if not isinstance(value, dict) or set(value) - set(_RULES):
        raise Refusal("bad_setting", f'"endpoint" must be an object that holds no more than {" and ".join(_RULES)}')
    rules = {key: _RULES[key](item) for key, item in value.items()}
    if "max_seconds" in rules:
        rules["cut_seconds"] = min(EndpointRules.cut_seconds, rules["max_seconds"])
    return rules


_CHECKS: dict[str, Callable[[object], Any]] = {
    "encoding": _encoding,
    "sample_rate": _rate,
    "channels": _channels,
    "hotwords": hotwords,
    "lm_weight": _number("lm_weight", *LM_WEIGHTS),
    "endpoint": _endpoint,
    "partials": _flag("partials"),
    "words": _flag("words"),
}
