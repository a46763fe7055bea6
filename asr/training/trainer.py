"""The training loop: CTC with AdamW, bf16 autocast, averaged weights, exact resume, any number of processes.

    asr train recipes/starter/streaming.toml --data SPEECH --output exp/starter
    torchrun --nproc-per-node 8 run_asr.py train recipes/librispeech/streaming-960.toml --data LIBRISPEECH

Every step is a function of (configuration, step number, weights, optimizer state): batches are planned from (seed,
epoch), augmentation is drawn from (seed, epoch, batch), dropout is seeded by the step. Hence a run that was killed goes
on from its last checkpoint with the very losses it would have had: to the last digit on a CPU with the same number of
processes and threads, and as nearly as its kernels are deterministic on a GPU.
"""

import copy
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div
from torch.nn.parallel import DistributedDataParallel

from asr.ctc import collapse, ctc_loss
from asr.encoder import Encoder
from asr.errors import ASRError
from asr.lexicon import LEXICON_FILE, Lexicon
from asr.recognizer import find_model
from asr.text import normalize
from asr.tokenizer import PHONE_TOKENS, Tokenizer
from asr.training import checkpoint
from asr.training.checkpoint import BEST, LAST, Checkpoint
from asr.training.config import OptimizerConfig, TrainingConfig, differences
from asr.training.data import LETTERS, AudioStore, Batch, PlainBatches, TrainingBatches, prefetched, statistics, usable
from asr.training.denominator import LARGEST_VOCABULARY, log_denominator, log_prior, trigrams
from asr.training.log import RunLog
from asr.training.manifest import Utterance, read
from asr.training.processes import Interruption, Place, joined
from asr.training.restore import starting_point

PACKED_FILE = "audio.i16"


@dataclass(frozen=True)
class Corpus:
    """What a run learns from and is measured on."""

    tokenizer: Tokenizer
    utterances: list[Utterance]
    store: AudioStore
    dev: PlainBatches | None
    left_out: int  # utterances whose length, text or corpus excludes them from training


@dataclass(frozen=True)
class Criterion:
    """Negative log-likelihood of texts by CTC, and `denominator` times that of them among all texts of a language."""

    denominator: float = 0.0
    language: Tensor | None = None

    def __call__(self, log_probs: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
        """The sum over a batch in nats, of arguments as for `ctc_loss`."""
        total = ctc_loss(log_probs, lengths, targets, target_lengths).sum()
        if self.language is None:
            return total
        of_all = log_denominator(log_probs, lengths, self.language) - log_prior(targets, target_lengths, self.language)
        return total + self.denominator * of_all.sum()


class Learner:
    """Encoder, averaged weights and optimizer, and how far they have come: `batch` batches into `epoch`."""

    def __init__(
        self, config: TrainingConfig, corpus: Corpus, place: Place, past: Checkpoint | None, init: Checkpoint | None
    ) -> None:
        vocabulary = len(corpus.tokenizer.tokens)
        auxiliary = len(LETTERS.tokens) if config.optimizer.letters else 0
        encoder = replace(config.encoder, vocabulary=vocabulary, auxiliary=auxiliary)
        self.config = replace(config, encoder=encoder)
        language = _language(corpus).to(place.device) if config.optimizer.denominator else None
        self.criterion = Criterion(config.optimizer.denominator, language)
        self._tokenizer, self._place = corpus.tokenizer, place
        torch.manual_seed(config.optimizer.seed)
        self._encoder = Encoder(self.config.encoder)
        if past:
            self._encoder.load_state_dict(past.weights)
        elif init:
            _begin_from(self._encoder, init, corpus.tokenizer.tokens)
        else:
            mean, std = statistics(corpus.store, len(corpus.utterances), config.features)
            self._encoder.mean.copy_(torch.from_numpy(mean))
            self._encoder.std.copy_(torch.from_numpy(std))
        self._encoder.to(place.device)
        self.average = copy.deepcopy(self._encoder).eval()
        self._optimizer = torch.optim.AdamW(
            _parameter_groups(self._encoder, config.optimizer), lr=0.0, betas=(0.9, 0.98), fused=True
        )
        if past:
            self.average.load_state_dict(past.average)
            self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": past.optimizer["state"]})
        self._model: nn.Module = self._encoder
        if place.world > 1:
            self._model = DistributedDataParallel(self._encoder, broadcast_buffers=False)
        self.step, self.epoch, self.batch = (past.step, past.epoch, past.batch) if past else (0, 0, 0)
        self.audio_seconds = past.audio_seconds if past else 0.0

    def learn(self, batch: Batch) -> tuple[float, float, float]:
        """One update; returns the loss in nats per token, the gradient's norm and the learning rate.

        Loss and gradient are means over the tokens of all processes' batches: those of one batch that held them all.
        A gradient that is not finite is left out.
        """
        optimizer, world, device = self._optimizer, self._place.world, self._place.device
        rate = rate_at(self.step, self.config.optimizer)
        for group in optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(self.config.optimizer.seed * 1_000_003 + self.step * world + self._place.rank)
        self._model.train()
        optimizer.zero_grad(set_to_none=True)
        batch = batch.to(device)
        with torch.autocast(device.type, torch.bfloat16):
            log_probs, lengths = self._model(batch.features, batch.lengths)
        told, loss = self._losses(log_probs, lengths, batch)
        total, tokens = self._place.sum(torch.stack((told.detach(), batch.target_lengths.sum().to(told))))
        (loss * world / tokens).backward()  # DistributedDataParallel divides the sum of gradients by `world`
        norm = float(nn.utils.clip_grad_norm_(self._model.parameters(), self.config.optimizer.clip_norm))
        if norm < float("inf"):
            optimizer.step()
        average_into(self.average, self._encoder, self.step, self.config.optimizer)
        self.step, self.batch = self.step + 1, self.batch + world
        self.audio_seconds += batch.seconds * world
        return float(total / tokens), norm, rate

    def _losses(self, log_probs: Tensor, lengths: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The criterion of the batch's texts, and with it all that is to be made small; sums, in nats."""
        shape, options = self.config.encoder, self.config.optimizer
        main, letters = log_probs.split((shape.vocabulary, shape.auxiliary), -1)
        told = self.criterion(main, lengths, batch.targets, batch.target_lengths)
        loss = told
        if options.letters:
            loss = loss + options.letters * ctc_loss(letters, lengths, batch.letters, batch.letter_lengths).sum()
        if options.consistency:
            loss = loss + options.consistency * divergence(log_probs, lengths)
        return told, loss

    def checkpoint(self) -> Checkpoint:
        """Everything, as it is now."""
        return Checkpoint(
            self.config,
            self._tokenizer,
            self._encoder.state_dict(),
            self.average.state_dict(),
            self._optimizer.state_dict(),
            self.step,
            self.epoch,
            self.batch,
            self.audio_seconds,
        )


def train(
    config: TrainingConfig,
    data: Path,
    output: Path,
    init: Path | None = None,
    resume: bool = True,
    workers: int = 1,
    steps: int | None = None,
) -> Checkpoint:
    """Trains until the configured number of steps, or `steps` more, and returns the last checkpoint.

    `output` receives last.pt, best.pt, losses.tsv and TensorBoard files; a run that it holds goes on from last.pt.
    `init` is a checkpoint, a run's folder or a model directory, whose averaged weights and tokenizer the run begins
    with. The processes of a run share `output`. Ctrl-C and SIGTERM end the run after the step at hand, with a
    checkpoint.

    Raises:
        ASRError: data, configuration or checkpoint cannot be used; the message says why.
        KeyboardInterrupt: the run was interrupted; everything is saved.
    """
    options = config.optimizer
    interruption = Interruption()
    with joined() as place:
        past, initial = _beginning(config, output, init, resume)
        corpus = _corpus(config, data, output, past or initial, place)
        learner = Learner(config, corpus, place, past, initial)
        last_step = options.steps if steps is None else min(options.steps, learner.step + steps)
        if place.is_first and not past:
            (output / BEST).unlink(missing_ok=True)  # of an earlier run
        saved = time.monotonic()
        batches = _batches(learner, corpus, place, workers)
        with _log(output, learner, place) as log, interruption, closing(batches):
            if log and corpus.left_out:
                log.note(f"{len(corpus.utterances)} utterances are learnt from, {corpus.left_out} left out by [data]")
            while learner.step < last_step and not place.any(interruption.wanted):
                batch = next(batches)
                loss, norm, rate = learner.learn(batch)
                if not log:
                    continue
                log.train(learner.step, loss, norm, rate, batch.seconds * place.world)
                if corpus.dev and (learner.step % options.dev_every == 0 or learner.step == options.steps):
                    measured = measure(
                        learner.average, corpus.dev, corpus.tokenizer, place.device, learner.criterion, workers
                    )
                    if log.dev(learner.step, *measured):
                        checkpoint.save(learner.checkpoint(), output / BEST)
                if time.monotonic() - saved >= 60 * options.checkpoint_minutes:
                    log.flush()
                    checkpoint.save(learner.checkpoint(), output / LAST)
                    saved = time.monotonic()
            if log:
                log.flush()
                checkpoint.save(learner.checkpoint(), output / LAST)
                log.note(f"step {learner.step} of {options.steps} is done; {output / LAST} holds the run")
        place.wait()
    if interruption.wanted:
        raise KeyboardInterrupt
    return learner.checkpoint()


def divergence(log_probs: Tensor, lengths: Tensor) -> Tensor:
    """How much the first half of a batch and the second, views of the same speech, differ: a sum over frames in nats.

    Kullback-Leibler divergence both ways; each view learns from the other as from a fixed teacher (Yao et al.,
    "CR-CTC: Consistency regularization on CTC for improved speech recognition", 2024).
    """
    one, other = log_probs.chunk(2)
    both = kl_div(one, other.detach(), reduction="none", log_target=True)
    both = both + kl_div(other, one.detach(), reduction="none", log_target=True)
    inside = torch.arange(one.shape[1], device=one.device) < lengths[: len(one), None]
    return (both.sum(-1) * inside).sum()


def rate_at(step: int, config: OptimizerConfig) -> float:
    """Learning rate of a step (from 0): linear warm-up, constant, linear decay to zero."""
    warm = (step + 1) / max(1, config.warmup_steps)
    left = (config.steps - step) / max(1, config.decay_steps)
    return config.peak_rate * min(1.0, warm, left)


def average_into(average: nn.Module, encoder: nn.Module, step: int, config: OptimizerConfig) -> None:
    """Moves the averaged weights towards those after `step` (from 0): an exponential moving average of all steps.

    It looks back over about 1 / (1 - decay) steps, fewer at first so that the initial weights are soon forgotten
    (Polyak & Juditsky, 1992). It does the work of an average of the last N checkpoints without keeping them, and is
    what is measured, exported and fine-tuned.
    """
    decay = min(config.average, (step + 1) / (step + 10))
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(encoder.parameters()), 1 - decay)


def gather(sources: list[str], data: Path) -> list[Utterance]:
    """Utterances of all sources; each is a manifest or a LibriSpeech folder, relative to `data`."""
    return [u for source in sources for u in read(data / source)]


def measure(
    encoder: Encoder,
    batches: PlainBatches,
    tokenizer: Tokenizer,
    device: torch.device,
    criterion: Criterion,
    workers: int = 0,
) -> tuple[float, float, float]:
    """Loss by the criterion in nats per token, and greedy word and character error rates, of plain utterances."""
    import jiwer

    encoder.eval()
    total, count = 0.0, 0
    references, hypotheses = [], []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
        for batch in prefetched(batches, range(len(batches)), workers):
            log_probs, lengths = encoder(batch.features.to(device), batch.lengths.to(device))
            log_probs = log_probs[..., : len(tokenizer.tokens)]
            total += float(criterion(log_probs, lengths, batch.targets.to(device), batch.target_lengths.to(device)))
            count += int(batch.target_lengths.sum())
            texts = batch.targets.split(batch.target_lengths.tolist())
            references += [tokenizer.decode(ids.tolist()) for ids in texts]
            for row, length in zip(log_probs.argmax(-1).cpu().numpy(), lengths.tolist(), strict=True):
                hypotheses.append(tokenizer.decode(collapse(row[:length])[0].tolist()))
    return total / count, jiwer.wer(references, hypotheses), jiwer.cer(references, hypotheses)


def _beginning(
    config: TrainingConfig, output: Path, init: Path | None, resume: bool
) -> tuple[Checkpoint | None, Checkpoint | None]:
    """The run that goes on, or else the one whose weights a new run is given, where there are such."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ASRError(f"cannot make the folder {output}: {error.strerror}; choose another --output") from None
    if resume and (output / LAST).exists():
        past = checkpoint.load(output)
        if changed := _changes(past, config, but=("optimizer.",)):
            raise ASRError(
                f"{output} holds a run with {changed}; choose another --output, or begin afresh with --no-resume"
            )
        return past, None
    if init is None:
        return None, None
    initial = starting_point(init)
    if changed := _changes(initial, config, but=("name", "data.", "augment.", "optimizer.", "encoder.dropout")):
        raise ASRError(f"{init} holds weights with {changed}; change the configuration, or begin without --init")
    return None, initial


def _changes(given: Checkpoint, config: TrainingConfig, but: tuple[str, ...]) -> str:
    """In words, the settings of a checkpoint that differ from a configuration's, but for those with these prefixes."""
    learnt = given.config.encoder
    encoder = replace(config.encoder, vocabulary=learnt.vocabulary, auxiliary=learnt.auxiliary)
    wanted = replace(config, encoder=encoder)
    changed = differences(given.config, wanted).items()
    return ", ".join(f"{name} = {old!r} and not {new!r}" for name, (old, new) in changed if not name.startswith(but))


def _corpus(config: TrainingConfig, data: Path, output: Path, given: Checkpoint | None, place: Place) -> Corpus:
    """Reads the sources; the first process puts tokenizer and decoded audio into `output`, for all."""
    heard = gather(config.data.train, data)
    if place.is_first:
        _put_tokenizer(config, heard, given, output)
    place.wait()
    tokenizer = Tokenizer.load(output)
    utterances = [u for u in usable(heard, tokenizer, config) if config.data.passes.get(u.corpus, 1.0) > 0]
    if not utterances:
        raise ASRError(
            f"none of the {len(heard)} training utterances can be used: their lengths, texts or corpora are not those "
            "that [data] asks for; check passes, min_seconds and max_seconds"
        )
    rate, packed = config.features.sample_rate, output / PACKED_FILE if config.data.pack else None
    if place.is_first:
        AudioStore(utterances, rate, packed)
    place.wait()
    store = AudioStore(utterances, rate, packed)
    dev = None
    if config.data.dev and place.is_first:
        dev_utterances = usable(gather(config.data.dev, data), tokenizer, config)
        if not dev_utterances:
            raise ASRError("none of the dev utterances can be used; check min_seconds and max_seconds in [data]")
        _keep_apart(utterances, dev_utterances, config)
        dev = PlainBatches(dev_utterances, AudioStore(dev_utterances, rate), tokenizer, config)
    return Corpus(tokenizer, utterances, store, dev, len(heard) - len(utterances))


def _keep_apart(training: list[Utterance], dev: list[Utterance], config: TrainingConfig) -> None:
    """ASRError where a speaker is in both, unless the configuration wants that."""
    both = sorted({u.speaker for u in training} & {u.speaker for u in dev})
    if both and not config.data.known_speakers:
        raise ASRError(
            f"the dev sources hold {len(both)} of the training sources' speakers, {both[0]} for one, and would measure "
            "what is known by heart; take them out, or set data.known_speakers to true"
        )


def _put_tokenizer(config: TrainingConfig, heard: list[Utterance], given: Checkpoint | None, output: Path) -> None:
    """Puts the tokenizer of the given checkpoint, if it has the unit that is asked for, or a new one into `output`."""
    if given and config.data.unit in ("auto", given.tokenizer.unit):
        checkpoint.save_tokenizer(given.tokenizer, output)
        return
    if config.data.unit in ("auto", "characters"):
        checkpoint.save_tokenizer(Tokenizer(), output)
        return
    if config.data.unit == "phones":
        checkpoint.save_tokenizer(Tokenizer(PHONE_TOKENS, lexicon=_lexicon(config.data.lexicon)), output)
        return
    with TemporaryDirectory() as folder:
        try:
            tokenizer = Tokenizer.train_pieces((normalize(u.text) for u in heard), config.data.pieces, folder)
        except RuntimeError as error:
            reason = str(error).rpartition("] ")[2]
            raise ASRError(
                f"cannot cut the texts into {config.data.pieces} pieces: {reason} Change pieces in [data]"
            ) from None
        checkpoint.save_tokenizer(tokenizer, output)


def _lexicon(name_or_path: str) -> Lexicon:
    """A lexicon file, or that of a bundled model."""
    path = Path(name_or_path)
    return Lexicon.load(path if path.is_file() else find_model(name_or_path) / LEXICON_FILE)


def _language(corpus: Corpus) -> Tensor:
    """The denominator's model of tokens, from the texts that are learnt from."""
    tokenizer = corpus.tokenizer
    if len(tokenizer.tokens) > LARGEST_VOCABULARY:
        raise ASRError(
            f"optimizer.denominator sums over all pairs of tokens, of which there are {len(tokenizer.tokens)}; at most "
            f"{LARGEST_VOCABULARY} are possible: set data.unit to phones or characters, or optimizer.denominator to 0"
        )
    texts = (tokenizer.encode(normalize(u.text)) for u in corpus.utterances)
    return torch.from_numpy(trigrams(texts, len(tokenizer.tokens)))


def _begin_from(encoder: Encoder, init: Checkpoint, tokens: list[str]) -> None:
    """Gives an encoder the averaged weights of a checkpoint; the output of other tokens begins afresh."""
    given = dict(init.average)
    for name, values in encoder.output.state_dict(prefix="output.").items():
        known = given[name] if init.tokenizer.tokens == tokens else values[:0]
        given[name] = torch.cat((known, values[len(known) :]))[: len(values)]
    encoder.load_state_dict(given)


def _log(output: Path, learner: Learner, place: Place) -> AbstractContextManager[RunLog | None]:
    return RunLog(output, learner.step, learner.config.optimizer.steps) if place.is_first else nullcontext()


def _batches(learner: Learner, corpus: Corpus, place: Place, workers: int) -> Generator[Batch, None, None]:
    """This process's batches from where the learner is, epoch after epoch."""
    config = learner.config
    fill = learner.average.mean.cpu().numpy()
    utterances, store, tokenizer = corpus.utterances, corpus.store, corpus.tokenizer
    while True:
        batches = TrainingBatches(utterances, store, tokenizer, config, fill, learner.epoch, place.world)
        whole = len(batches) // place.world * place.world  # each process gets as many as any other
        if not whole:
            raise ASRError(
                f"an epoch of {len(batches)} batches is too short for {place.world} processes; lower batch_seconds or "
                "raise passes in [data]"
            )
        numbers = range(learner.batch + place.rank, whole, place.world)
        yield from prefetched(batches, numbers, workers, place.device.type == "cuda")
        learner.epoch, learner.batch = learner.epoch + 1, 0


def _parameter_groups(encoder: nn.Module, config: OptimizerConfig) -> list[dict[str, object]]:
    """Weight decay for matrices only."""
    decayed = [p for p in encoder.parameters() if p.ndim > 1]
    plain = [p for p in encoder.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
