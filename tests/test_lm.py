"""n-gram models: estimates against the formulas, scores against KenLM, and what survives files and pruning."""

import io
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.cli import main
from asr.decoding.kneser_ney import FALLBACK_DISCOUNTS, Corpus, build_corpus, perplexity, read_passages, train
from asr.decoding.lm import END, LN_10, START, UNKNOWN, NgramModel, Quantised
from asr.errors import ASRError
from asr.text import normalize

DATA = Path(__file__).parent / "data"
ARPA = DATA / "lm" / "clips.arpa"
CLIPS = [normalize(line.split("\t")[4]) for line in (DATA / "clips.tsv").read_text().splitlines()[1:]]

# A few frequent and many rare words, as in a language.
PASSAGES = st.lists(
    st.lists(st.sampled_from(list("aaaabbbcdefghij")), min_size=1, max_size=12).map(" ".join),
    min_size=1,
    max_size=30,
)


def kneser_ney(passages: list[list[str]], vocabulary: list[str], order: int) -> dict[tuple[str, ...], float]:
    """P(last word | the words before it) by the book, for every n-gram that occurs and every single word."""
    counts: list[Counter[tuple[str, ...]]] = []
    for n in range(1, order + 1):
        grams: Counter[tuple[str, ...]] = Counter()
        for words in passages:
            padded = [START, *words, END]
            grams.update(tuple(padded[i : i + n]) for i in range(len(padded) - n + 1))
        counts.append(grams)
    probability: dict[tuple[str, ...], float] = {}
    weight: dict[tuple[str, ...], float] = {}
    for n in range(1, order + 1):
        adjusted = dict(counts[n - 1])
        if n < order:
            left = Counter(gram[1:] for gram in counts[n])
            adjusted = {g: c if g[0] == START else left[g] for g, c in adjusted.items()}
        if n == 1:
            adjusted[(START,)] = 0
        counts_of_counts = Counter(adjusted.values())
        n1, n2, n3, n4 = (counts_of_counts[i] for i in (1, 2, 3, 4))
        discounts = (0.0, *FALLBACK_DISCOUNTS)
        if n1 and n2 and n3 and n4:
            y = n1 / (n1 + 2 * n2)
            estimated = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
            if all(0 <= d <= i for i, d in enumerate(estimated, 1)):
                discounts = (0.0, *estimated)
        total: defaultdict[tuple[str, ...], float] = defaultdict(float)
        taken: defaultdict[tuple[str, ...], float] = defaultdict(float)
        for gram, count in adjusted.items():
            total[gram[:-1]] += count
            taken[gram[:-1]] += discounts[min(count, 3)]
        weight = {context: taken[context] / total[context] for context in total}
        grams_here = [(word,) for word in vocabulary if word != START] if n == 1 else list(adjusted)
        for gram in grams_here:
            below = probability[gram[1:]] if n > 1 else 1 / (len(vocabulary) - 1)
            count, context = adjusted.get(gram, 0), gram[:-1]
            seen = (count - discounts[min(count, 3)]) / total[context]
            probability[gram] = seen + weight[context] * below
    return probability


def score_arpa(lines: list[str], words: list[str]) -> list[float]:
    """Base-10 scores of words after the first, by the definition of back-off; <unk> must be listed."""
    table = {}
    for line in lines:
        fields = line.split()
        if fields and fields[0].lstrip("-").replace(".", "").replace("e-", "").isdigit():
            numbers = (
                2 if fields[-1].lstrip("-").replace(".", "").replace("e-", "").isdigit() and len(fields) > 2 else 1
            )
            gram = tuple(fields[1 : len(fields) - numbers + 1])
            table[gram] = (float(fields[0]), float(fields[-1]) if numbers == 2 else 0.0)

    def score(context: tuple[str, ...], word: str) -> float:
        if (*context, word) in table:
            return table[(*context, word)][0]
        return table.get(context, (0.0, 0.0))[1] + score(context[1:], word)

    return [score(tuple(words[max(0, i - 2) : i]), words[i]) for i in range(1, len(words))]


@given(PASSAGES, st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_estimates_equal_the_formulas(passages: list[str], order: int) -> None:
    corpus = build_corpus(passages, 100)
    model = train(corpus, order)
    expected = kneser_ney([passage.split() for passage in passages], corpus.words, order)
    for gram, probability in expected.items():
        context = np.zeros(1, np.int64)
        for word in gram[:-1]:
            at_start = word == START and context[0] == 0
            context = np.array([model.start]) if at_start else model.score(context, model.ids([word]))[1]
        if order == 1:
            context = np.zeros(1, np.int64)
        log_prob, _ = model.score(context, model.ids([gram[-1]]))
        assert np.exp(log_prob[0]) == pytest.approx(probability, rel=1e-4)


@given(PASSAGES, st.integers(1, 4), st.sampled_from([0.0, 1e-4, 1e-2, 1.0]), st.integers(2, 20))
@settings(max_examples=50, deadline=None)
def test_probabilities_after_any_context_sum_to_one(
    passages: list[str], order: int, threshold: float, vocabulary: int
) -> None:
    model = train(build_corpus(passages, vocabulary), order, threshold)
    words = np.array([i for i in range(model.counts[0]) if model.words[i] != START])
    for context in range(1 + sum(model.counts[:-1])):
        if context != 3:  # nothing follows </s>
            log_prob, _ = model.score(np.full(len(words), context), words)
            assert np.exp(log_prob.astype(float)).sum() == pytest.approx(1, abs=1e-3)


def test_pruning_gives_up_little_for_its_place() -> None:
    corpus = build_corpus(CLIPS, 200)
    whole, pruned = train(corpus, 3), train(corpus, 3, 2e-3)
    sentences = [whole.ids(clip.split()) for clip in CLIPS]
    assert sum(pruned.counts) < 0.9 * sum(whole.counts)
    assert perplexity(whole, sentences, end=True) < perplexity(pruned, sentences, end=True)
    assert perplexity(pruned, sentences, end=True) < 1.5 * perplexity(whole, sentences, end=True)


def test_scores_equal_kenlm() -> None:
    with open(ARPA, encoding="utf-8") as file:
        model = NgramModel.read_arpa(file)
    for row in json.loads((DATA / "lm" / "kenlm.json").read_text()):
        ids = model.ids(row["text"].split())
        (log_probs,) = model.log_probs([ids], start=row["edges"], end=row["edges"])
        assert np.allclose(log_probs / LN_10, row["log10"], atol=1e-4)


@given(st.lists(st.sampled_from([*sorted({word for clip in CLIPS for word in clip.split()}), "zebra"]), max_size=30))
@settings(deadline=None)
def test_scores_equal_the_definition_of_back_off(words: list[str]) -> None:
    text = ARPA.read_text(encoding="utf-8")
    model = NgramModel.read_arpa(io.StringIO(text))
    known = [word if word in model.words else UNKNOWN for word in words]
    (log_probs,) = model.log_probs([model.ids(words)])
    assert np.allclose(log_probs / LN_10, score_arpa(text.splitlines(), [START, *known, END]), atol=1e-4)


@given(PASSAGES, st.integers(1, 4), st.sampled_from([0.0, 1e-2]))
@settings(max_examples=30, deadline=None)
def test_arpa_and_binary_keep_the_model(passages: list[str], order: int, threshold: float) -> None:
    model = train(build_corpus(passages, 8), order, threshold)
    sentences = [model.ids(passage.split()) for passage in passages]
    scores = np.concatenate(model.log_probs(sentences))

    file = io.StringIO()
    model.write_arpa(file)
    file.seek(0)
    from_arpa = NgramModel.read_arpa(file)
    assert from_arpa.words == model.words
    assert np.allclose(np.concatenate(from_arpa.log_probs(sentences)), scores, atol=1e-4)


@given(PASSAGES, st.integers(1, 4), st.sampled_from([np.uint8, np.uint16]))
@settings(max_examples=30, deadline=None)
def test_the_file_holds_the_same_contexts_and_nearly_the_same_scores(
    tmp_path_factory: pytest.TempPathFactory, passages: list[str], order: int, code: type[np.unsignedinteger]
) -> None:
    path = tmp_path_factory.mktemp("lm") / "lm.bin"
    model = train(build_corpus(passages, 8), order)
    model.save(path, code)
    loaded = NgramModel.load(path)
    assert (loaded.words, loaded.order, loaded.counts) == (model.words, model.order, model.counts)
    assert [loaded.spelling(i) for i in range(loaded.counts[0])] == loaded.words
    context = np.repeat(np.arange(1 + sum(model.counts[:-1])), model.counts[0])
    word = np.tile(np.arange(model.counts[0]), len(context) // model.counts[0])
    context, word = context[word != 1], word[word != 1]
    (before, following), (after, loaded_following) = model.score(context, word), loaded.score(context, word)
    assert np.array_equal(following, loaded_following)
    span = float(before.max() - before.min()) + 3  # generous: of any one table
    assert np.abs(before - after).max() <= order * span / np.iinfo(code).max + 1e-5


@given(st.lists(st.floats(-30, 3, width=32), max_size=50))
def test_quantised_values_are_off_by_half_a_step_at_most(values: list[float]) -> None:
    array = np.array(values, np.float32)
    quantised = Quantised.of(array, np.uint8)
    assert np.abs(quantised.coded[:] - array).max(initial=0) <= quantised.largest_error + 1e-5


def test_passages_that_share_eight_words_with_held_out_text_are_left_out() -> None:
    held_out = ["one two three four five six seven eight nine ten"]
    passages = [
        "zero one two three four five six seven eight",  # the first eight
        "one two three four five six seven and eight",  # seven
        "here comes three four five six",  # eight in a row, across two passages
        "seven eight nine ten there it went",
        "no harm in this one",
    ]
    corpus = build_corpus(passages, 100, held_out)
    assert corpus.left_out == 3
    assert sum(corpus.words[i] == START for i in corpus.ids) == 2
    assert "zero" not in corpus.words
    assert "went" not in corpus.words
    assert corpus.words[corpus.ids[-2]] == "one"
    assert build_corpus(passages, 100).left_out == 0
    with pytest.raises(ASRError, match="every passage"):
        build_corpus(passages[:1], 100, held_out)


def test_rare_words_become_unknown() -> None:
    corpus = build_corpus(["a a a b b c", "c b a d"], 3)
    assert corpus.words == [UNKNOWN, START, END, "a", "b", "c"]
    assert corpus.ids.tolist() == [1, 3, 3, 3, 4, 4, 5, 2, 1, 5, 4, 3, 0, 2]


def test_prose_is_cut_at_pauses_and_lines_are_not(tmp_path: Path) -> None:
    path = tmp_path / "novel.txt"
    path.write_text(
        "##### Author_Title_1900\nMr. Smith went to\nthe well-known shop, and\nbought 2 eggs. 'Yes,' he said.\n"
    )
    assert list(read_passages([path], 3)) == [
        "mister smith went to the well known shop",
        "and bought two eggs",
        "yes he said",
    ]
    assert list(read_passages([path], 0))[:2] == ["mister smith went to", "the well known shop and"]


def test_a_corpus_is_needed() -> None:
    with pytest.raises(ASRError, match="no words"):
        build_corpus([], 10)


@pytest.mark.parametrize("content", [b"", b"asr-ngram-1\n{}\n", b"something else", b"asr-ngram-1\nno json"])
def test_a_broken_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lm.bin"
    path.write_bytes(content)
    with pytest.raises(ASRError, match=r"lm\.bin is"):
        NgramModel.load(path)


def test_a_file_cut_short_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "lm.bin"
    train(Corpus([UNKNOWN, START, END, "a"], np.array([1, 3, 3, 2])), 2).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ASRError, match="cut short"):
        NgramModel.load(path)


SMALL = r"""\data\
ngram 1=4
ngram 2=2

\1-grams:
-1 <unk>
-99 <s> -0.3
-0.5 </s>
-0.7 a -0.2

\2-grams:
-0.4 <s> a
-0.2 a </s>

\end\
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", "made by somebody\nngram or other\n\n"),
        ("\n", "\r\n"),
        ("\n", " \n\n\n"),
        (" a", "\ta"),
        ("ngram 2=2", "ngram  2 = 2"),
        ("<unk>", "<UNK>"),
        ("-99", "-inf"),
        ("ngram 2=2", "ngram 2=2\nngram 3=0"),
    ],
)
def test_arpa_files_differ_in_their_manners(old: str, new: str) -> None:
    text = SMALL.replace(old, new) if old else new + SMALL
    if "3=0" in text:
        text = text.replace("\\end", "\\3-grams:\n\n\\end")
    plain, model = (NgramModel.read_arpa(io.StringIO(text, newline=None)) for text in (SMALL, text))
    sentences = [model.ids(words) for words in (["a"], ["a", "a", "b"], [])]
    assert model.words == plain.words
    for expected, found in zip(plain.log_probs(sentences), model.log_probs(sentences), strict=True):
        assert np.array_equal(expected, found)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (SMALL, "", "no line"),
        (SMALL, "hello", "no line"),
        (SMALL, "\\data\\\n\\end\\\n", "no numbers of n-grams"),
        ("ngram 1=4", "ngram 1=x", "where a number belongs"),
        ("ngram 1=4", "ngram 1=3", "does not hold 3 1-grams and then"),
        ("ngram 1=4", "ngram 1=5", "does not hold 5 1-grams and then"),
        ("ngram 2=2", "ngram 2=1", "does not hold 1 2-grams and then"),
        ("ngram 2=2", "ngram 2=-2", "has 'ngram 2=-2'"),
        ("ngram 2=2", "ngram 3=2", "has 'ngram 3=2'"),
        ("\\2-grams:", "\\3-grams:", "does not hold 4 1-grams and then"),
        ("\\end\\", "", "does not hold 2 2-grams and then"),
        ("-0.4 <s> a", "x <s> a", "where a number belongs"),
        ("-0.4 <s> a", "nan <s> a", "where a number belongs: nan"),
        ("-0.7 a -0.2", "-0.7 a inf", "where a number belongs: nan or inf"),
        ("-0.4 <s> a", "-0.4 a </s>", "lists 'a </s>' twice"),
        ("-0.5 </s>", "-0.5 a", "lists 'a' twice"),
        ("-0.4 <s> a", "-0.4 <s> b", "has 'b' in 2-grams"),
    ],
)
def test_a_broken_arpa_file_is_one_sentence(old: str, new: str, sentence: str) -> None:
    with pytest.raises(ASRError, match=sentence):
        NgramModel.read_arpa(io.StringIO(SMALL.replace(old, new)))


def test_the_command_line_trains_converts_and_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips, model, arpa = str(DATA / "clips.tsv"), str(tmp_path / "lm.bin"), str(tmp_path / "lm.arpa")
    assert main(["lm", "train", clips, "--out", model, "--order", "2", "--vocab", "50"]) == 0
    assert main(["lm", "convert", model, arpa]) == 0
    capsys.readouterr()
    assert main(["lm", "perplexity", model, clips]) == 0
    assert main(["lm", "perplexity", arpa, clips]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "8 utterances" in lines[0]
    assert lines[:3] == lines[3:]
    assert main(["lm", "train", clips, "--out", model, "--held-out", clips]) == 0
    assert "left out: 7 passages" in capsys.readouterr().out
    assert main(["lm", "train", clips, "--out", model, "--order", "0"]) == 2
    assert main(["lm", "train", str(tmp_path / "nothing.txt"), "--out", model]) == 1
    assert "nothing.txt" in capsys.readouterr().err
    foreign, latin = tmp_path / "foreign.txt", tmp_path / "latin.arpa"
    foreign.write_text("zzz\n")
    latin.write_bytes(b"\\data\\\n\xf6\n")
    assert main(["lm", "perplexity", model, str(foreign)]) == 1
    assert "no word that the language model knows" in capsys.readouterr().err
    assert main(["lm", "convert", str(latin), model]) == 1
    assert "is not UTF-8 text" in capsys.readouterr().err
