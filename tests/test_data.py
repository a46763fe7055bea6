"""Batches: what an epoch holds, that it can be made again, and that the audio store tells the truth."""

import math
import multiprocessing
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.ctc import frames_needed
from asr.encoder import SUBSAMPLING
from asr.errors import ASRError
from asr.features import FeatureConfig, log_mel
from asr.text import normalize
from asr.tokenizer import Tokenizer
from asr.training.config import AugmentConfig, DataConfig, OptimizerConfig, TrainingConfig
from asr.training.data import (
    AudioStore,
    Batch,
    PlainBatches,
    TrainingBatches,
    collate,
    plan_epoch,
    prefetched,
    statistics,
    usable,
)
from asr.training.manifest import Utterance, read

DATA = Path(__file__).parent / "data"
RATE = 16_000
CLIPS = read(DATA / "clips.tsv")
PLAIN = AugmentConfig(0, 0, 0, 0, (0, 0), 0, 0, 0, 0, 0)
FILL = np.zeros(80, np.float32)

utterances = st.lists(
    st.builds(
        Utterance,
        path=st.just(Path("a.flac")),
        seconds=st.floats(0.1, 25),
        speaker=st.just("s"),
        corpus=st.sampled_from(["read", "spoken", "digits"]),
        text=st.text("AB C.9", max_size=40),
    ),
    min_size=1,
    max_size=60,
)
passes = st.dictionaries(st.sampled_from(["read", "spoken", "digits"]), st.floats(0, 3.5))


def training(data: DataConfig | None = None, seed: int = 1, augment: AugmentConfig = PLAIN) -> TrainingConfig:
    return TrainingConfig(data=data or DataConfig(), augment=augment, optimizer=OptimizerConfig(seed=seed))


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(one, other, strict=True))


@given(utterances, passes, st.floats(25, 200), st.integers(0, 99), st.integers(0, 9))
@settings(deadline=None)
def test_an_epoch_holds_each_corpus_as_often_as_its_passes_say(
    speech: list[Utterance], passes: dict[str, float], batch_seconds: float, seed: int, epoch: int
) -> None:
    config = training(DataConfig(passes=passes, batch_seconds=batch_seconds), seed)
    plan = plan_epoch(speech, config, epoch)
    times = Counter(i for batch in plan for i in batch)
    for i, u in enumerate(speech):
        asked = passes.get(u.corpus, 1.0)
        assert math.floor(asked) <= times[i] <= math.ceil(asked)
    for batch in plan:
        assert batch
        assert max(speech[i].seconds for i in batch) * len(batch) <= max(batch_seconds, speech[batch[0]].seconds)


@given(utterances, passes, st.integers(0, 99), st.integers(0, 9))
@settings(deadline=None)
def test_an_epoch_is_the_same_whenever_it_is_planned(
    speech: list[Utterance], passes: dict[str, float], seed: int, epoch: int
) -> None:
    config = training(DataConfig(passes=passes), seed)
    assert plan_epoch(speech, config, epoch) == plan_epoch(list(speech), config, epoch)


def test_broken_passes_come_out_right_on_average() -> None:
    speech = [Utterance(Path("a"), 5.0, "s", "read", "A") for _ in range(100)]
    config = training(DataConfig(passes={"read": 1.3}))
    counts = [sum(map(len, plan_epoch(speech, config, epoch))) for epoch in range(50)]
    assert np.mean(counts) == pytest.approx(130, rel=0.03)


def test_epochs_and_seeds_differ() -> None:
    speech = [Utterance(Path("a"), 1 + i / 10, "s", "read", "A") for i in range(100)]
    plans = [plan_epoch(speech, training(seed=seed), epoch) for seed in (1, 2) for epoch in range(3)]
    assert len({str(plan) for plan in plans}) == 6


def test_similar_lengths_share_a_batch_and_batches_come_in_any_order() -> None:
    rng = np.random.default_rng(0)
    speech = [Utterance(Path("a"), float(s), "s", "read", "A") for s in rng.uniform(1, 17, 2000)]
    plan = plan_epoch(speech, training(), 0)
    padded = sum(max(speech[i].seconds for i in batch) * len(batch) for batch in plan)
    assert padded < 1.15 * sum(u.seconds for u in speech)
    longest = [max(speech[i].seconds for i in batch) for batch in plan]
    assert abs(np.corrcoef(longest[:-1], longest[1:])[0, 1]) < 0.3


@given(utterances, passes, st.integers(2, 5), st.integers(0, 99))
@settings(deadline=None)
def test_an_epoch_of_several_processes_holds_the_batches_of_one(
    speech: list[Utterance], passes: dict[str, float], processes: int, epoch: int
) -> None:
    config = training(DataConfig(passes=passes))
    plan = plan_epoch(speech, config, epoch, processes)
    assert sorted(plan) == sorted(plan_epoch(speech, config, epoch))
    assert plan == plan_epoch(speech, config, epoch, processes)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_take_batches_of_similar_lengths_and_steps_come_in_any_order(processes: int) -> None:
    rng = np.random.default_rng(0)
    speech = [Utterance(Path("a"), float(s), "s", "read", "A") for s in rng.uniform(1, 17, 2000)]
    left_out = []
    for epoch in range(5):
        plan = plan_epoch(speech, training(), epoch, processes)
        longest = np.array([max(speech[i].seconds for i in batch) for batch in plan])
        whole = len(plan) // processes * processes
        steps = longest[:whole].reshape(-1, processes)
        drawn = rng.permutation(longest[:whole]).reshape(steps.shape)
        assert np.ptp(steps, axis=1).mean() < 0.15 * np.ptp(drawn, axis=1).mean()
        assert abs(np.corrcoef(steps[:-1, 0], steps[1:, 0])[0, 1]) < 0.3
        left_out += longest[whole:].tolist()
    assert len(set(left_out)) == len(left_out)  # a batch that no process takes is another in each epoch


@given(utterances, st.floats(0, 0.5))
@settings(max_examples=30, deadline=None)
def test_usable_texts_fit_into_their_frames_at_any_speed(speech: list[Utterance], speed: float) -> None:
    tokenizer = Tokenizer()
    config = training(augment=replace(PLAIN, speed=speed))
    kept = usable(speech, tokenizer, config)
    for u in kept:
        assert 0.5 <= u.seconds <= 17
        tokens = tokenizer.encode(normalize(u.text))
        shortest = int(u.seconds * RATE / (1 + speed))
        frames = len(log_mel(np.zeros(shortest, np.float32)))
        assert 0 < frames_needed(tokens) <= -(-frames // SUBSAMPLING)
    assert [u for u in speech if u in kept] == kept
    plainly_good = [u for u in speech if 4 <= u.seconds <= 17 and u.text.count("A") and "9" not in u.text]
    assert all(u in kept for u in plainly_good)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(0, 99))
def test_a_batch_gives_back_what_was_put_in(lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    frames = [rng.standard_normal((n, 8)).astype(np.float32) for n in lengths]
    tokenizer = Tokenizer()
    texts = [tokenizer.decode(rng.integers(2, 29, n)) for n in lengths]
    batch = collate(frames, texts, tokenizer, 1.5)
    assert batch.features.shape == (len(lengths), max(lengths), 8)
    assert [tokenizer.decode(ids.tolist()) for ids in batch.targets.split(batch.target_lengths.tolist())] == texts
    assert [tokenizer.decode(ids.tolist()) for ids in batch.letters.split(batch.letter_lengths.tolist())] == texts
    for row, length, f in zip(batch.features.numpy(), batch.lengths.tolist(), frames, strict=True):
        assert np.array_equal(row[:length], f)
        assert not row[length:].any()


def test_packed_samples_equal_decoded_ones_to_16_bits(tmp_path: Path) -> None:
    decoded, packed = AudioStore(CLIPS, RATE), AudioStore(CLIPS, RATE, tmp_path / "audio.i16")
    for i, clip in enumerate(CLIPS):
        limit = 0 if clip.path.suffix == ".flac" else 0.5 / 32_768
        assert np.abs(decoded[i] - packed[i]).max() <= limit
        assert packed[i].dtype == np.float32
        assert len(packed[i]) / RATE == pytest.approx(clip.seconds, abs=0.2)


def test_loud_samples_are_clipped_where_they_are_packed(tmp_path: Path) -> None:
    loud = np.array([0.0, 1.5, -1.5, 0.5], np.float32)
    soundfile.write(tmp_path / "loud.wav", loud, RATE, "FLOAT")
    store = AudioStore([Utterance(tmp_path / "loud.wav", 4 / RATE, "s", "c", "A")], RATE, tmp_path / "audio.i16")
    assert store[0].tolist() == [0.0, 32_767 / 32_768, -1.0, 0.5]


def test_a_pack_is_made_once(tmp_path: Path) -> None:
    AudioStore(CLIPS, RATE, tmp_path / "audio.i16")
    written = (tmp_path / "audio.i16").stat()
    AudioStore(CLIPS, RATE, tmp_path / "audio.i16")
    assert (tmp_path / "audio.i16").stat().st_ino == written.st_ino
    assert sorted(p.name for p in tmp_path.iterdir()) == ["audio.i16", "audio.npz"]


@pytest.mark.parametrize("change", ["order", "selection", "recording", "rate", "half a file"])
def test_a_stale_pack_is_made_again(tmp_path: Path, change: str) -> None:
    one, other = np.full((2, RATE), [[0.25], [0.5]], np.float32)
    for name, samples in (("one.wav", one), ("other.wav", other)):
        soundfile.write(tmp_path / name, samples, RATE, "PCM_16")
    before = [Utterance(tmp_path / name, 1.0, "s", "c", "A") for name in ("one.wav", "one.wav", "other.wav")]
    packed = tmp_path / "audio.i16"
    AudioStore(before, RATE, packed)
    after, rate, expected = list(before), RATE, [0.25, 0.25, 0.5]
    if change == "order":
        after, expected = before[::-1], [0.5, 0.25, 0.25]
    elif change == "selection":  # as many utterances of the same lengths
        after, expected = [before[0], before[2], before[2]], [0.25, 0.5, 0.5]
    elif change == "recording":
        soundfile.write(tmp_path / "one.wav", other, RATE, "PCM_16")
        expected = [0.5, 0.5, 0.5]
    elif change == "rate":
        rate = 8_000
    else:
        packed.write_bytes(packed.read_bytes()[:-2])
    store = AudioStore(after, rate, packed)
    for i, value in enumerate(expected):
        assert len(store[i]) == rate
        assert store[i][rate // 2] == pytest.approx(value, abs=1e-3)


def test_killed_while_packing_nothing_half_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = tmp_path / "audio.i16"
    decode = AudioStore._decode

    def killed(store: AudioStore, index: int) -> np.ndarray:
        if index == 3:
            raise KeyboardInterrupt
        return decode(store, index)

    monkeypatch.setattr(AudioStore, "_decode", killed)
    with pytest.raises(KeyboardInterrupt):
        AudioStore(CLIPS, RATE, packed)
    assert not packed.exists()
    monkeypatch.undo()
    assert len(AudioStore(CLIPS, RATE, packed)[7]) > RATE


def test_other_rates_and_channels_become_the_model_s(tmp_path: Path) -> None:
    stereo = np.stack((np.full(8_000, 0.5), np.zeros(8_000)), axis=1)
    soundfile.write(tmp_path / "stereo.wav", stereo, 8_000)
    store = AudioStore([Utterance(tmp_path / "stereo.wav", 1.0, "s", "c", "A")], RATE)
    assert len(store[0]) == RATE
    assert store[0][RATE // 2] == pytest.approx(0.25, abs=1e-3)


def test_a_recording_of_another_length_than_its_line_says_is_named(tmp_path: Path) -> None:
    wrong = replace(CLIPS[0], seconds=9.0)
    with pytest.raises(ASRError, match=r"19-198-0008.flac lasts 2.86 s and its manifest says 9.00; correct"):
        AudioStore([wrong], RATE, tmp_path / "audio.i16")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("content", [b"", b"RIFF and no more", None])
def test_an_unreadable_recording_is_named(tmp_path: Path, content: bytes | None, packed: bool) -> None:
    if content is not None:
        (tmp_path / "bad.wav").write_bytes(content)
    bad = [*CLIPS[:2], Utterance(tmp_path / "bad.wav", 3.0, "s", "c", "A")]
    with pytest.raises(ASRError, match=r"bad\.wav") as caught:
        AudioStore(bad, RATE, tmp_path / "audio.i16" if packed else None)[2]
    assert "\n" not in str(caught.value)


def test_statistics_are_those_of_the_frames() -> None:
    frames = np.concatenate([log_mel(AudioStore(CLIPS, RATE)[i]) for i in range(len(CLIPS))])
    mean, std = statistics(AudioStore(CLIPS, RATE), len(CLIPS), FeatureConfig())
    np.testing.assert_allclose(mean, frames.mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(std, frames.std(axis=0), atol=1e-3)
    assert mean.dtype == std.dtype == np.float32


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_batch_is_the_same_wherever_and_in_whatever_order_it_is_made(workers: int) -> None:
    config = training(DataConfig(batch_seconds=20.0), augment=AugmentConfig())
    store, tokenizer = AudioStore(CLIPS, RATE), Tokenizer()
    batches = TrainingBatches(CLIPS, store, tokenizer, config, FILL, epoch=3)
    assert len(batches) > 2
    there = list(prefetched(batches, range(len(batches)), workers))
    again = TrainingBatches(CLIPS, store, tokenizer, config, FILL, epoch=3)
    for number in reversed(range(len(batches))):
        assert same(there[number], again[number])
    other = TrainingBatches(CLIPS, store, tokenizer, config, FILL, epoch=4)
    assert not any(same(a, b) for a in there for b in (other[i] for i in range(len(other))))


def test_without_augmentation_a_training_batch_holds_the_frames_and_texts_themselves() -> None:
    config = training(DataConfig(batch_seconds=20.0))
    store, tokenizer = AudioStore(CLIPS, RATE), Tokenizer()
    batches = TrainingBatches(CLIPS, store, tokenizer, config, FILL, epoch=0)
    for number, chosen in enumerate(batches.plan):
        batch = batches[number]
        assert batch.seconds == pytest.approx(sum(CLIPS[i].seconds for i in chosen))
        texts = [tokenizer.decode(ids.tolist()) for ids in batch.targets.split(batch.target_lengths.tolist())]
        assert texts == [normalize(CLIPS[i].text) for i in chosen]
        for row, length, i in zip(batch.features.numpy(), batch.lengths.tolist(), chosen, strict=True):
            assert np.array_equal(row[:length], log_mel(store[i]))


def test_measuring_batches_hold_every_utterance_once_as_it_is() -> None:
    config = training(DataConfig(batch_seconds=40.0, max_seconds=12.0), augment=AugmentConfig())
    store = AudioStore(CLIPS, RATE)
    batches = PlainBatches(CLIPS, store, Tokenizer(), config)
    assert sorted(i for batch in batches.plan for i in batch) == list(range(len(CLIPS)))
    assert all(len(batch) <= 3 for batch in batches.plan)
    first = batches[0]
    assert np.array_equal(first.features[0, : first.lengths[0]].numpy(), log_mel(store[batches.plan[0][0]]))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_worker_stays_one_sentence(tmp_path: Path, workers: int) -> None:
    (tmp_path / "bad.flac").write_bytes(b"fLaC")
    bad = [*CLIPS[:3], Utterance(tmp_path / "bad.flac", 3.0, "s", "c", "A")]
    batches = TrainingBatches(bad, AudioStore(bad, RATE), Tokenizer(), training(), FILL, epoch=0)
    with pytest.raises(ASRError, match=r"bad\.flac") as caught:
        list(prefetched(batches, range(len(batches)), workers))
    assert "\n" not in str(caught.value)


def test_workers_end_with_the_iterator() -> None:
    config = training(DataConfig(batch_seconds=20.0))
    batches = TrainingBatches(CLIPS, AudioStore(CLIPS, RATE), Tokenizer(), config, FILL, epoch=0)
    share = prefetched(batches, range(len(batches)), 2)
    next(share)
    assert len(multiprocessing.active_children()) == 2
    share.close()
    assert not multiprocessing.active_children()
