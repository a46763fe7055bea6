"""Samples in, words out: a stream that gives partial and final hypotheses, and whole recordings on the same road.

    samples -> resampler -> gate, if wanted -> log-mel -> encoder -> decoder -> endpointing -> hypotheses

The encoder always runs on pieces of the same length, and what is final is decided once per chunk of the model's own
length: text, times and confidence are the same however the samples are cut. A partial hypothesis need not wait for the
end of a chunk; but words shown before do not change within one, as most such changes are taken back at its end.
"""

import copy
import math
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from asr.audio import Resampler, as_mono_float32, check_rate, read_blocks
from asr.decoding import Decoder
from asr.decoding.beam import BeamConfig, BeamSearch
from asr.decoding.greedy import Greedy
from asr.decoding.hotwords import Hotwords, Wanted, phrases
from asr.decoding.lm import NgramModel
from asr.decoding.tree import open_tree
from asr.decoding.words import reader
from asr.errors import ASRError
from asr.features import Frames, LogMel, Samples
from asr.overlap import Overlap
from asr.runtime import CONFIG_FILE, LANGUAGE_MODEL_FILE, Model, State
from asr.segmenter import EndpointRules, Hypothesis, LogProbs, Segmenter
from asr.transcript import Seconds, Segment, Transcript
from asr.vad import SAMPLE_RATE as GATE_RATE
from asr.vad import Gate, GateRules, Passage

AT_ONCE = 8  # pieces of a stream, if there are so many, that the encoder takes in a batch with those of others
BLOCK_SECONDS = 10.0  # of a recording that is in memory at once

PACKAGE = Path(__file__).parent
PLACES = (PACKAGE.parent / "pretrained", PACKAGE / "pretrained")  # of bundled models: of a checkout, of an installation
DECODERS = ("auto", "beam", "greedy")

# Yields what Model.step takes, a batch of one, and is sent what it gives, until it returns hypotheses.
Steps = Generator[tuple[Frames, State], tuple[LogProbs, State], list[Hypothesis]]


class Recognizer:
    """A model with its decoder. Any number of streams, in any threads, may run at the same time.

    threads: more than one lets `transcribe` and `segments` decode one part of a recording while they read the next.
    """

    def __init__(
        self,
        model: Model,
        decoder: Decoder,
        rules: EndpointRules | None = None,
        gate: GateRules | None = None,
        threads: int = 1,
    ) -> None:
        self.model = model
        self.decoder = decoder
        self.rules = rules or EndpointRules()
        self.gate = gate
        self.threads = threads

    def weighted(self, lm_weight: float) -> "Recognizer":
        """The same recogniser with another weight of the language model; a greedy one is as before."""
        decoder = self.decoder.weighted(lm_weight) if isinstance(self.decoder, BeamSearch) else self.decoder
        other = copy.copy(self)
        other.decoder = decoder
        return other

    def stream(
        self,
        sample_rate: float = 16_000,
        *,
        rules: EndpointRules | None = None,
        hotwords: Wanted | Hotwords | None = None,
        nbest: int = 1,
        partials: bool = True,
    ) -> "Stream":
        """A stream of samples at `sample_rate` Hz, which is resampled where the model wants another rate.

        hotwords: as the method `hotwords` takes them, or what it gave. nbest: alternatives that a final hypothesis
        lists, if more than one. partials: whether there are partial hypotheses, which cost time.
        """
        stream = Stream(self, rules or self.rules, sample_rate, nbest, partials)
        if hotwords:
            stream.set_hotwords(hotwords)
        return stream

    def hotwords(self, wanted: Wanted) -> Hotwords | None:
        """Phrases to listen for, prepared once for any number of streams; None where there is no phrase.

        wanted: a text such as "Nuffield Kaliko=8", "general relativity, Nuffield" or "@FILE", phrases one by one, or a
        mapping of phrases to their boosts in nats; `asr.decoding.hotwords.phrases` says more. Raises ASRError where a
        phrase cannot be spoken, and where the decoder is greedy.
        """
        boosts = phrases(wanted)
        if not boosts:
            return None
        if not isinstance(self.decoder, BeamSearch):
            raise ASRError('hot-words need the beam search and this decoder is greedy; load the model for "beam"')
        return self.decoder.hotwords(boosts, self.model.tokenizer.spellings)

    def _decoder_with(self, hotwords: Wanted | Hotwords | None) -> Decoder:
        prepared = hotwords if isinstance(hotwords, Hotwords) else self.hotwords(hotwords or "")
        return self.decoder.with_hotwords(prepared) if isinstance(self.decoder, BeamSearch) else self.decoder

    def emissions(self, samples: Samples) -> list[LogProbs]:
        """The log-probabilities under a whole recording, chunk by chunk, each of shape = (emissions, vocabulary).

        samples: at the model's rate.
        """
        front = _FrontEnd(self.model)
        found: list[LogProbs] = []
        pieces: list[LogProbs] = []  # of one chunk
        for part, last in ((samples, False), (front.tail(self.rules.tail_seconds), True)):
            for features in front.step(part, last, self.model.block_frames):
                for piece, whole in front.emissions(*self.model.step(features, front.state)):
                    pieces.append(piece)
                    if whole:
                        found.append(np.concatenate(pieces))
                        pieces.clear()
        return found + ([np.concatenate(pieces)] if pieces else [])

    def transcribe(
        self,
        audio: str | os.PathLike[str] | ArrayLike,
        sample_rate: float | None = None,
        *,
        progress: Callable[[Seconds], None] | None = None,
        hotwords: Wanted | Hotwords | None = None,
        nbest: int = 1,
    ) -> Transcript:
        """Everything said in a recording.

        audio: a path, "-" for raw 16-bit mono samples on standard input, or an array as `Stream.accept` takes it.
        sample_rate: of an array (default: the model's) or of standard input, Hz. progress: called with the seconds of
        audio done. hotwords, nbest: as of `stream`. Raises ASRError where the audio cannot be read.
        """
        done: Seconds = 0.0

        def note(seconds: Seconds) -> None:
            nonlocal done
            done = seconds
            if progress:
                progress(seconds)

        segments = tuple(self.segments(audio, sample_rate, progress=note, hotwords=hotwords, nbest=nbest))
        return Transcript(segments, done)

    def segments(
        self,
        audio: str | os.PathLike[str] | ArrayLike,
        sample_rate: float | None = None,
        *,
        progress: Callable[[Seconds], None] | None = None,
        hotwords: Wanted | Hotwords | None = None,
        nbest: int = 1,
    ) -> Iterator[Segment]:
        """The segments of `transcribe`, each as soon as it is final.

        Of a damaged recording, those before the damage are given, then ASRError is raised.
        """
        rate: float = self.model.config.features.sample_rate
        blocks: Iterable[Samples]
        if isinstance(audio, str | os.PathLike):
            blocks = read_blocks(audio, sample_rate, rate, BLOCK_SECONDS)
        else:
            rate = rate if sample_rate is None else check_rate(sample_rate)
            blocks = _blocks(as_mono_float32(audio), int(BLOCK_SECONDS * rate))
        stream = self.stream(rate, hotwords=hotwords, nbest=nbest, partials=False)
        failure: ASRError | None = None
        samples = 0
        with ExitStack() as stack:
            try:
                for block in blocks:
                    if samples and self.threads > 1 and not stream.overlap:  # a short recording is over before it pays
                        stream.overlap = stack.enter_context(Overlap())
                    yield from (hypothesis.segment for hypothesis in stream.accept(block) if hypothesis.is_final)
                    samples += len(block)
                    if progress:
                        progress(samples / rate)
            except ASRError as error:
                failure = error
            yield from (hypothesis.segment for hypothesis in stream.finish())
        if failure:
            raise failure


class Stream:
    """One speaker's samples as they come; made by `Recognizer.stream`, used by one thread at a time."""

    def __init__(
        self,
        recognizer: Recognizer,
        rules: EndpointRules,
        sample_rate: float,
        nbest: int = 1,
        partials: bool = True,
    ) -> None:
        model, gate = recognizer.model, recognizer.gate
        rate = model.config.features.sample_rate
        if nbest < 1:
            raise ASRError(f"{nbest} alternatives are asked for; it must be 1 or more")
        if gate and rate != GATE_RATE:
            raise ASRError(
                f"the speech gate hears {GATE_RATE} Hz and the model {rate} Hz; switch the gate off (--no-gate)"
            )
        self.sample_rate = check_rate(sample_rate)
        self._resampler = Resampler(self.sample_rate, rate)
        self._gate = Gate(gate) if gate else None
        self._recognizer = recognizer
        self._model = model
        self._front = _FrontEnd(model)
        self._at_once = min(model.block_frames, AT_ONCE * model.piece_frames)  # feature frames of an encoder's call
        self._segmenter = Segmenter(model.config, model.tokenizer.tokens, recognizer.decoder, rules, nbest)
        self._samples = 0  # at the model's rate
        self._pieces = 0  # of emissions, decoded
        self._partials = partials
        self._whole = False  # whether the last samples completed a chunk
        self._shown = ""  # text of the last partial hypothesis
        self._finished = False
        self.overlap: Overlap[Hypothesis] | None = None  # of a stream without partial hypotheses

    @property
    def wanted(self) -> int:
        """Samples without which nothing more is decoded; it may take some more of them."""
        if self._gate:
            return 1
        return max(1, int(self._front.wanted * self.sample_rate / self._model.config.features.sample_rate))

    @property
    def piece(self) -> int:
        """Samples of the pieces in which the encoder takes them, or a multiple of it."""
        config = self._model.config.features
        return round(self._model.piece_frames * config.hop * self.sample_rate / config.sample_rate)

    def set_hotwords(self, hotwords: Wanted | Hotwords | None) -> None:
        """Listens for these hot-words, as `Recognizer.stream` takes them, in place of any others.

        They count from the next chunk on: a phrase of which the first words are still open gets its boost, what is
        already said keeps what it was given.
        """
        self._segmenter.exchange(self._recognizer._decoder_with(hotwords))

    def accept(self, samples: ArrayLike) -> list[Hypothesis]:
        """Any number of samples to the final hypotheses they bring, then the partial one where its text is new.

        samples: shape = (n,) or (n, channels); floats within -1 and 1, or int16, int32 or uint8 at full scale. Raises
        ASRError for other types, for NaN or infinite samples (the stream is as before and may go on), and after
        `finish`.
        """
        return self._alone(self.accepting(samples))

    def finish(self) -> list[Hypothesis]:
        """The last final hypotheses, none where nothing is open. The stream takes no more samples."""
        return self._alone(self.finishing())

    def accepting(self, samples: ArrayLike) -> Steps:
        """As `accept`, for one who runs the encoder on chunks of many streams at once."""
        if self._finished:
            raise ASRError("this stream is finished and takes no more samples; begin another with Recognizer.stream()")
        if np.size(samples) == 0:
            return []
        pieces, self._whole = self._pieces, False
        finals = yield from self._advance(self._resampler.step(as_mono_float32(samples)))
        if self._pieces == pieces or not self._partials:
            return finals
        text = self._segmenter.partial_text()
        if not self._whole and not finals and not text.startswith(self._shown):
            return finals
        before, self._shown = self._shown, text
        partial = self._segmenter.partial() if text not in ("", before) else None
        return [*finals, partial] if partial else finals

    def finishing(self) -> Steps:
        """As `finish`, for one who runs the encoder on chunks of many streams at once."""
        if self._finished:
            return []
        self._finished = True
        finals = yield from self._advance(self._resampler.flush())
        finals += self.overlap.rest() if self.overlap else []
        self._segmenter.duration = self._samples / self._model.config.features.sample_rate
        if self._gate:
            finals += yield from self._pass(self._gate.flush())
        elif self._samples:
            finals += yield from self._end_region()
        return finals + (self.overlap.rest() if self.overlap else [])

    def _alone(self, steps: Steps) -> list[Hypothesis]:
        self._at_once = self._model.block_frames
        try:
            work = next(steps)
            while True:
                work = steps.send(self._model.step(*work))
        except StopIteration as done:
            return done.value

    def _advance(self, samples: Samples) -> Steps:
        self._samples += len(samples)
        return self._pass(self._gate.step(samples)) if self._gate else self._recognise(samples)

    def _pass(self, passages: Iterable[Passage]) -> Steps:
        """The final hypotheses of what the gate lets through; each of its regions is recognised by itself."""
        finals: list[Hypothesis] = []
        for passage in passages:
            if passage.begin is not None:
                self._front = _FrontEnd(self._model, passage.known)
                known = self._front.known_emissions * self._model.config.emission_seconds
                finals += self._decode(partial(self._move, passage.begin / GATE_RATE + known))
            finals += yield from self._recognise(passage.samples)
            if passage.ends:
                finals += yield from self._end_region()
        return finals

    def _recognise(self, samples: Samples, last: bool = False) -> Steps:
        finals: list[Hypothesis] = []
        for features in self._front.step(samples, last, self._at_once):
            if self.overlap:
                finals += self.overlap.encode(partial(self._encoded, self._front, features), self._heard)
            else:
                finals += self._heard(self._front.emissions(*(yield features, self._front.state)))
        return finals

    def _encoded(self, front: "_FrontEnd", features: Frames) -> list[tuple[LogProbs, bool]]:
        return list(front.emissions(*self._model.step(features, front.state)))

    def _heard(self, pieces: Iterable[tuple[LogProbs, bool]]) -> list[Hypothesis]:
        finals: list[Hypothesis] = []
        for emissions, whole in pieces:
            self._pieces += 1
            self._whole |= whole
            if whole:
                finals += self._segmenter.step(emissions)
            else:
                self._segmenter.hear(emissions)
        return finals

    def _move(self, origin: Seconds) -> list[Hypothesis]:
        self._segmenter.move(origin)
        return []

    def _decode(self, work: Callable[[], list[Hypothesis]]) -> list[Hypothesis]:
        """After what is still to be decoded."""
        return self.overlap.decode(work) if self.overlap else work()

    def _end_region(self) -> Steps:
        """Lets the last words out with a little silence, and makes them final."""
        silence = self._front.tail(self._segmenter.rules.tail_seconds)
        finals = yield from self._recognise(silence, last=True)
        return finals + self._decode(self._segmenter.flush)


class _FrontEnd:
    """Samples at the model's rate, however cut, to the chunks that the encoder takes, and what it gives to emissions.

    known: how many of the first samples are there for the encoder to warm up; their emissions are dropped.
    """

    def __init__(self, model: Model, known: int = 0) -> None:
        self._config = model.config
        self._piece = model.piece_frames
        self._log_mel = LogMel(model.config.features)
        self._samples = self._log_mel.start()
        self._frames = [np.zeros((0, model.config.features.n_mels), np.float32)]
        self.state = model.start()  # of the encoder
        self.known_emissions = math.ceil(known / (model.config.features.hop * model.config.subsampling))
        self._early = model.config.lookahead + self.known_emissions  # emissions still to come that are dropped
        self._heard = 0  # emissions so far

    @property
    def wanted(self) -> int:
        """Samples that complete the next piece."""
        frames = self._piece - sum(map(len, self._frames))
        return self._log_mel.wanted(frames, self._samples)

    def tail(self, seconds: Seconds) -> Samples:
        """Silence after which the emissions of all samples, and of `seconds` more, are out."""
        features = self._config.features
        late = self._config.chunk_frames + self._config.lookahead * self._config.subsampling
        frames = late if self._config.streaming else 0
        return np.zeros(round(seconds * features.sample_rate) + frames * features.hop + features.window, np.float32)

    def step(self, samples: Samples, last: bool, most: int) -> Iterator[Frames]:
        """Features of the pieces that are complete, as many as make `most` frames, shape = (1, frames, n_mels).

        A bidirectional model has all of them as one chunk, with the `last` samples.
        """
        frames, self._samples = self._log_mel.step(samples, self._samples)
        self._frames.append(frames)
        if last:
            self._frames.append(self._log_mel.flush(self._samples))
        if self._config.streaming:
            length = self._piece
            held = np.concatenate(self._frames)
            whole = len(held) // length * length
            self._frames = [held[whole:].copy()]
            yield from (held[None, begin : min(begin + most, whole)] for begin in range(0, whole, most))
        elif last:
            yield np.concatenate(self._frames)[None]

    def emissions(self, log_probs: LogProbs, state: State) -> Iterator[tuple[LogProbs, bool]]:
        """Emissions that the encoder has made, shape = (emissions, vocabulary), cut where chunks end, and whether."""
        self.state = state
        length = self._config.chunk_frames // self._config.subsampling
        begin, count = 0, log_probs.shape[1]
        while begin < count:
            piece = log_probs[0, begin : begin + length - self._heard % length]
            begin += len(piece)
            self._heard += len(piece)
            early = min(self._early, len(piece))
            self._early -= early
            yield piece[early:], self._heard % length == 0


def load(
    name_or_dir: str | os.PathLike[str] = "en",
    *,
    decoder: str = "auto",
    threads: int = 1,
    precision: str = "auto",
    rules: EndpointRules | None = None,
    gate: GateRules | None = None,
    hotwords: Wanted | None = None,
) -> Recognizer:
    """A recogniser from a bundled model's name or a model directory.

    decoder: "beam", "greedy", or "auto": beam where the model has a language model. threads: more than one lets
    `transcribe` decode a part of a recording while it reads the next, and ONNX Runtime, where it computes the encoder,
    use so many for one stream; the words are the same. precision: "int8", "fp32", or "auto", which prefers
    int8. rules: when hypotheses become final. hotwords: for all streams that name none of their own, as
    `Recognizer.hotwords` takes them; with them "auto" is beam. Raises ASRError where there is no such model or it
    cannot be read.
    """
    if decoder not in DECODERS:
        raise ASRError(f"decoder {decoder!r} is unknown; choose one of {', '.join(DECODERS)}")
    model = Model.load(find_model(name_or_dir), threads=threads, precision=precision)
    search = _decoder(model, "beam" if hotwords and decoder == "auto" else decoder)
    recognizer = Recognizer(model, search, rules, gate, threads)
    if hotwords:
        recognizer.decoder = recognizer._decoder_with(hotwords)
    return recognizer


def find_model(name_or_dir: str | os.PathLike[str]) -> Path:
    """The directory of a model: one that exists, or that of a bundled model; ASRError where there is neither."""
    directory = Path(name_or_dir)
    if (directory / CONFIG_FILE).is_file():
        return directory
    bundled = {path.parent.name: path.parent for place in PLACES for path in place.glob(f"*/{CONFIG_FILE}")}
    if str(name_or_dir) in bundled:
        return bundled[str(name_or_dir)]
    if directory.is_dir():
        return directory  # which Model.load will describe
    names = ", ".join(sorted(bundled)) or "none"
    raise ASRError(f"there is no model {str(name_or_dir)!r}; name a model directory or a bundled model: {names}")


def _blocks(samples: Samples, length: int) -> Iterator[Samples]:
    return (samples[begin : begin + length] for begin in range(0, len(samples), length))


def _decoder(model: Model, kind: str) -> Decoder:
    language_model = model.directory / LANGUAGE_MODEL_FILE
    if kind == "greedy" or (kind == "auto" and not language_model.is_file()):
        return Greedy(reader(model.tokenizer))
    try:
        config = BeamConfig(**model.config.decoder)
    except TypeError as error:
        raise ASRError(f"{model.directory / CONFIG_FILE} has unknown decoder weights: {error}; update asr") from None
    if not language_model.is_file():
        return BeamSearch(config, tokens=model.tokenizer.tokens)
    lm, tokenizer = NgramModel.load(language_model), model.tokenizer
    tree = open_tree(model.directory, lm, tokenizer.lexicon)
    return BeamSearch.with_language_model(lm, tokenizer.tokens, config, tokenizer.lexicon, tree)
