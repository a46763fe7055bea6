"""The words of a language model as a tree over their letters or phones, and the file that saves working it out again.

tree = LetterTree.of(lm, lexicon)      # a third of a second for 87,000 words
write_tree("my-model")                 # into tree.bin, from lm.bin and lexicon.txt
tree = open_tree("my-model", lm, lexicon)  # mapped from there, unless it was made from something else
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr.decoding.lm import SPECIALS, UNKNOWN_ID, Ids, NgramModel, read_sections, write_sections
from asr.errors import ASRError
from asr.lexicon import LEXICON_FILE, Lexicon
from asr.tokenizer import TOKENS_FILE

TREE_FILE = "tree.bin"
MAGIC = b"asr-tree-1\n"
ROOT = 0  # node before the first letter of a word


@dataclass(frozen=True)
class LetterTree:
    """A tree over spelled words; every node is a prefix of at least one spelling, in letters or in phones.

    Letters are bytes of UTF-8. Nodes are numbered by depth, then in the order of the spellings, so that the children of
    a node are in a row. The last node, `outside`, is none of the tree: it stands for all prefixes of no word.
    """

    children: NDArray[np.integer]  # how many each node has
    letter: NDArray[np.uint8]  # that leads to each node
    count: Ids  # words that each node completes
    words: NDArray[np.integer]  # those of all nodes, in their order, of a node the likeliest first
    best: NDArray[np.float32]  # the best unigram log-probability below each node

    @classmethod
    def of(cls, lm: NgramModel, lexicon: Lexicon | None = None) -> "LetterTree":
        """The tree over a model's words as the lexicon has them sound, or else as they are spelled."""
        if lexicon:
            known = dict(zip(lm.words, range(len(lm.words)), strict=True))
            pairs = [(known[word], sound) for word, sound in lexicon.pairs if word in known]
            ids, spellings = np.array([i for i, _ in pairs], np.int64), [sound for _, sound in pairs]
        else:
            ids, spellings = np.arange(len(SPECIALS), len(lm.words)), lm.words[len(SPECIALS) :]
        return cls.build(spellings, ids, lm.unigrams())

    @classmethod
    def build(cls, spellings: Sequence[str], words: Ids, log_prob: NDArray[np.float32]) -> "LetterTree":
        """words: id of each spelling's word; log_prob: unigram log-probability of each word id."""
        # Those that are spelled alike stand together, the likeliest first.
        rank = np.lexsort((-log_prob[words],))
        every, words = np.array([s.encode() for s in spellings])[rank], words[rank]
        rank = np.argsort(every, kind="stable")
        every, words = every[rank], words[rank]
        first = np.flatnonzero(np.append(True, every[1:] != every[:-1]))
        spelled = every[first]
        letters = spelled.view(np.uint8).reshape(len(spelled), -1).T.copy()  # (depth, spelling), zero after the end

        # A sorted spelling makes a new node for each letter after what it shares with the one before it.
        shared = np.zeros(len(spelled), np.int64)
        shared[1:] = (letters[:, 1:] != letters[:, :-1]).argmax(axis=0)
        new = (np.arange(len(letters))[:, None] >= shared) & (letters > 0)
        depth, column = np.nonzero(new)
        node = np.zeros((len(letters) + 1, len(spelled)), np.int32)  # of each spelling's prefix of so many letters
        node[depth + 1, column] = np.arange(len(depth)) + 1
        node = np.maximum.accumulate(node, axis=1)
        nodes = len(depth) + 2
        letter = np.zeros(nodes, np.uint8)
        letter[1:-1] = letters[depth, column]

        leaf = node[(letters > 0).sum(axis=0), np.arange(len(spelled))]
        count = np.zeros(nodes, np.int64)
        count[leaf] = np.diff(np.append(first, len(words)))
        in_order = np.argsort(np.repeat(leaf, count[leaf]), kind="stable")

        best = np.full(nodes, log_prob[UNKNOWN_ID])
        for level, is_new, reached in zip(letters, new, node[1:], strict=True):
            begins = np.flatnonzero(is_new)
            reaching = np.where(level > 0, log_prob[words[first]], -np.inf)
            best[reached[begins]] = np.maximum.reduceat(reaching, begins)
        return cls(np.bincount(node[depth, column], minlength=nodes), letter, count, words[in_order], best)

    @property
    def outside(self) -> int:
        """The node of all prefixes of no word."""
        return len(self.letter) - 1

    @cached_property
    def tables(self) -> tuple[Ids, NDArray[np.uint8], Ids, Ids, Ids]:
        """The tree as _kernel.c reads it.

        The first child of each node, shape = (nodes + 1,); the letter that leads to it; the index of its first word;
        how many words it completes; the words.
        """
        children = np.append(1, 1 + np.cumsum(self.children, dtype=np.int64))
        return children, self.letter, np.cumsum(self.count) - self.count, self.count, self.words.astype(np.int64)

    @cached_property
    def _keys(self) -> Ids:
        """Parent and letter of nodes 1, 2 ...; ascending."""
        return np.repeat(np.arange(len(self.children)), self.children) << 8 | self.letter[1:-1]

    def word(self, node: Ids, rank: Ids) -> Ids:
        """The word of this rank, from 0, among those that each node completes, or else <unk>, shape = (n,)."""
        _, _, first, count, words = self.tables
        known = rank < count[node]
        return np.where(known, words[np.where(known, first[node] + rank, 0)], UNKNOWN_ID)

    def find(self, spelling: str) -> int:
        """The node of a spelling."""
        node = np.array([ROOT])
        for letter in spelling.encode():
            node = self.child(node, np.array([letter]))
        return int(node[0])

    def child(self, node: Ids, letter: Ids) -> Ids:
        """The node one letter further, shape = (n,)."""
        key = node << 8 | letter
        at = np.minimum(np.searchsorted(self._keys, key), len(self._keys) - 1)
        return np.where(self._keys[at] == key, at + 1, self.outside)

    def save(self, path: Path, source: int) -> None:
        """Writes what `load` reads; source: checksum of what the tree was made from."""
        sections = {
            name: values.astype(np.min_scalar_type(values.max(initial=0)) if values.dtype.kind != "f" else np.float32)
            for name, values in vars(self).items()
            if name in self.__dataclass_fields__
        }
        with open(path, "wb") as file:
            write_sections(file, MAGIC, {"source": source}, sections)

    @classmethod
    def load(cls, path: Path, source: int) -> "LetterTree | None":
        """Maps a saved tree into memory; None where there is none that was made from this source."""
        try:
            header, sections = read_sections(path, MAGIC)
            tree = cls(**sections | {"count": sections["count"].astype(np.int64)})
        except (OSError, KeyError, TypeError, ValueError):
            return None
        nodes = {len(tree.children), len(tree.letter), len(tree.count), len(tree.best)}
        whole = len(nodes) == 1 and tree.children.sum() == nodes.pop() - 2 and tree.count.sum() == len(tree.words)
        return tree if whole and header.get("source") == source else None


def open_tree(directory: str | Path, lm: NgramModel, lexicon: Lexicon | None) -> LetterTree:
    """The tree of a model directory with this language model and lexicon: from its file where that fits, or built."""
    return LetterTree.load(Path(directory) / TREE_FILE, _source(lm, lexicon)) or LetterTree.of(lm, lexicon)


def write_tree(directory: str | Path) -> None:
    """Writes the tree into a model directory that has a language model, over any other; elsewhere it does nothing."""
    from asr.runtime import LANGUAGE_MODEL_FILE

    directory = Path(directory)
    if not ((directory / LANGUAGE_MODEL_FILE).is_file() and (directory / TOKENS_FILE).is_file()):
        return
    lm = NgramModel.load(directory / LANGUAGE_MODEL_FILE)
    lexicon = Lexicon.load(directory / LEXICON_FILE) if (directory / LEXICON_FILE).is_file() else None
    try:
        LetterTree.of(lm, lexicon).save(directory / TREE_FILE, _source(lm, lexicon))
    except OSError as error:
        raise ASRError(f"cannot write {directory / TREE_FILE}: {error.strerror}") from None


def _source(lm: NgramModel, lexicon: Lexicon | None) -> int:
    return lm.vocabulary_checksum << 32 | lexicon.checksum if lexicon else lm.vocabulary_checksum
