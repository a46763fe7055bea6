"""The tree over words: its file holds what was built, and one that was made from something else is not used."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.decoding.beam import BeamSearch
from asr.decoding.kneser_ney import build_corpus, train
from asr.decoding.lm import NgramModel
from asr.decoding.tree import TREE_FILE, LetterTree, open_tree, write_tree
from asr.lexicon import LEXICON_FILE, Lexicon
from asr.runtime import LANGUAGE_MODEL_FILE
from asr.tokenizer import BOUNDARY, PHONE_TOKENS, TOKENS_FILE

WORDS = st.text("abc", min_size=1, max_size=4)
PASSAGES = ["a ab b a", "ba ab a", "b b ab", "ab bab a", "b a"]
PAIRS = [("a", "a"), ("ab", "a"), ("b", "b"), ("ba", "ab"), ("bab", "ab"), ("oh", "cb")]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """What concerns words of a model directory."""
    (tmp_path / TOKENS_FILE).write_text("\n".join(PHONE_TOKENS))
    train(build_corpus(PASSAGES, 4), order=3).save(tmp_path / LANGUAGE_MODEL_FILE)
    Lexicon(PAIRS).save(tmp_path / LEXICON_FILE)
    return tmp_path


def sources(directory: Path) -> tuple[NgramModel, Lexicon]:
    return NgramModel.load(directory / LANGUAGE_MODEL_FILE), Lexicon.load(directory / LEXICON_FILE)


def same(a: LetterTree, b: LetterTree) -> bool:
    one: tuple[np.ndarray, ...] = (a.best, *a.tables)
    other: tuple[np.ndarray, ...] = (b.best, *b.tables)
    return a.count.dtype == b.count.dtype and all(map(np.array_equal, one, other))


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=20), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_file_holds_the_tree(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]], phones: bool
) -> None:
    lm = train(build_corpus([" ".join(word for word, _ in pairs)], 100), 2)
    tree = LetterTree.of(lm, Lexicon(pairs) if phones else None)
    path = tmp_path_factory.mktemp("tree") / TREE_FILE
    tree.save(path, 1)
    loaded = LetterTree.load(path, 1)
    assert loaded
    assert same(loaded, tree)
    assert LetterTree.load(path, 2) is None
    for i, (word, sound) in enumerate(pairs):
        node = loaded.find(sound if phones else word)
        found = loaded.word(np.full(loaded.count[node], node), np.arange(loaded.count[node]))
        assert lm.ids([word])[0] in found, i


def test_a_directory_gets_its_tree_from_the_file(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, lexicon = sources(directory)
    built = open_tree(directory, lm, lexicon)
    write_tree(directory)
    monkeypatch.setattr(LetterTree, "of", None)
    assert same(open_tree(directory, lm, lexicon), built)


@given(st.integers(0, 10**6), st.integers(1, 30))
@settings(max_examples=20, deadline=None)
def test_a_search_with_the_tree_from_the_file_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, seed: int, frames: int
) -> None:
    lm, lexicon = train(build_corpus(PASSAGES, 4), order=3), Lexicon(PAIRS)
    path = tmp_path_factory.mktemp("tree") / TREE_FILE
    LetterTree.of(lm, lexicon).save(path, 1)
    tokens = ["<blank>", BOUNDARY, "a", "b", "c"]
    log_probs = np.log(np.random.default_rng(seed).dirichlet(np.full(len(tokens), 0.3), frames) + 1e-9)
    trees = (LetterTree.load(path, 1), LetterTree.of(lm, lexicon))
    searches = [BeamSearch.with_language_model(lm, tokens, lexicon=lexicon, tree=tree) for tree in trees]
    paths = [search.best(search.step(log_probs.astype(np.float32), search.start()), 3) for search in searches]
    for one, other in zip(*paths, strict=True):
        assert one.score == other.score
        assert searches[0].words(one.tokens) == searches[1].words(other.tokens)


@pytest.mark.parametrize("changed", [LANGUAGE_MODEL_FILE, LEXICON_FILE])
def test_a_tree_of_other_words_is_not_used(directory: Path, changed: str) -> None:
    write_tree(directory)
    if changed == LEXICON_FILE:
        Lexicon([*PAIRS[1:], ("a", "b")]).save(directory / LEXICON_FILE)
    else:
        train(build_corpus([*PASSAGES, "b b b b"], 4), order=3).save(directory / LANGUAGE_MODEL_FILE)
    lm, lexicon = sources(directory)
    assert same(open_tree(directory, lm, lexicon), LetterTree.of(lm, lexicon))


def test_a_damaged_file_is_not_used(directory: Path) -> None:
    write_tree(directory)
    whole = (directory / TREE_FILE).read_bytes()
    lm, lexicon = sources(directory)
    for size in range(0, len(whole), 16):
        (directory / TREE_FILE).write_bytes(whole[:size])
        assert same(open_tree(directory, lm, lexicon), LetterTree.of(lm, lexicon))


def test_only_a_model_directory_with_a_language_model_gets_one(directory: Path) -> None:
    (directory / TOKENS_FILE).unlink()
    write_tree(directory)
    assert not (directory / TREE_FILE).exists()
