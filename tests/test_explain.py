"""The picture of what a model heard: a real clip in whole or in part, and wrong use in a sentence."""

from pathlib import Path

import numpy as np
import pytest

from asr.cli import main
from asr.cli.explain import LIKELY, _tokens_to_draw

CLIP = Path(__file__).parent / "data" / "1462-170138-0007.ogg"


@pytest.mark.parametrize("section", [[], ["--start", "2", "--seconds", "1.5", "--text", "a burst"]])
def test_a_picture_is_drawn(tiny_model: Path, tmp_path: Path, section: list[str]) -> None:
    picture = tmp_path / "out.png"
    assert main(["explain", str(CLIP), str(picture), "--model", str(tiny_model), *section]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["out.txt"], "out.txt is no picture's name; end it in .png, .pdf, .svg"),
        (["out.png", "--start", "-1"], "begins at -1 s"),
        (["out.png", "--seconds", "0"], "has 0 s"),
        (["out.png", "--start", "inf"], "begins at inf s"),
        (["out.png", "--start", "100"], "has 5.3 s; begin before its end, not at 100 s"),
    ],
)
def test_wrong_use_is_a_sentence(
    tiny_model: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", str(CLIP), *arguments, "--model", str(tiny_model)]) == 2
    assert sentence in capsys.readouterr().err


def test_tokens_that_are_never_likely_are_left_out() -> None:
    shares = np.array([[0.9, 0.05, 0.05, 0.0], [0.3, 0.1, 0.0, 0.6]], np.float32)
    assert _tokens_to_draw(shares).tolist() == [0, 1, 3]
    assert LIKELY == 0.1
