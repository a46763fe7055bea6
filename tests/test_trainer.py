"""Training: it learns, a run that was killed goes on exactly, and two processes make one run."""

import gc
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from asr.cli import main
from asr.ctc import ctc_loss
from asr.encoder import EncoderConfig
from asr.errors import ASRError
from asr.lexicon import PHONES, Lexicon
from asr.text import normalize
from asr.tokenizer import Tokenizer
from asr.training import checkpoint
from asr.training.config import AugmentConfig, DataConfig, OptimizerConfig, TrainingConfig
from asr.training.data import AudioStore, Batch, TrainingBatches, plan_epoch
from asr.training.denominator import log_denominator, log_prior, trigrams
from asr.training.log import RunLog
from asr.training.manifest import COLUMNS, read
from asr.training.processes import Place
from asr.training.trainer import Corpus, Learner, _batches, average_into, divergence, rate_at, train

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).parent / "data"
CLIPS = read(DATA / "clips.tsv")
PLAIN = AugmentConfig(0, 0, 0, 0, (0, 0), 0, 0, 0, 0, 0)
ALONE = Place(0, 1, torch.device("cpu"))
TIME_LIMIT = 300  # seconds for one command

RECIPE = """
name = "tiny"

[data]
train = ["clips.tsv"]
dev = ["{dev}"]
known_speakers = true
batch_seconds = 20.0

[encoder]
width = 24
conv_channels = 8
layers = 2
lookahead = 2

[optimizer]
steps = 14
peak_rate = 0.01
warmup_steps = 4
decay_steps = 4
dev_every = 1
checkpoint_minutes = 0
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def manifest(to: Path, chosen: list[int], **changes: str) -> Path:
    """A manifest of some of the clips; changes replace the values of a column in its last line."""
    rows = [dict(zip(COLUMNS, (str(u.path), str(u.seconds), u.speaker, u.corpus, u.text), strict=True)) for u in CLIPS]
    rows = [rows[i] for i in chosen]
    rows[-1] |= changes
    to.write_text("\t".join(COLUMNS) + "\n" + "".join("\t".join(row.values()) + "\n" for row in rows))
    return to


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The tiny recipe: five batches an epoch, the shortest clip to measure on, a dev line after every step."""
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE.format(dev=manifest(tmp_path / "dev.tsv", [0])))
    return path


def tiny(encoder: dict[str, Any] | None = None, **optimizer: Any) -> TrainingConfig:
    """A configuration without augmentation and dropout that trains on the clips in a fraction of a second a step."""
    return TrainingConfig(
        data=DataConfig(train=["clips.tsv"], batch_seconds=20.0, max_seconds=12.0),
        encoder=EncoderConfig(**{"width": 16, "conv_channels": 8, "layers": 2, "dropout": 0.0} | (encoder or {})),
        augment=PLAIN,
        optimizer=OptimizerConfig(**{"steps": 4, "warmup_steps": 1, "decay_steps": 0} | optimizer),
    )


def learner_for(config: TrainingConfig, place: Place = ALONE) -> tuple[Learner, Corpus]:
    corpus = Corpus(Tokenizer(), CLIPS, AudioStore(CLIPS, 16_000), None, 0)
    return Learner(config, corpus, place, None, None), corpus


def batch_of(corpus: Corpus, chosen: list[int]) -> Batch:
    config = replace(tiny(), data=DataConfig(batch_seconds=1000))
    utterances = [corpus.utterances[i] for i in chosen]
    store = AudioStore(utterances, 16_000)
    return TrainingBatches(utterances, store, corpus.tokenizer, config, np.zeros(80, np.float32), 0)[0]


def losses(output: Path, quantity: str = "train") -> list[float]:
    rows = [line.split("\t") for line in (output / "losses.tsv").read_text().splitlines()]
    return [float(value) for _, kind, value in rows if kind == quantity]


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, str(ROOT / "run_asr.py"), "train", *map(str, arguments), "--threads", "1"]


def torchrun(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *map(str, arguments)]


def finish(arguments: list[str]) -> None:
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
    assert done.returncode == 0, done.stderr


def kill_at(step: int, arguments: list[str]) -> None:
    """Kills the command and its children as soon as it reports `step`, wherever that finds it."""
    with subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr
        seen = []
        for line in process.stderr:
            seen.append(line)
            if line.startswith(f"step {step}:"):
                os.killpg(process.pid, signal.SIGKILL)
                break
        else:
            pytest.fail("".join(seen))
    assert process.returncode == -signal.SIGKILL


def test_a_killed_run_goes_on_with_the_very_losses_it_would_have_had(tmp_path: Path, recipe: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(command(recipe, "--data", DATA, "--output", whole, "--workers", "1"))
    again = command(recipe, "--data", DATA, "--output", killed, "--workers", "0")
    for step in sorted(random.sample(range(2, 14), 2)):
        kill_at(step, again)
    finish(again)
    assert (killed / "losses.tsv").read_bytes() == (whole / "losses.tsv").read_bytes()
    assert len(losses(whole)) == len(losses(whole, "dev WER")) == len(losses(whole, "dev CER")) == 14
    one, other = checkpoint.load(whole), checkpoint.load(killed)
    assert one.epoch >= 2
    assert one.audio_seconds == other.audio_seconds
    for name in ("weights", "average"):
        assert all(torch.equal(value, getattr(other, name)[key]) for key, value in getattr(one, name).items())


PAIR = """
import json, os, sys
from dataclasses import replace
from pathlib import Path
import torch
from asr.training.config import read_config
from asr.training.processes import joined
from asr.training.trainer import train
from tests.test_trainer import batch_of, learner_for, tiny

torch.set_num_threads(1)
recipe, data, output = map(Path, sys.argv[1:])
with joined() as place:
    learner, corpus = learner_for(tiny(), place)
    loss, norm, _ = learner.learn(batch_of(corpus, [[0, 2], [3]][place.rank]))
    state = train(read_config(recipe), data, output, workers=0)
torch.save(state.weights, output / f"weights{place.rank}.pt")
(output / f"pair{place.rank}.json").write_text(json.dumps([loss, norm]))
"""


def test_two_processes_make_one_run(tmp_path: Path, recipe: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    script = tmp_path / "pair.py"
    script.write_text(PAIR)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        torchrun(script, recipe, DATA, whole), env=environment, capture_output=True, text=True, timeout=TIME_LIMIT
    )
    assert done.returncode == 0, done.stderr

    first, second = (torch.load(whole / f"weights{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert losses(whole, "dev")[-1] < losses(whole, "dev")[0] - 0.3

    # Loss and gradient of two processes are those of one that has both their batches.
    learner, corpus = learner_for(tiny())
    loss, norm, _ = learner.learn(batch_of(corpus, [0, 2, 3]))
    for rank in (0, 1):
        assert json.loads((whole / f"pair{rank}.json").read_text()) == pytest.approx([loss, norm], rel=0.01)

    again = torchrun(*command(recipe, "--data", DATA, "--output", killed, "--workers", "0")[1:])
    kill_at(random.randrange(2, 14), again)
    finish(again)
    assert (killed / "losses.tsv").read_bytes() == (whole / "losses.tsv").read_bytes()


@pytest.mark.parametrize(("kind", "chosen", "steps"), [("streaming", [0, 2], 150), ("bidirectional", [0], 60)])
def test_it_learns_a_few_clips_by_heart(tmp_path: Path, kind: str, chosen: list[int], steps: int) -> None:
    speech = str(manifest(tmp_path / "few.tsv", chosen))
    shape = {"kind": kind, "width": 96, "conv_channels": 32, "dropout": 0.05}
    schedule = {"peak_rate": 6e-3, "warmup_steps": 10, "decay_steps": 50, "average": 0.9, "dev_every": steps}
    config = replace(
        tiny(shape, steps=steps, **schedule),
        data=DataConfig(train=[speech], dev=[speech], known_speakers=True, max_seconds=10.0, batch_seconds=10.0),
    )
    state = train(config, DATA, tmp_path / "run", workers=0)
    assert losses(tmp_path / "run")[-1] < 0.1
    assert losses(tmp_path / "run", "dev WER") == [0.0]
    assert state.step == steps
    assert checkpoint.load(tmp_path / "run" / "best.pt").step == steps


@given(
    st.builds(
        OptimizerConfig, steps=st.integers(1, 500), warmup_steps=st.integers(0, 99), decay_steps=st.integers(0, 99)
    )
)
def test_the_rate_rises_stays_and_falls_to_nothing(config: OptimizerConfig) -> None:
    rates = [rate_at(step, config) for step in range(config.steps)]
    assert all(0 < rate <= config.peak_rate for rate in rates)
    turns = [step for step in range(1, len(rates) - 1) if rates[step - 1] > rates[step] < rates[step + 1]]
    assert not turns
    if config.warmup_steps + config.decay_steps < config.steps:
        assert max(rates) == config.peak_rate
    if config.warmup_steps:
        assert rates[0] <= config.peak_rate / config.warmup_steps + 1e-12
    if config.decay_steps:
        assert rates[-1] <= config.peak_rate / config.decay_steps + 1e-12


def test_the_average_follows_the_weights() -> None:
    encoder, average = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    config = OptimizerConfig(average=0.9)
    history = []
    with torch.no_grad():
        average.weight.fill_(1000.0)
        for step in range(300):
            encoder.weight.copy_(torch.tensor([[float(step), 5.0]]))
            average_into(average, encoder, step, config)
            history.append(average.weight[0].tolist())
    assert history[5][1] < 5 + 0.002 * 1000  # of the initial weights little is left after a few steps
    assert history[-1] == pytest.approx([299 - 9, 5.0], abs=0.05)  # lags by decay / (1 - decay) steps


def test_it_computes_in_bf16_and_keeps_float32_weights() -> None:
    learner, corpus = learner_for(tiny())
    dtypes = []
    block = next(m for m in learner._encoder.modules() if isinstance(m, nn.LSTM))
    block.register_forward_hook(lambda module, inputs, output: dtypes.append(output[0].dtype))
    batch = batch_of(corpus, [0, 2])
    with torch.no_grad():
        log_probs, lengths = learner._encoder(batch.features, batch.lengths)
    exact = (
        torch.nn.functional.ctc_loss(
            log_probs.transpose(0, 1), batch.targets, lengths, batch.target_lengths, reduction="sum"
        )
        / batch.target_lengths.sum()
    )
    loss, _, _ = learner.learn(batch)
    assert dtypes == [torch.float32, torch.bfloat16]
    assert loss == pytest.approx(float(exact), rel=0.01)
    assert all(value.dtype == torch.float32 for value in learner.checkpoint().weights.values())


def test_a_gradient_that_is_not_finite_is_left_out() -> None:
    learner, corpus = learner_for(tiny())
    before = {name: value.clone() for name, value in learner.checkpoint().weights.items()}
    batch = batch_of(corpus, [0])
    features = batch.features.clone()
    features[0, 3] = float("nan")
    _, norm, _ = learner.learn(batch._replace(features=features))
    assert not np.isfinite(norm)
    assert all(torch.equal(value, before[name]) for name, value in learner.checkpoint().weights.items())
    loss, norm, _ = learner.learn(batch)
    assert np.isfinite([loss, norm]).all()


def test_a_new_run_normalises_by_its_own_speech(tmp_path: Path) -> None:
    state = train(tiny(), DATA, tmp_path / "run", workers=0, steps=0)
    store = AudioStore(CLIPS, 16_000)
    learner = Learner(tiny(), Corpus(Tokenizer(), CLIPS, store, None, 0), ALONE, None, None)
    assert torch.allclose(state.weights["mean"], learner.average.mean, atol=1e-3)
    assert state.weights["mean"].abs().min() > 1


@pytest.mark.parametrize("where", [".", "last.pt"])
def test_a_run_can_begin_with_the_weights_of_another(tmp_path: Path, where: str) -> None:
    first = train(tiny(), DATA, tmp_path / "first", workers=0)
    config = replace(tiny({"dropout": 0.2}, seed=5), name="second", data=DataConfig(train=[str(DATA / "clips.tsv")]))
    second = train(config, tmp_path, tmp_path / "second", init=tmp_path / "first" / where, workers=0, steps=0)
    assert second.step == 0
    for weights in (second.weights, second.average):
        assert all(torch.equal(value, first.average[name]) for name, value in weights.items())
    assert not second.optimizer["state"]
    with pytest.raises(ASRError, match=r"first.* holds weights with encoder.width = 16 and not 24; change the conf"):
        train(tiny({"width": 24}), DATA, tmp_path / "third", init=tmp_path / "first" / where)


def test_a_run_begun_with_pieces_passes_them_on(tmp_path: Path) -> None:
    config = tiny(steps=1)
    config = replace(config, data=replace(config.data, unit="pieces", pieces=60))
    first = train(config, DATA, tmp_path / "first", workers=0)
    assert first.config.encoder.vocabulary == len(first.tokenizer.tokens) == 60
    second = train(tiny(steps=1), DATA, tmp_path / "second", init=tmp_path / "first", workers=0)
    text = normalize(CLIPS[0].text)
    assert checkpoint.load(tmp_path / "second").tokenizer.encode(text) == first.tokenizer.encode(text)
    assert second.config.encoder.vocabulary == 60
    with pytest.raises(
        ASRError, match=r"cannot cut the texts into 5000 pieces: Vocabulary size too high .* Change pie"
    ):
        train(replace(config, data=replace(config.data, pieces=5000)), DATA, tmp_path / "third")


def test_a_run_can_go_on_from_letters_to_phones(tmp_path: Path) -> None:
    first = train(tiny(steps=1), DATA, tmp_path / "first", workers=0)
    words = sorted({word for clip in CLIPS for word in normalize(clip.text).split()})
    lexicon = Lexicon([(word, list(PHONES.values())[i % 39] + "t") for i, word in enumerate(words)])
    lexicon.save(tmp_path / "words.txt")
    config = tiny(steps=2, letters=0.3, consistency=0.2)
    config = replace(config, data=replace(config.data, unit="phones", lexicon=str(tmp_path / "words.txt")))
    second = train(config, DATA, tmp_path / "second", init=tmp_path / "first", workers=0, steps=0)
    assert second.tokenizer.unit == "phones"
    assert second.tokenizer.lexicon
    assert (second.config.encoder.vocabulary, second.config.encoder.auxiliary) == (41, 29)
    same = {name for name, value in second.weights.items() if torch.equal(value, first.average.get(name, value[:0]))}
    assert second.weights.keys() - same == {"output.weight", "output.bias"}
    second = train(config, DATA, tmp_path / "second", workers=0)
    third = train(tiny(steps=1), DATA, tmp_path / "third", init=tmp_path / "second", workers=0, steps=0)
    assert third.tokenizer.unit == "phones"
    assert third.config.encoder.auxiliary == 0
    assert torch.equal(third.weights["output.weight"], second.average["output.weight"][:41])


def test_two_equal_views_do_not_diverge_and_two_unlike_ones_do() -> None:
    one, other = torch.randn(2, 3, 7, 5).log_softmax(-1)
    lengths = torch.tensor([7, 4, 2] * 2)
    assert float(divergence(torch.cat((one, one)), lengths)) == pytest.approx(0.0, abs=1e-5)
    both = float(divergence(torch.cat((one, other)), lengths))
    expected = 0.0
    for row, length in enumerate([7, 4, 2]):
        p, q = one[row, :length], other[row, :length]
        expected += float((p.exp() * (p - q)).sum() + (q.exp() * (q - p)).sum())
    assert both == pytest.approx(expected, rel=1e-4)
    assert both == pytest.approx(float(divergence(torch.cat((other, one)), lengths)), rel=1e-5)


def test_letters_and_a_second_view_add_to_what_is_made_small_but_not_to_the_loss_that_is_told() -> None:
    learner, corpus = learner_for(tiny(letters=0.5, consistency=0.2))
    batch = batch_of(corpus, [0, 2])
    twice = batch._replace(
        features=torch.cat((batch.features, batch.features)),
        lengths=batch.lengths.repeat(2),
        **{name: getattr(batch, name).repeat(2) for name in ("targets", "target_lengths", "letters", "letter_lengths")},
    )
    with torch.no_grad():
        log_probs, lengths = learner._encoder(twice.features, twice.lengths)
        nll, loss = learner._losses(log_probs, lengths, twice)
        once, _ = learner._losses(log_probs[:2], lengths[:2], batch)
        beside = ctc_loss(log_probs[..., 29:], lengths, twice.letters, twice.letter_lengths).sum()
    assert float(nll) == pytest.approx(2 * float(once), rel=1e-4)
    assert float(loss) == pytest.approx(float(nll + 0.5 * beside), rel=1e-4)


def test_the_denominator_adds_the_likelihood_of_all_texts_and_a_large_vocabulary_is_refused(tmp_path: Path) -> None:
    learner, corpus = learner_for(tiny(denominator=0.5))
    batch = batch_of(corpus, [0, 2])
    with torch.no_grad():
        log_probs, lengths = learner._encoder(batch.features, batch.lengths)
        told, loss = learner._losses(log_probs, lengths, batch)
        nll = ctc_loss(log_probs, lengths, batch.targets, batch.target_lengths).sum()
        language = torch.from_numpy(trigrams([corpus.tokenizer.encode(normalize(clip.text)) for clip in CLIPS], 29))
        of_all = log_denominator(log_probs, lengths, language).sum()
        prior = log_prior(batch.targets, batch.target_lengths, language).sum()
    assert float(told) == float(loss) == pytest.approx(float(nll + 0.5 * (of_all - prior)), rel=1e-4)
    assert float(of_all) < 0 < float(nll + of_all - prior)
    config = tiny(denominator=0.5)
    with pytest.raises(
        ASRError, match=r"sums over all pairs of tokens, of which there are 70; at most 64 are possible"
    ):
        train(replace(config, data=replace(config.data, unit="pieces", pieces=70)), DATA, tmp_path, workers=0)


def test_a_speaker_is_not_in_both_training_and_dev(tmp_path: Path) -> None:
    config = tiny()
    for dev, both in (("clips.tsv", True), (str(manifest(tmp_path / "dev.tsv", [0], speaker="unheard")), False)):
        apart = replace(config, data=replace(config.data, dev=[dev]))
        if both:
            with pytest.raises(ASRError, match=r"the dev sources hold \d+ of the training sources' speakers"):
                train(apart, DATA, tmp_path / "run", workers=0, steps=0)
        else:
            train(apart, DATA, tmp_path / "run", workers=0, steps=0)


def test_a_folder_holds_one_run(tmp_path: Path) -> None:
    train(tiny(), DATA, tmp_path, workers=0, steps=2)
    with pytest.raises(ASRError, match=r"holds a run with encoder.layers = 2 and not 3; choose another --output, or"):
        train(tiny({"layers": 3}), DATA, tmp_path)
    assert train(tiny(steps=3), DATA, tmp_path, workers=0).step == 3  # the schedule may change
    first = losses(tmp_path)
    assert train(tiny(steps=3), DATA, tmp_path, workers=0).step == 3  # nothing is left to do
    assert losses(tmp_path) == first
    (tmp_path / "best.pt").touch()
    train(tiny({"layers": 3}), DATA, tmp_path, resume=False, workers=0, steps=1)
    assert len(losses(tmp_path)) == 1
    assert not (tmp_path / "best.pt").exists()


def test_a_run_leaves_no_file_and_no_process_open(tmp_path: Path) -> None:
    train(tiny(steps=1), DATA, tmp_path / "first", workers=1)
    gc.collect()  # closes what tests before this one have left
    before = len(os.listdir("/proc/self/fd"))
    assert train(tiny(steps=9), DATA, tmp_path / "second", workers=1).epoch == 2
    assert len(os.listdir("/proc/self/fd")) <= before
    assert not multiprocessing.active_children()


def test_the_optimizer_s_settings_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    train(tiny(weight_decay=0.1), DATA, tmp_path, workers=0, steps=1)
    state = train(tiny(weight_decay=0.2), DATA, tmp_path, workers=0, steps=1)
    assert state.optimizer["param_groups"][0]["weight_decay"] == 0.2
    assert state.optimizer["state"][0]["step"] == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_the_step_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    report = RunLog.train

    def interrupted(log: RunLog, step: int, *rest: float) -> None:
        report(log, step, *rest)
        if step == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(RunLog, "train", interrupted)
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), DATA, tmp_path / "run", workers=1)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert checkpoint.load(tmp_path / "run").step == 2
    monkeypatch.undo()
    train(tiny(), DATA, tmp_path / "run", workers=0)
    train(tiny(), DATA, tmp_path / "whole", workers=0)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_log_cut_in_the_middle_of_a_line_is_mended(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0, 9) as log:
        for step in (1, 2, 3):
            log.train(step, step / 3, 1.0, 1e-3, 9.0)
            assert log.dev(step, 1 / step, 0.5, 0.25)
    whole = (tmp_path / "losses.tsv").read_bytes()
    for size in range(len(whole)):
        (tmp_path / "losses.tsv").write_bytes(whole[:size])
        step = 1 if size < whole.index(b"3\ttrain") else 2
        kept = b"".join(
            line for line in whole[:size].splitlines(True) if int(line[:1]) <= step and line.endswith(b"\n")
        )
        log = RunLog.__new__(RunLog)
        log._file = (tmp_path / "losses.tsv").open("a+")
        assert log._rewind(step) == (
            1 / step if b"%d\tdev\t" % step in kept else 1.0 if b"1\tdev\t" in kept else np.inf
        )
        log._file.close()
        assert (tmp_path / "losses.tsv").read_bytes() == kept


def test_an_epoch_too_short_for_the_processes_is_an_error() -> None:
    learner, corpus = learner_for(tiny())
    with pytest.raises(ASRError, match=r"an epoch of \d batches is too short for 50 processes; lower batch_seconds or"):
        next(_batches(learner, corpus, Place(0, 50, torch.device("cpu")), 0))


def test_each_process_has_batches_of_its_own_and_as_many_as_any_other() -> None:
    learner, corpus = learner_for(tiny())
    plan = plan_epoch(corpus.utterances, learner.config, 0, 2)
    for rank in (0, 1):
        learner.epoch = learner.batch = 0
        share = _batches(learner, corpus, Place(rank, 2, torch.device("cpu")), 0)
        for batch, own in zip(share, plan[rank : len(plan) // 2 * 2 : 2], strict=False):
            texts = [corpus.tokenizer.encode(normalize(corpus.utterances[i].text)) for i in own]
            assert batch.targets.tolist() == [token for text in texts for token in text]
        assert learner.epoch == 1  # asked for one more than the epoch holds for it


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, ["--set", 'data.train=["nowhere.tsv"]'], "there is no manifest or folder"),
        ({}, ["--set", 'data.train=["empty.tsv"]'], "lists no utterance under its header"),
        ({}, ["--set", "data.train=[]"], "none of the 0 training utterances can be used"),
        ({}, ["--set", "data.min_seconds=15"], "none of the 2 training utterances can be used"),
        ({}, ["--set", 'data.dev=["mute.tsv"]'], "none of the dev utterances can be used; check min_seconds"),
        ({"text": "!?"}, ["--set", 'data.train=["mute.tsv"]'], "none of the 1 training utterances can be used"),
        ({"path": "bad.flac"}, [], "bad.flac"),
        ({"path": "bad.flac"}, ["--set", "data.pack=false"], "bad.flac"),
        ({"path": "bad.flac"}, ["--set", "data.pack=false", "--workers", "0"], "bad.flac"),
        ({"path": "gone.flac"}, [], "gone.flac: No such file or directory; correct the manifest"),
        ({"seconds": "9.5"}, [], "lasts 4.11 s and its manifest says 9.50"),
        ({}, ["--init", "nowhere"], "there is nothing to begin with at nowhere; name a .pt file, a run's folder or a"),
        ({}, ["--init", "bad.flac"], "bad.flac is not a checkpoint of this program"),
        ({}, ["--output", "bad.flac"], "cannot make the folder bad.flac: File exists; choose another --output"),
        ({}, ["--output", "bad.flac/run"], "cannot make the folder bad.flac/run: Not a directory"),
        ({}, ["--set", "encoder.width=wide"], "cannot read the change 'encoder.width=wide'"),
        ({}, ["--data", "nowhere"], "there is no manifest or folder nowhere/clips.tsv"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    manifest(tmp_path / "clips.tsv", [0, 2], **changes)
    manifest(tmp_path / "mute.tsv", [0], text="!?")
    Path("empty.tsv").write_text("\t".join(COLUMNS) + "\n")
    Path("bad.flac").write_bytes(b"fLaC and no more")
    Path("tiny.toml").write_text(RECIPE.format(dev="clips.tsv"))
    assert main(["train", "tiny.toml", "--data", ".", "--output", "run", "--steps", "4", *options]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("asr: ")
    assert message in said[-1]
    assert all("Traceback" not in line and line.startswith(("asr: ", "decoding ", "step ")) for line in said)


def test_wrong_use_is_another_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, recipe: Path
) -> None:
    monkeypatch.delenv("ASR_SPEECH", raising=False)
    assert main(["train", str(recipe)]) == 2
    assert capsys.readouterr().err == "asr: no data folder is named; give --data FOLDER or set ASR_SPEECH\n"
    for option in ("--workers=-1", "--steps=few", "--threads=-2"):
        with pytest.raises(SystemExit) as caught:
            main(["train", str(recipe), option])
        assert caught.value.code == 2
        assert option.partition("=")[0] in capsys.readouterr().err
