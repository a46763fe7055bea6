"""The training loop: CTC with AdamW, bf16 autocast, averaged weights, exact resume, any number of processes.

    asr train recipes/starter/streaming.toml --data SPEECH --output exp/starter
    torchrun --nproc-per-node 8 run_asr.py train recipes/librispeech/streaming-960.toml --data LIBRISPEECH

Every step is a function of (configuration, step number, weights, optimizer state): batches are planned from (seed,
epoch), augmentation is drawn from (seed, epoch, batch), dropout is seeded by the step. Hence a run that was killed goes
on from its last checkpoint with the very losses it would have had.
"""

import copy
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from asr.ctc import collapse, ctc_loss
from asr.encoder import Encoder
from asr.errors import ASRError
from asr.text import normalize
from asr.tokenizer import Tokenizer
from asr.training import checkpoint
from asr.training.checkpoint import Checkpoint
from asr.training.config import OptimizerConfig, TrainingConfig
from asr.training.data import AudioStore, Batch, PlainBatches, TrainingBatches, statistics, usable
from asr.training.log import RunLog
from asr.training.manifest import Utterance, read


@dataclass(frozen=True)
class Place:
    """Which of how many processes this is, and where its tensors live."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def join(cls) -> "Place":
        """From torchrun's environment; alone where there is none. NCCL on CUDA, gloo on the CPU."""
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        cuda = torch.cuda.is_available()
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(device)
        if world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if cuda else "gloo")
        return cls(rank, world, device)


def rate_at(step: int, config: OptimizerConfig) -> float:
    """Learning rate of a step (from 0): linear warm-up, constant, linear decay to zero."""
    warm = (step + 1) / max(1, config.warmup_steps)
    left = (config.steps - step) / max(1, config.decay_steps)
    return config.peak_rate * min(1.0, warm, left)


def average_into(average: nn.Module, encoder: nn.Module, decay: float) -> None:
    """Moves the averaged weights a share of 1 - decay towards the current ones."""
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(encoder.parameters()), 1 - decay)


def gather(sources: list[str], data: Path) -> list[Utterance]:
    """Utterances of all sources; each is a manifest or a LibriSpeech folder, relative to `data`."""
    return [u for source in sources for u in read(data / source)]


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
    `init` is a checkpoint whose averaged weights the run begins with.
    """
    place = Place.join()
    output.mkdir(parents=True, exist_ok=True)
    past = checkpoint.load(output) if resume and (output / "last.pt").exists() else None
    heard = gather(config.data.train, data)
    tokenizer = past.tokenizer if past else _tokenizer(config, heard, init, output)
    config = replace(config, encoder=replace(config.encoder, vocabulary=len(tokenizer.tokens)))
    if past and replace(past.config, optimizer=config.optimizer) != config:
        raise ASRError(
            f"{output} holds a run with another configuration; choose another --output, or begin "
            "afresh with --no-resume"
        )
    utterances = usable(heard, tokenizer, config)
    dev = usable(gather(config.data.dev, data), tokenizer, config)
    if not utterances:
        raise ASRError(
            f"none of the {len(heard)} training utterances is usable; check passes and min/max_seconds in [data]"
        )
    if place.rank == 0 and config.data.pack:
        AudioStore(utterances, config.features.sample_rate, output / "audio.i16")
    if place.world > 1:
        dist.barrier()
    store = AudioStore(utterances, config.features.sample_rate, output / "audio.i16" if config.data.pack else None)
    dev_batches = PlainBatches(dev, AudioStore(dev, config.features.sample_rate), tokenizer, config)

    torch.manual_seed(config.optimizer.seed)
    encoder = Encoder(config.encoder)
    if past:
        encoder.load_state_dict(past.weights)
    elif init:
        encoder.load_state_dict(checkpoint.load(init).average)
    else:
        mean, std = statistics(store, len(utterances), config.features)
        encoder.mean.copy_(torch.from_numpy(mean))
        encoder.std.copy_(torch.from_numpy(std))
    encoder.to(place.device)
    fill = encoder.mean.cpu().numpy()
    average = copy.deepcopy(encoder).eval()
    if past:
        average.load_state_dict(past.average)
    optimizer = torch.optim.AdamW(_parameter_groups(encoder, config.optimizer), lr=0.0, betas=(0.9, 0.98))
    if past:
        optimizer.load_state_dict(past.optimizer)
    model = DistributedDataParallel(encoder) if place.world > 1 else encoder

    step, epoch, first = (past.step, past.epoch, past.batch) if past else (0, 0, 0)
    audio_seconds = past.audio_seconds if past else 0.0
    last_step = min(config.optimizer.steps, step + steps) if steps is not None else config.optimizer.steps
    log = RunLog(output, step, config.optimizer.steps) if place.rank == 0 else None

    def state() -> Checkpoint:
        return Checkpoint(
            config, tokenizer, encoder.state_dict(), average.state_dict(), optimizer.state_dict(),
            step, epoch, first, audio_seconds,
        )  # fmt: skip

    saved = time.monotonic()
    while step < last_step:
        batches = TrainingBatches(utterances, store, tokenizer, config, fill, epoch)
        for batch in _share(batches, first, place, workers):
            rate = rate_at(step, config.optimizer)
            torch.manual_seed(config.optimizer.seed * 1_000_003 + step * place.world + place.rank)
            loss, norm = _step(model, batch, optimizer, rate, config.optimizer.clip_norm, place.device)
            average_into(average, encoder, min(config.optimizer.average, (step + 1) / (step + 10)))
            step, first = step + 1, first + place.world
            audio_seconds += batch.seconds * place.world
            if log:
                log.train(step, loss, norm, rate, batch.seconds * place.world)
                if dev and (step % config.optimizer.dev_every == 0 or step == config.optimizer.steps):
                    is_best = log.dev(step, *measure(average, dev_batches, tokenizer, place.device))
                    if is_best:
                        checkpoint.save(state(), output / "best.pt")
                if time.monotonic() - saved > 60 * config.optimizer.checkpoint_minutes:
                    log.flush()
                    checkpoint.save(state(), output / "last.pt")
                    saved = time.monotonic()
            if step == last_step:
                break
        if first >= len(batches) // place.world * place.world:
            epoch, first = epoch + 1, 0
    if log:
        log.close()
        checkpoint.save(state(), output / "last.pt")
    if place.world > 1:
        dist.barrier()
    return state()


def _step(
    model: nn.Module,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    rate: float,
    clip_norm: float,
    device: torch.device,
) -> tuple[float, float]:
    """One update; returns the loss in nats per token and the gradient's norm; one that is not finite is left out."""
    model.train()
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss = _loss(model, batch, device)
    loss.backward()
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), clip_norm))
    if norm < float("inf"):
        optimizer.step()
    return loss.item(), norm


def _loss(model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
    with torch.autocast(device.type, torch.bfloat16):
        log_probs, lengths = model(batch.features.to(device, non_blocking=True), batch.lengths.to(device))
    nll = ctc_loss(log_probs, lengths, batch.targets.to(device), batch.target_lengths.to(device))
    return nll.sum() / batch.target_lengths.sum()


def measure(
    encoder: Encoder, batches: PlainBatches, tokenizer: Tokenizer, device: torch.device
) -> tuple[float, float, float]:
    """Loss in nats per token, and greedy word and character error rates, of plain utterances."""
    import jiwer

    encoder.eval()
    nll, count = 0.0, 0
    references, hypotheses = [], []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
        for number in range(len(batches)):
            batch = batches[number]
            log_probs, lengths = encoder(batch.features.to(device), batch.lengths.to(device))
            tokens = int(batch.target_lengths.sum())
            nll += float(ctc_loss(log_probs, lengths, batch.targets.to(device), batch.target_lengths.to(device)).sum())
            count += tokens
            texts = batch.targets.split(batch.target_lengths.tolist())
            references += [tokenizer.decode(ids.tolist()) for ids in texts]
            for row, length in zip(log_probs.argmax(-1).cpu().numpy(), lengths.tolist(), strict=True):
                hypotheses.append(tokenizer.decode(collapse(row[:length])[0].tolist()))
    return nll / count, jiwer.wer(references, hypotheses), jiwer.cer(references, hypotheses)


def _share(batches: TrainingBatches, first: int, place: Place, workers: int) -> Iterator[Batch]:
    """This process's batches from number `first` on; each process gets as many as any other."""
    whole = len(batches) // place.world * place.world
    numbers = range(first + place.rank, whole, place.world)
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=place.device.type == "cuda",
    )
    return iter(loader)


def _tokenizer(config: TrainingConfig, heard: list[Utterance], init: Path | None, output: Path) -> Tokenizer:
    if init:
        return checkpoint.load(init).tokenizer
    if config.data.unit == "characters":
        return Tokenizer()
    if config.data.unit == "pieces":
        return Tokenizer.train_pieces((normalize(u.text) for u in heard), config.data.pieces, output)
    raise ASRError(f"[data] unit is {config.data.unit!r}; choose characters or pieces")


def _parameter_groups(encoder: nn.Module, config: OptimizerConfig) -> list[dict[str, object]]:
    """Weight decay for matrices only."""
    decayed = [p for p in encoder.parameters() if p.ndim > 1]
    plain = [p for p in encoder.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
