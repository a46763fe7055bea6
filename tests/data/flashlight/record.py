"""Records what Flashlight's decoder finds in emissions of real speech, with KenLM and without a language model.

    pip install flashlight-text kenlm
    python tests/data/flashlight/record.py

The words of the language model are phones in a row, as the bundled model emits them, so that every token is a letter.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import kenlm
import numpy as np
from flashlight.lib.text.decoder import (
    LM,
    CriterionType,
    LexiconFreeDecoder,
    LexiconFreeDecoderOptions,
    LMState,
    ZeroLM,
)

import asr
from asr.audio import read_blocks
from asr.decoding.kneser_ney import build_corpus, train
from asr.text import normalize
from asr.tokenizer import BOUNDARY
from asr.training.manifest import read

HERE = Path(__file__).parent
CLIPS = slice(0, None, 3)  # of those beside this folder
SECONDS = 5.0
BEAM, TOKENS, THRESHOLD = 2000, 41, 60.0
LM_WEIGHT, WORD_BONUS, OOV_PENALTY = 0.7, 0.5, 1.0
BEST = 5


class Words(LM):
    """KenLM's score of each word, given at the boundary after it."""

    def __init__(self, tokens: list[str]) -> None:
        super().__init__()
        self._tokens = tokens
        self._model = kenlm.Model(str(HERE / "sounds.arpa"))
        self._known: dict[LMState, tuple[kenlm.State, str]] = {}

    def start(self, start_with_nothing: bool) -> LMState:
        state, context = LMState(), kenlm.State()
        self._model.BeginSentenceWrite(context)
        self._known[state] = context, ""
        return state

    def score(self, state: LMState, token: int) -> tuple[LMState, float]:
        after = state.child(token)
        context, word = self._known[state]
        score = 0.0
        if self._tokens[token] == BOUNDARY:
            context, score = self._word(context, word)
            word = ""
        else:
            word += self._tokens[token]
        self._known.setdefault(after, (context, word))
        return after, score

    def finish(self, state: LMState) -> tuple[LMState, float]:
        return state, self._word(*self._known[state])[1]

    def _word(self, context: kenlm.State, word: str) -> tuple[kenlm.State, float]:
        if not word:
            return context, 0.0
        after = kenlm.State()
        score = self._model.BaseScore(context, word, after) * np.log(10)
        return after, score + (WORD_BONUS - OOV_PENALTY * (word not in self._model)) / LM_WEIGHT


def best(log_probs: np.ndarray, tokens: list[str], lm: LM, lm_weight: float) -> list[tuple[str, float]]:
    """The likeliest token sequences, and log-probabilities summed over their alignments as far as the beam went."""
    options = LexiconFreeDecoderOptions(BEAM, TOKENS, THRESHOLD, lm_weight, 0.0, True, CriterionType.CTC)
    decoder = LexiconFreeDecoder(options, lm, -1, 0, [])
    emissions = np.ascontiguousarray(log_probs, np.float32)
    scores: defaultdict[str, float] = defaultdict(lambda: -np.inf)
    for found in decoder.decode(emissions.ctypes.data, *emissions.shape):
        path = [token for token in found.tokens if token >= 0]
        spelled = [token for before, token in zip([0, *path], path, strict=False) if token not in (0, before)]
        sequence = "".join(tokens[token] for token in spelled)
        scores[sequence] = float(np.logaddexp(scores[sequence], found.score))
    return sorted(scores.items(), key=lambda item: -item[1])[:BEST]


def main() -> None:
    """Writes emissions, language model and results."""
    recognizer = asr.load("en")
    clips = read(HERE.parent / "clips.tsv")
    tokens, lexicon = recognizer.model.tokenizer.tokens, recognizer.model.tokenizer.lexicon
    assert lexicon
    sounds = [" ".join(lexicon.sounds(word)[0] for word in normalize(clip.text).split()) for clip in clips]
    with open(HERE / "sounds.arpa", "w", encoding="utf-8") as file:
        train(build_corpus(sounds, 150), 3).write_arpa(file)
    emissions: dict[str, Any] = {}
    found = {}
    for clip in clips[CLIPS]:
        samples = np.concatenate(list(read_blocks(clip.path)))[: int(SECONDS * 16000)]
        log_probs = np.concatenate(recognizer.emissions(samples)).astype(np.float16)
        emissions[clip.path.stem] = log_probs
        found[clip.path.stem] = {
            "alone": best(log_probs, tokens, ZeroLM(), 0.0),
            "lm": best(log_probs, tokens, Words(tokens), LM_WEIGHT),
        }
    np.savez_compressed(HERE / "emissions.npz", tokens=np.array(tokens), **emissions)
    settings = {"lm_weight": LM_WEIGHT, "word_bonus": WORD_BONUS, "oov_penalty": OOV_PENALTY}
    (HERE / "found.json").write_text(json.dumps({"settings": settings, "found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
