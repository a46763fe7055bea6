"""Checkpoints: everything comes back, nothing is ever half written, and what is none is named."""

import dataclasses
from pathlib import Path

import pytest
import torch

from asr.encoder import Encoder, EncoderConfig
from asr.errors import ASRError
from asr.text import normalize
from asr.tokenizer import Tokenizer
from asr.training import checkpoint
from asr.training.checkpoint import Checkpoint
from asr.training.config import TrainingConfig
from asr.training.manifest import read

DATA = Path(__file__).parent / "data"


def some_checkpoint(tokenizer: Tokenizer | None = None, step: int = 7) -> Checkpoint:
    tokenizer = tokenizer or Tokenizer()
    config = TrainingConfig(
        name="tiny", encoder=EncoderConfig(width=8, conv_channels=8, layers=1, vocabulary=len(tokenizer.tokens))
    )
    encoder, average = Encoder(config.encoder), Encoder(config.encoder)
    optimizer = torch.optim.AdamW(encoder.parameters())
    log_probs, _ = encoder(torch.randn(2, 20, 80), torch.tensor([20, 12]))
    log_probs.square().sum().backward()
    optimizer.step()
    return Checkpoint(
        config, tokenizer, encoder.state_dict(), average.state_dict(), optimizer.state_dict(), step, 2, 5, 123.5
    )


def flat(value: object) -> list[object]:
    if isinstance(value, torch.Tensor):
        return [value.tolist()]
    if isinstance(value, dict):
        return [key for key in value] + [part for item in value.values() for part in flat(item)]
    if isinstance(value, list):
        return [part for item in value for part in flat(item)]
    return [value]


def test_everything_comes_back(tmp_path: Path) -> None:
    saved = some_checkpoint()
    checkpoint.save(saved, tmp_path / "last.pt")
    for path in (tmp_path, tmp_path / "last.pt", str(tmp_path)):
        loaded = checkpoint.load(path)
        for field in dataclasses.fields(Checkpoint):
            if field.name != "tokenizer":
                assert flat(getattr(loaded, field.name)) == flat(getattr(saved, field.name)), field.name
        assert loaded.tokenizer.tokens == saved.tokenizer.tokens
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt", "tokens.txt"]


def test_the_encoder_of_a_checkpoint_has_the_averaged_weights_and_is_ready_to_run() -> None:
    saved = some_checkpoint()
    encoder = saved.encoder()
    assert not encoder.training
    assert all(torch.equal(value, saved.average[name]) for name, value in encoder.state_dict().items())


def test_pieces_come_back_too_and_give_way_to_characters(tmp_path: Path) -> None:
    texts = [normalize(u.text) for u in read(DATA / "clips.tsv")]
    pieces = Tokenizer.train_pieces(texts, 60, tmp_path / "trained")
    run = tmp_path / "run"
    run.mkdir()
    checkpoint.save(some_checkpoint(pieces), run / "last.pt")
    loaded = checkpoint.load(run).tokenizer
    assert (loaded.unit, loaded.encode(texts[0])) == ("pieces", pieces.encode(texts[0]))
    checkpoint.save(dataclasses.replace(some_checkpoint(), step=8), run / "last.pt")
    assert checkpoint.load(run).tokenizer.unit == "characters"


@pytest.mark.parametrize("place", ["torch.save", "os.fsync", "asr.tokenizer.Tokenizer.save"])
def test_killed_while_saving_the_old_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(some_checkpoint(step=1), path)

    def half_done(*arguments: object) -> None:
        if place == "torch.save":
            arguments[1].write(b"PK half a file")  # type: ignore[attr-defined]
        elif place != "os.fsync":
            Path(str(arguments[1]), "tokens.txt").write_text("<bl")
        raise KeyboardInterrupt

    monkeypatch.setattr(place, half_done)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(some_checkpoint(step=2), path)
    assert checkpoint.load(tmp_path).step == 1
    monkeypatch.undo()
    checkpoint.save(some_checkpoint(step=3), path)
    assert checkpoint.load(tmp_path).step == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt", "tokens.txt"]


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), RuntimeError("[enforce fail at inline_container.cc:664] . \nmore lines")],
)
def test_a_full_disk_is_one_sentence_and_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(some_checkpoint(step=1), path)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(ASRError, match=r"cannot write .*last\.pt: .*; make room") as caught:
        checkpoint.save(some_checkpoint(step=2), path)
    assert "\n" not in str(caught.value)
    assert checkpoint.load(tmp_path).step == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt", "tokens.txt"]


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ASRError, match=r"there is no checkpoint .*last\.pt; name a \.pt file or the folder of a"):
        checkpoint.load(tmp_path)
    with pytest.raises(ASRError, match=r"there is no checkpoint .*other\.pt"):
        checkpoint.load(tmp_path / "other.pt")
    path = tmp_path / "last.pt"
    checkpoint.save(some_checkpoint(), path)
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ASRError, match=r"last\.pt is not a checkpoint of this program"):
            checkpoint.load(path)
    torch.save({"weights": {}}, path)
    with pytest.raises(ASRError, match=r"last\.pt is not a checkpoint of this program"):
        checkpoint.load(path)
    torch.save({"format": 99}, path)
    with pytest.raises(ASRError, match=r"has checkpoint format 99 and this program reads 1; update the program"):
        checkpoint.load(path)


def test_without_its_tokens_a_checkpoint_says_so(tmp_path: Path) -> None:
    checkpoint.save(some_checkpoint(), tmp_path / "last.pt")
    (tmp_path / "tokens.txt").unlink()
    with pytest.raises(ASRError, match=r"has no tokens\.txt"):
        checkpoint.load(tmp_path)
