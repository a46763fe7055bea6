"""Tokenizers: text there and back, in characters and in pieces, from a model directory too."""

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.errors import ASRError
from asr.text import normalize
from asr.tokenizer import BLANK, BOUNDARY, CHARACTERS, TOKENS_FILE, Tokenizer

DATA = Path(__file__).parent / "data"
TEXTS = [
    normalize(row["text"])
    for row in csv.DictReader((DATA / "clips.tsv").read_text(encoding="utf-8").splitlines(), delimiter="\t")
]

normalised = st.lists(st.text("abcdefghijklmnopqrstuvwxyz'", min_size=1), max_size=8).map(" ".join)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.train_pieces(TEXTS, 60, tmp_path_factory.mktemp("pieces"))


@given(normalised)
def test_characters_there_and_back(text: str) -> None:
    tokenizer = Tokenizer()
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert 0 not in ids
    assert tokenizer.decode(ids) == text


def test_pieces_there_and_back(pieces: Tokenizer) -> None:
    assert pieces.unit == "pieces"
    assert pieces.tokens[0] == BLANK
    for text in TEXTS:
        ids = pieces.encode(text)
        assert 0 not in ids
        assert len(ids) < len(text)
        assert pieces.decode(ids) == text
        assert sum(pieces.tokens[i].startswith(BOUNDARY) for i in ids) == len(text.split())


@pytest.mark.parametrize("unit", ["characters", "pieces"])
def test_a_model_directory_keeps_the_tokenizer(unit: str, pieces: Tokenizer, tmp_path: Path) -> None:
    tokenizer = pieces if unit == "pieces" else Tokenizer()
    tokenizer.save(tmp_path)
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.unit == unit
    assert loaded.tokens == tokenizer.tokens
    assert [loaded.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]


def test_decoding_needs_the_token_list_alone(pieces: Tokenizer, tmp_path: Path) -> None:
    pieces.save(tmp_path)
    (tmp_path / "sentencepiece.model").unlink()
    assert Tokenizer.load(tmp_path).decode(pieces.encode(TEXTS[0])) == TEXTS[0]


def test_a_character_without_token_is_named() -> None:
    with pytest.raises(ASRError, match="'7'"):
        Tokenizer().encode("7 up")


def test_pieces_name_a_character_they_lack(pieces: Tokenizer) -> None:
    with pytest.raises(ASRError, match="normalise"):
        pieces.encode("7 up")


@pytest.mark.parametrize("tokens", [CHARACTERS[1:], (*CHARACTERS, "a"), ()])
def test_a_wrong_token_list_is_refused(tokens: tuple[str, ...]) -> None:
    with pytest.raises(ASRError, match=BLANK):
        Tokenizer(tokens)


def test_a_directory_without_tokens_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ASRError, match=f"{tmp_path} has no {TOKENS_FILE}"):
        Tokenizer.load(tmp_path)
