"""Tokens to words: letters and pieces spell them, phones are looked up in a lexicon."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

from asr.decoding import Span
from asr.lexicon import Lexicon
from asr.tokenizer import BOUNDARY, Tokenizer


class Reader(Protocol):
    """Finds words in the tokens of a path."""

    def words(self, tokens: Sequence[int]) -> list[Span]:
        """The words, in their order."""
        ...


class Spelled:
    """Reads tokens that are letters or pieces of words; phones it gives as they sound."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = list(tokens)
        self._begin = frozenset(i for i, token in enumerate(tokens) if token.startswith(BOUNDARY))

    def words(self, tokens: Sequence[int]) -> list[Span]:
        """What stands between boundaries."""
        texts = [self._tokens[token] for token in tokens]
        begins = [i for i, token in enumerate(tokens) if i == 0 or token in self._begin]
        spans = []
        for begin, end in pairwise([*begins, len(texts)]):
            begin += texts[begin] == BOUNDARY
            if text := "".join(texts[begin:end]).removeprefix(BOUNDARY):
                spans.append(Span(text, begin, end))
        return spans


class Sounded:
    """Reads phones: of the words that sound so the commonest, or else a spelling that would sound so."""

    def __init__(self, tokens: Sequence[str], lexicon: Lexicon) -> None:
        self._sounds, self._lexicon = Spelled(tokens), lexicon

    def words(self, tokens: Sequence[int]) -> list[Span]:
        """What stands between boundaries."""
        return [span._replace(text=self._lexicon.text(span.text)) for span in self._sounds.words(tokens)]


def reader(tokenizer: Tokenizer) -> Reader:
    """The one for a model's tokens."""
    return Sounded(tokenizer.tokens, tokenizer.lexicon) if tokenizer.lexicon else Spelled(tokenizer.tokens)
