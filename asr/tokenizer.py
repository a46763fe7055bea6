"""Text to token ids and back: characters, SentencePiece pieces, or phones of words in a lexicon."""

from collections.abc import Iterable
from pathlib import Path

from asr.errors import ASRError
from asr.lexicon import LEXICON_FILE, PHONES, Lexicon

BLANK = "<blank>"
BOUNDARY = "▁"  # alone it is the space of a character model; in front of a piece it begins a word
CHARACTERS = (BLANK, BOUNDARY, "'", *"abcdefghijklmnopqrstuvwxyz")
PHONE_TOKENS = (BLANK, BOUNDARY, *PHONES.values())
TOKENS_FILE = "tokens.txt"
PIECES_FILE = "sentencepiece.model"


class Tokenizer:
    """Token 0 is CTC's blank; `tokens` are those of the model's output, in order."""

    def __init__(
        self, tokens: Iterable[str] = CHARACTERS, pieces: Path | None = None, lexicon: Lexicon | None = None
    ) -> None:
        """pieces: a SentencePiece model, where tokens are pieces; lexicon: of pronunciations, where they are phones."""
        self.tokens = list(tokens)
        self.unit = "phones" if lexicon else "pieces" if pieces else "characters"
        self.lexicon = lexicon
        self._pieces = pieces
        self._ids = {token: i for i, token in enumerate(self.tokens)}
        if self.tokens[:1] != [BLANK] or len(self._ids) != len(self.tokens):
            raise ASRError(f"the token list must begin with {BLANK} and hold no token twice; export the model again")

    @classmethod
    def load(cls, directory: str | Path) -> "Tokenizer":
        """The tokenizer of a model directory."""
        directory = Path(directory)
        try:
            tokens = (directory / TOKENS_FILE).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            raise ASRError(
                f"{directory} has no {TOKENS_FILE}, so it is no model directory; export the model again"
            ) from None
        pieces, lexicon = directory / PIECES_FILE, directory / LEXICON_FILE
        return cls(
            tokens,
            pieces if pieces.exists() else None,
            Lexicon.load(lexicon) if lexicon.exists() else None,
        )

    @classmethod
    def train_pieces(cls, texts: Iterable[str], size: int, directory: str | Path) -> "Tokenizer":
        """Trains unigram pieces (Kudo, 2018) on normalised texts and keeps the model in `directory`."""
        import sentencepiece

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / PIECES_FILE
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_prefix=str(path.with_suffix("")),
            vocab_size=size,
            model_type="unigram",
            character_coverage=1.0,
            bos_id=-1,
            eos_id=-1,
            unk_id=0,
            minloglevel=2,
        )
        path.with_suffix(".vocab").unlink()
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        return cls([BLANK, *(processor.id_to_piece(i) for i in range(1, processor.vocab_size()))], path)

    def save(self, directory: str | Path) -> None:
        """Writes the token list, and the SentencePiece model or lexicon where there is one, into a model directory."""
        directory = Path(directory)
        (directory / TOKENS_FILE).write_text("".join(f"{token}\n" for token in self.tokens), encoding="utf-8")
        if self.lexicon:
            self.lexicon.save(directory / LEXICON_FILE)
        if self._pieces and self._pieces.resolve() != (directory / PIECES_FILE).resolve():
            (directory / PIECES_FILE).write_bytes(self._pieces.read_bytes())

    def encode(self, text: str) -> list[int]:
        """Token ids of a normalised text; a character or pronunciation that the model lacks is an error."""
        if self.lexicon:
            return self.spellings(text)[0]
        if self._pieces is None:
            units = list(text.replace(" ", BOUNDARY))
        else:
            units = self._processor().encode(text, out_type=str)
        try:
            return [self._ids[unit] for unit in units]
        except KeyError as missing:
            raise ASRError(
                f"{text!r} holds {missing}, which is not among the model's tokens; normalise it first"
            ) from None

    def unknown(self, text: str) -> list[str]:
        """Words of a normalised text that the lexicon, where there is one, cannot pronounce."""
        return [word for word in text.split() if not self.lexicon.sounds(word)] if self.lexicon else []

    def spellings(self, text: str) -> list[list[int]]:
        """All ways in token ids that a normalised text may be heard in."""
        if not self.lexicon:
            return [self.encode(text)]
        return [[self._ids[phone] for phone in BOUNDARY.join(way)] for way in self.lexicon.sounds_of_text(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; phones as they sound."""
        return "".join(self.tokens[i] for i in ids).replace(BOUNDARY, " ").strip()

    def _processor(self):  # type: ignore[no-untyped-def]
        if not hasattr(self, "_loaded"):
            import sentencepiece

            self._loaded = sentencepiece.SentencePieceProcessor(model_file=str(self._pieces))
        return self._loaded
