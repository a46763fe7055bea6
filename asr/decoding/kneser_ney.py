"""Training of n-gram models: interpolated modified Kneser-Ney (Chen and Goodman, 1999), then entropy pruning.

Everything works on sorted arrays of packed integers, one array per order; there is no per-word Python after the words
have become integers.
"""

import lzma
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from asr.decoding.lm import ARPA_NEVER, END_ID, LN_10, SPECIALS, START_ID, UNKNOWN_ID, Ids, Level, NgramModel
from asr.errors import ASRError
from asr.text import normalize

Doubles = NDArray[np.float64]
Mask = NDArray[np.bool_]

SHARED_WORDS = 8  # a passage that has so many words in a row in common with held-out text is left out
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # where a small text lacks the counts to estimate them, as KenLM does
HASH_BASE = np.uint64(0x9E3779B97F4A7C15)

# A place where speech may pause: punctuation that does not belong to a title or an initial.
_PAUSE = re.compile(r"(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)(?<!\b[A-Z])[.!?;:,][\"'”’)\]]*\s+|\s*(?:--+|—)\s*")


@dataclass(frozen=True)
class Corpus:
    """Passages as word ids, end to end: each begins with <s> and ends with </s>."""

    words: list[str]
    ids: Ids
    left_out: int = 0  # passages dropped because they share words with held-out texts


def read_passages(paths: Iterable[str | Path], passage_words: int = 0) -> Iterator[str]:
    """Normalised passages of text files (.xz is unpacked).

    passage_words: 0 takes each line as one passage (transcripts). Otherwise lines run on (prose, wrapped or not) and a
    passage ends at the first punctuation mark after so many words, as an utterance cut at a pause does.
    """
    for path in paths:
        try:
            with _open(path) as file:
                lines = [line for line in file.read().splitlines() if not line.startswith("#####")]
        except (UnicodeDecodeError, lzma.LZMAError, EOFError):
            raise ASRError(f"{path} is not text in UTF-8, plain or packed with xz; convert it first") from None
        passages = lines if passage_words == 0 else _cut_at_pauses(" ".join(lines), passage_words)
        yield from filter(None, map(normalize, passages))


def _open(path: str | Path) -> TextIO:
    if str(path).endswith(".xz"):
        return lzma.open(path, "rt", encoding="utf-8")
    return open(path, encoding="utf-8")


def _cut_at_pauses(text: str, passage_words: int) -> Iterator[str]:
    begin = 0
    for pause in _PAUSE.finditer(text):
        if text.count(" ", begin, pause.end()) >= passage_words:
            yield text[begin : pause.end()]
            begin = pause.end()
    yield text[begin:]


def build_corpus(passages: Iterable[str], vocabulary: int, held_out: Iterable[str] = ()) -> Corpus:
    """Word ids of the passages, less those that share SHARED_WORDS words in a row with a held-out text.

    vocabulary: how many words to keep, the most frequent ones; the others become <unk>. Both kinds of text must be
    normalised. A run of shared words that crosses from one passage to the next is found too, and drops both.
    """
    types: defaultdict[str, int] = defaultdict(lambda: len(types))
    lengths: list[int] = []
    stream: list[NDArray[np.int32]] = []
    for passage in passages:
        words = passage.split()
        stream.append(np.fromiter((types[word] for word in words), np.int32, len(words)))
        lengths.append(len(words))
    if not stream:
        raise ASRError("the texts hold no words; name files with at least one line of words")
    ids = np.concatenate(stream)
    passage_of = np.repeat(np.arange(len(lengths)), lengths)
    sharing = _sharing(ids, passage_of, [[types[word] for word in text.split()] for text in held_out])
    kept = ~np.isin(passage_of, sharing)
    ids, passage_of = ids[kept], passage_of[kept]
    if len(ids) == 0:
        raise ASRError("every passage shares words with the held-out texts; name other texts to train on")

    counts = np.bincount(ids, minlength=len(types))
    spelled = list(types)
    frequent = np.argsort(-counts, kind="stable")[:vocabulary]
    chosen = sorted((i for i in frequent if counts[i]), key=lambda i: spelled[i])
    new_id = np.full(len(types), UNKNOWN_ID)
    new_id[chosen] = np.arange(len(chosen)) + len(SPECIALS)
    words = [*SPECIALS, *(spelled[i] for i in chosen)]
    return Corpus(words, _with_edges(new_id[ids], passage_of), len(sharing))


def _sharing(ids: NDArray[np.int32], passage_of: Ids, held_out: Sequence[Sequence[int]]) -> Ids:
    """Passages with a word of a run of SHARED_WORDS words that some held-out text has too."""
    shared = np.isin(
        _run_hashes(ids), np.concatenate([_run_hashes(np.array(text, np.int32)) for text in [[], *held_out]])
    )
    run = np.flatnonzero(shared)[:, None] + np.arange(SHARED_WORDS)
    return np.unique(passage_of[run])


def _run_hashes(ids: NDArray[np.integer]) -> NDArray[np.uint64]:
    """A 64-bit hash of each run of SHARED_WORDS words."""
    runs = max(0, len(ids) - SHARED_WORDS + 1)
    hashes = np.zeros(runs, np.uint64)
    for offset in range(SHARED_WORDS):
        hashes = (hashes ^ (ids[offset : offset + runs].astype(np.uint64) + np.uint64(1))) * HASH_BASE
        hashes ^= hashes >> np.uint64(29)
    return hashes


def _with_edges(ids: Ids, passage_of: Ids) -> Ids:
    """Puts <s> before and </s> after each passage."""
    first = np.flatnonzero(np.diff(passage_of, prepend=-1))
    last = np.flatnonzero(np.diff(passage_of, append=-1)) + 1
    edges = np.concatenate([last, first])  # where both fall on one place, the end comes before the next start
    labels = np.concatenate([np.full(len(last), END_ID), np.full(len(first), START_ID)])
    order = np.argsort(edges, kind="stable")
    return np.insert(ids, edges[order], labels[order])


@dataclass
class _Counts:
    """All n-grams of one order, sorted by (context, word)."""

    context: Ids  # index in the order below
    word: Ids
    suffix: Ids  # index in the order below of the n-gram without its first word
    count: Ids  # how often it occurs
    adjusted: Ids  # number of different words before it; for the highest order and after <s>, its count
    begins: Mask  # whether its first word is <s>


def count_ngrams(corpus: Corpus, order: int) -> list[_Counts]:
    """Counts of every n-gram of orders 1 to `order`."""
    vocabulary = len(corpus.words)
    token = corpus.ids
    everything = np.arange(vocabulary)
    count = np.bincount(token, minlength=vocabulary)
    zeros = np.zeros(vocabulary, np.int64)
    levels = [_Counts(zeros, everything, zeros, count, count, everything == START_ID)]
    here = token  # index of the n-gram of the present order that ends at each position, -1 where there is none
    for _ in range(1, order):
        before = np.append(-1, here[:-1])
        ends = np.flatnonzero((before >= 0) & (token != START_ID))
        keys, inverse, count = np.unique(
            before[ends] * vocabulary + token[ends], return_inverse=True, return_counts=True
        )
        context, word = np.divmod(keys, vocabulary)
        suffix = np.empty(len(keys), np.int64)
        suffix[inverse] = here[ends]
        here = np.full(len(token), -1)
        here[ends] = inverse
        below = levels[-1]
        left = np.bincount(suffix, minlength=len(below.word))
        below.adjusted = np.where(below.begins, below.count, left)
        levels.append(_Counts(context, word, suffix, count, count, below.begins[context]))
    levels[0].adjusted = np.where(levels[0].begins, 0, levels[0].adjusted)
    return levels


def _discounts(adjusted: Ids) -> Doubles:
    """What to take from n-grams of adjusted count 0, 1, 2 and 3 or more (Chen and Goodman, 1999, equation 26)."""
    n = np.bincount(np.clip(adjusted, 0, 5), minlength=6)[1:5].astype(float)
    if (n == 0).any():
        return np.array([0.0, *FALLBACK_DISCOUNTS])
    y = n[0] / (n[0] + 2 * n[1])
    discounts = [k - (k + 1) * y * n[k] / n[k - 1] for k in (1, 2, 3)]
    valid = all(0 <= discount <= k for k, discount in enumerate(discounts, 1))
    return np.array([0.0, *(discounts if valid else FALLBACK_DISCOUNTS)])


@dataclass
class _Estimates:
    """Interpolated probabilities of one order, and the weight of the order below after each of its n-grams."""

    probability: Doubles
    weight: Doubles


def _estimate(levels: list[_Counts]) -> list[_Estimates]:
    vocabulary = len(levels[0].word)
    below = np.full(1, 1.0 / (vocabulary - 1))  # every word but <s>
    estimates: list[_Estimates] = []
    for k, level in enumerate(levels):
        contexts = len(levels[k - 1].word) if k else 1
        discounts = _discounts(level.adjusted)
        taken = discounts[np.minimum(level.adjusted, 3)]
        total = np.bincount(level.context, level.adjusted, contexts)
        weight = np.where(total > 0, np.bincount(level.context, taken, contexts) / np.maximum(total, 1), 1.0)
        probability = (level.adjusted - taken) / np.maximum(total, 1)[level.context]
        probability += weight[level.context] * below[level.suffix]
        if k == 0:
            probability[START_ID] = 0.0
        else:
            estimates[-1].weight = weight
        estimates.append(_Estimates(probability, np.ones(len(probability))))
        below = probability
    return estimates


def _prune(levels: list[_Counts], estimates: list[_Estimates], threshold: float) -> list[Mask]:
    """Which n-grams to keep: those whose loss raises perplexity by more than `threshold`, relative (Stolcke, 1998).

    The probability of a context comes from its own count, not from the lower orders of the model, which Kneser-Ney
    bends to its purpose (Chelba et al., 2010). Contexts of kept n-grams stay.
    """
    kept = [np.ones(len(level.word), bool) for level in levels]
    tokens = levels[0].count.sum()
    needed = np.zeros(len(levels[-1].word), bool)
    for k in range(len(levels) - 1, 0, -1):
        level, context = levels[k], levels[k].context
        p, q = estimates[k].probability, estimates[k - 1].probability[level.suffix]
        contexts = len(levels[k - 1].word)
        left = np.maximum(1 - np.bincount(context, p, contexts), 1e-12)[context]
        left_below = np.maximum(1 - np.bincount(context, q, contexts), 1e-12)[context]
        change = np.log((left + p) / (left_below + q)) - np.log(left / left_below)  # of the context's back-off weight
        after = np.log(q) + np.log((left + p) / (left_below + q))
        history = levels[k - 1].count[context] / tokens
        loss = -history * (p * (after - np.log(p)) + left * change)
        kept[k] = needed | (np.expm1(loss) >= threshold)
        needed = np.zeros(contexts, bool)
        needed[context[kept[k]]] = True
    return kept


def _to_levels(levels: list[_Counts], estimates: list[_Estimates], kept: list[Mask]) -> list[Level]:
    """The kept n-grams, with back-off weights that make every context sum to one again."""
    backed_off = estimates[0].probability  # of every n-gram of the order below, as the pruned model gives it
    new_index = np.zeros(1, np.int64)
    results: list[Level] = []
    for k, (level, mask) in enumerate(zip(levels, kept, strict=True)):
        probability = estimates[k].probability
        if k:
            contexts = len(levels[k - 1].word)
            listed = np.bincount(level.context[mask], probability[mask], contexts)
            covered = np.bincount(level.context[mask], backed_off[level.suffix[mask]], contexts)
            weight = np.maximum(1 - listed, 1e-12) / np.maximum(1 - covered, 1e-12)
            results[-1] = _with_backoff(results[-1], weight[kept[k - 1]])
            weight[~kept[k - 1]] = 1.0
            backed_off = np.where(mask, probability, weight[level.context] * backed_off[level.suffix])
        with np.errstate(divide="ignore"):
            log_prob = np.maximum(np.log(probability[mask]), ARPA_NEVER * LN_10).astype(np.float32)
        results.append(Level(new_index[level.context[mask]], level.word[mask], log_prob, np.zeros_like(log_prob)))
        new_index = np.cumsum(mask) - 1
    return results


def _with_backoff(level: Level, weight: Doubles) -> Level:
    return Level(level.context, level.word, level.log_prob, np.log(weight).astype(np.float32))


def train(corpus: Corpus, order: int, threshold: float = 0.0) -> NgramModel:
    """Estimates a model of the given order and prunes it.

    threshold: relative rise of perplexity below which an n-gram is not worth its place, say 1e-8; 0 keeps everything.
    """
    levels = count_ngrams(corpus, order)
    estimates = _estimate(levels)
    kept = _prune(levels, estimates, threshold) if threshold else [np.ones(len(level.word), bool) for level in levels]
    return NgramModel.from_levels(corpus.words, _to_levels(levels, estimates, kept))


def perplexity(model: NgramModel, sentences: Sequence[Ids], end: bool) -> float:
    """Perplexity of the known words of sentences that begin with <s>, and of their ends if asked for.

    ASRError where there are none.
    """
    known = [np.append(ids, END_ID) != UNKNOWN_ID if end else ids != UNKNOWN_ID for ids in sentences]
    scores = model.log_probs(sentences, end=end)
    log_probs = np.concatenate([np.zeros(0), *(x[mask] for x, mask in zip(scores, known, strict=True))])
    if len(log_probs) == 0:
        raise ASRError("the texts hold no word that the language model knows; name other texts")
    return float(np.exp(-log_probs.mean(dtype=np.float64)))
