"""Hot-words: phrases that a listener expects, made likelier in a search over tokens (Aho and Corasick, 1975).

    wanted = phrases("Nuffield Kaliko=8")           # {"nuffield": None, "kaliko": 8.0}
    hotwords = Hotwords(wanted, tokenizer.spellings, tokenizer.tokens, words=scorer)
    search = BeamSearch(config, HotwordScorer(hotwords, scorer))

A phrase counts where it stands as whole words. Its boost is given letter by letter while the words may still become the
phrase, and taken back where they do not, as in the context graph of Zhao et al., "Shallow-fusion end-to-end contextual
biasing" (Interspeech 2019).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from numbers import Real
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr.decoding import Span
from asr.decoding.fusion import Letters, Scorer, WordScorer
from asr.decoding.lm import Ids
from asr.errors import ASRError
from asr.text import normalize

Scores = NDArray[np.float64]
Wanted = str | Iterable[str] | Mapping[str, float | None]

SPACE = b"\0"  # between the words of a spelled phrase
ELSEWHERE, BEGIN = 0, 1  # nodes: inside a word that matches nothing; where a word begins
AT_SPACE, NO_CODE = 0, -1  # codes: of the space; in place of a letter that a token does not have
MOST_BOOST = 1000.0  # nats
MOST_LETTERS = 1000  # of a phrase
FILE_MARK, COMMENT = "@", "#"


def phrases(wanted: Wanted) -> dict[str, float | None]:
    """Normalised phrases, each with its boost in nats, or None where it names none.

    wanted: a text in which spaces separate words, or in which commas or line breaks, where it has any, separate phrases
    of one word or more; "@FILE" for a file with a phrase a line; or single phrases, one by one. Each may end in =BOOST
    ("general relativity=12"). A mapping gives phrases and their boosts. Raises ASRError for what is none of these.
    """
    if not isinstance(wanted, Iterable):
        raise ASRError(
            f"the hot-words are {wanted!r}; give a text, phrases one by one, or a mapping of phrases to boosts"
        )
    listed = _split(wanted) if isinstance(wanted, str) else wanted
    pairs = listed.items() if isinstance(listed, Mapping) else map(_pair, listed)
    found: dict[str, float | None] = {}
    for phrase, boost in pairs:
        spoken = normalize(_text(phrase))
        if not spoken:
            raise ASRError(f"the hot-word {phrase!r} has no letters from a to z; write it as it is spoken")
        if len(spoken) > MOST_LETTERS:
            raise ASRError(
                f"the hot-word that begins with {spoken[:20]!r} has {len(spoken)} letters; it may have {MOST_LETTERS}"
            )
        if boost is not None and not _may_be(boost):
            raise ASRError(f"the hot-word {phrase!r} has a boost of {boost!r}; it must be from 0 to {MOST_BOOST:g}")
        before = found.get(spoken)
        found[spoken] = boost if before is None else max(before, boost or 0.0)
    return found


def _split(text: str) -> list[str]:
    if text.startswith(FILE_MARK):
        path = Path(text[len(FILE_MARK) :])
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise ASRError(f"cannot read the hot-words in {path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ASRError(f"the hot-words in {path} are not UTF-8 text; save the file as UTF-8") from None
        return [line for line in lines if line.strip() and not line.startswith(COMMENT)]
    parts = text.replace("\n", ",").split(",") if "," in text or "\n" in text else text.split()
    return [part for part in parts if part.strip()]


def _text(phrase: object) -> str:
    if not isinstance(phrase, str):
        raise ASRError(f"the hot-word {phrase!r} is no text; write it as it is spoken")
    return phrase


def _may_be(boost: object) -> bool:
    return isinstance(boost, Real) and 0 <= float(boost) <= MOST_BOOST


def _pair(phrase: object) -> tuple[str, float | None]:
    words, equals, boost = _text(phrase).rpartition("=")
    if not equals:
        return boost, None
    try:
        return words, float(boost)
    except ValueError:
        raise ASRError(f"the hot-word {phrase!r} has {boost!r} after its =, where a number of nats belongs") from None


class Hotwords:
    """An automaton over letters that knows, at every letter, which phrases the last words are or may become.

    The boost of a phrase includes those of listed phrases inside it: with "york" and "new york", the words "new york"
    get the larger of both boosts, not the sum. Every word of a phrase counts as known: what `words` takes off it for
    being outside the vocabulary is given back. Nothing in it changes, so searches and threads may share it.

    next: node after each node and code, flattened; ahead: nats given so far to what is still open at each node; earned:
    nats for the phrases that are complete where a word ends at each node.
    """

    def __init__(
        self,
        boosts: Mapping[str, float],
        spellings: Callable[[str], Sequence[Sequence[int]]],
        tokens: Sequence[str],
        words: WordScorer | None = None,
    ) -> None:
        """boosts: nats of each normalised phrase, at least one; spellings: of a phrase, in ids of `tokens`."""
        table = Letters(tokens)
        letters_of = [bytes(row[:n]) for row, n in zip(table.letters.astype(np.uint8), table.lengths, strict=True)]
        token_letters = [SPACE * bool(b) + own for b, own in zip(table.begins, letters_of, strict=True)]
        spelled: dict[bytes, float] = {}
        self._texts: dict[str, list[tuple[list[str], list[str]]]] = {}  # by the first sound of each phrase
        for phrase, boost in boosts.items():
            for ids in spellings(phrase):
                key = SPACE.join(filter(None, b"".join(token_letters[i] for i in ids).split(SPACE)))
                spelled[key] = max(boost, spelled.get(key, 0.0))
                sounds = [word.decode() for word in key.split(SPACE)]
                if sounds != phrase.split() and not (words and all(map(words.knows, phrase.split()))):
                    self._texts.setdefault(sounds[0], []).append((sounds, phrase.split()))
        for phrases_of_sound in self._texts.values():
            phrases_of_sound.sort(key=lambda pair: -len(pair[0]))
        for word in sorted({word for key in spelled for word in key.split(SPACE)}):
            spelled.setdefault(word, 0.0)
        letters = np.array(list(spelled), np.bytes_).view(np.uint8).reshape(len(spelled), -1).astype(np.int64)

        used = np.unique(letters[letters > 0])
        code = np.full(256, len(used) + 1)  # those that no phrase holds share the last one
        code[used] = np.arange(len(used)) + 1
        code[AT_SPACE] = AT_SPACE
        self.codes = len(used) + 2
        rows = [code[np.frombuffer(own, np.uint8)].tolist() for own in token_letters]
        self.token_codes = np.array(list(zip_longest(*rows, fillvalue=NO_CODE)))  # shape = (longest, tokens)

        lengths = np.array([len(key) for key in spelled])
        paths, levels, fail = self._link(code[letters], lengths)
        losses = words.losses(letters) if words else np.zeros((len(letters), letters.shape[1] + 2))
        self._weigh(letters == 0, lengths, np.array(list(spelled.values())), losses, paths, levels, fail)

    def written(self, words: Sequence[Span], sounds: Sequence[str]) -> list[Span]:
        """Words with those that sound like a phrase written as the phrase is; sounds: phones of each word.

        A phrase whose words the language model knows is left to it: "knot" in a list must not make a knot of every not.
        """
        found = list(words)
        i = 0
        while i < len(found):
            fitting = (pair for pair in self._texts.get(sounds[i], ()) if pair[0] == list(sounds[i : i + len(pair[0])]))
            phrase, texts = next(fitting, ([sounds[i]], [found[i].text]))
            found[i : i + len(phrase)] = [
                word._replace(text=text) for word, text in zip(found[i : i + len(phrase)], texts, strict=True)
            ]
            i += len(phrase)
        return found

    def tables(self) -> tuple:
        """What HotwordScorer looks things up in, in the order of parse_hotwords in _kernel.c."""
        return self.next, self.ahead, self.earned, np.ascontiguousarray(self.token_codes), self.codes

    def _link(self, codes: Ids, lengths: Ids) -> tuple[Ids, list[Ids], Ids]:
        """Builds `next`.

        codes: of each phrase, shape = (phrases, longest). Result: nodes of each phrase's prefixes, shape = (phrases,
        longest + 1), those of each depth, and where each node's longest suffix leads that is a node too.
        """
        paths = np.full((len(codes), codes.shape[1] + 1), BEGIN)
        count = BEGIN + 1
        edges = []
        for depth, column in enumerate(codes.T):
            going = np.flatnonzero(lengths > depth)
            keys, child = np.unique(paths[going, depth] * self.codes + column[going], return_inverse=True)
            paths[going, depth + 1] = count + child
            edges.append((keys, np.arange(count, count + len(keys))))
            count += len(keys)

        following = np.zeros((count, self.codes), np.int32)
        following[[ELSEWHERE, BEGIN], AT_SPACE] = BEGIN
        fail = np.full(count, ELSEWHERE)
        for keys, nodes in edges:
            parent, code = np.divmod(keys, self.codes)
            fail[nodes] = following[fail[parent], code]
            following[parent, code] = nodes
            following[nodes] = following[fail[nodes]]
            after_space = nodes[code == AT_SPACE]
            following[after_space, AT_SPACE] = after_space  # two spaces are as good as one
        self.next = following.ravel()
        return paths, [nodes for _, nodes in edges], fail

    def _weigh(
        self,
        spaces: NDArray[np.bool_],
        lengths: Ids,
        boost: Scores,
        losses: Scores,
        paths: Ids,
        levels: list[Ids],
        fail: Ids,
    ) -> None:
        """Builds `ahead` and `earned`; spaces: where the phrases have them, losses: as of WordScorer.losses."""
        single = np.count_nonzero(spaces & (np.arange(spaces.shape[1]) < lengths[:, None]), axis=1) == 0
        given, returned, lent, share = (np.zeros(len(fail)) for _ in range(4))
        own = np.zeros(len(boost))
        for depth, nodes in enumerate(levels, start=1):
            # What complete phrases give: more than what shorter ones inside them have given already.
            given[nodes], returned[nodes] = given[fail[nodes]], returned[fail[nodes]]
            whole = np.flatnonzero(lengths == depth)
            ends = np.concatenate([spaces[whole, :depth], np.ones((len(whole), 1), bool)], axis=1)
            inside = np.where(ends, given[paths[whole, : depth + 1]], 0.0).sum(axis=1)
            own[whole] = np.maximum(0.0, boost[whole] - inside)
            given[paths[whole, depth]] += own[whole]
            word = whole[single[whole]]
            returned[paths[word, depth]] = losses[word, -1]
        for depth, nodes in enumerate(levels, start=1):
            # What open phrases give: their part so far, of the most generous one.
            going = np.flatnonzero(lengths >= depth)
            np.maximum.at(share, paths[going, depth], own[going] * depth / lengths[going])
            share[nodes], lent[nodes] = np.maximum(share[nodes], share[fail[nodes]]), lent[fail[nodes]]
            word = going[single[going]]
            lent[paths[word, depth]] = losses[word, depth]
        self.ahead, self.earned = share + lent, given + returned


class HotwordScorer:
    """Adds the boosts of hot-words to another scorer, or to none; its state is that one's with one field more."""

    def __init__(self, hotwords: Hotwords, base: Scorer | None = None) -> None:
        self.hotwords, self.base = hotwords, base

    def start(self) -> Ids:
        """The node where a word begins, then the state of the other scorer."""
        return np.append(BEGIN, self.base.start() if self.base else np.zeros(0, np.int64))

    def extend(self, state: Ids, tokens: Ids) -> tuple[Scores, Ids]:
        """What each token adds, shape = (n,), and the states after it, shape = (n, fields)."""
        score, node = self._follow(state[:, 0], tokens)
        rest = state[:, 1:]
        if self.base:
            added, rest = self.base.extend(rest, tokens)
            score = score + added
        return score, np.concatenate([node[:, None], rest], axis=1)

    def final(self, state: Ids) -> Scores:
        """What ending here adds, shape = (n,)."""
        node = state[:, 0]
        score = self.hotwords.earned[node] - self.hotwords.ahead[node]
        return score + self.base.final(state[:, 1:]) if self.base else score

    def take_back(self, state: Ids) -> tuple[Scores, Ids]:
        """What to add where these hot-words no longer count, shape = (n,), and states of the other scorer alone."""
        return -self.hotwords.ahead[state[:, 0]], state[:, 1:]

    def take_up(self, said: Ids, live: Ids, state: Ids) -> tuple[Scores, Ids]:
        """What to add where these hot-words count from now on, shape = (n,), and states with their field.

        said: tokens that all texts begin with, shape = (tokens,); live: those after them, shape = (n, longest), -1 in
        front of shorter ones; state: of the other scorer, shape = (n, fields). Phrases already said earn nothing; one
        that is open does when it is complete.
        """
        node = np.full(1, BEGIN)
        for token in said:
            node = self._follow(node, token[None])[1]
        node = np.repeat(node, len(live))
        for tokens in live.T:
            node = np.where(tokens < 0, node, self._follow(node, tokens)[1])
        return self.hotwords.ahead[node], np.concatenate([node[:, None], state], axis=1)

    def _follow(self, node: Ids, tokens: Ids) -> tuple[Scores, Ids]:
        words = self.hotwords
        score = -words.ahead[node]
        for codes in words.token_codes:
            code = codes[tokens]
            score += np.where(code == AT_SPACE, words.earned[node], 0.0)
            node = np.where(code == NO_CODE, node, words.next[node * words.codes + code])
        return score + words.ahead[node], node
