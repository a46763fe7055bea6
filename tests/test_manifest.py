"""Manifests and LibriSpeech folders: what is read, and the sentence for each thing that can be wrong."""

import re
import shutil
import tempfile
from pathlib import Path

import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from asr.errors import ASRError
from asr.training.manifest import COLUMNS, Utterance, read, validate

DATA = Path(__file__).parent / "data"
HEADER = "\t".join(COLUMNS) + "\n"
FIELD = st.text(st.characters(exclude_characters="\t\r\n", exclude_categories=["Cs"]), min_size=1, max_size=20)


@pytest.fixture
def librispeech(tmp_path: Path) -> Path:
    """A split of two chapters, made of the clips."""
    for clip in read(DATA / "clips.tsv"):
        if clip.path.suffix == ".flac":
            speaker, chapter, _ = clip.path.stem.split("-")
            folder = tmp_path / "LibriSpeech" / "train-clean-100" / speaker / chapter
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(clip.path, folder)
            with (folder / f"{speaker}-{chapter}.trans.txt").open("a") as transcript:
                transcript.write(f"{clip.path.stem} {clip.text}\n")
    return tmp_path / "LibriSpeech"


@given(st.lists(st.builds(Utterance, FIELD.map(Path), st.floats(0.01, 1e5), FIELD, FIELD, FIELD), min_size=1))
def test_a_manifest_reads_back_as_it_was_written(utterances: list[Utterance]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder, "m.tsv")
        lines = ("\t".join((str(u.path), repr(u.seconds), u.speaker, u.corpus, u.text)) for u in utterances)
        manifest.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
        assert read(manifest, Path()) == utterances


def test_the_clips_are_as_their_manifest_says() -> None:
    clips = read(DATA / "clips.tsv")
    assert len(clips) == 8
    assert validate(clips) == []
    for clip in clips:
        assert soundfile.info(clip.path).duration == pytest.approx(clip.seconds, abs=0.1)


def test_paths_are_relative_to_the_root_where_one_is_given(tmp_path: Path) -> None:
    manifest = tmp_path / "m.tsv"
    manifest.write_text((DATA / "clips.tsv").read_text())
    assert [u.path for u in read(manifest, DATA)] == [u.path for u in read(DATA / "clips.tsv")]
    assert read(manifest)[0].path.parent == tmp_path


@pytest.mark.parametrize("part", ["", "train-clean-100", "train-clean-100/26", "train-clean-100/26/495"])
def test_any_part_of_librispeech_is_a_source(librispeech: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    utterances = read(librispeech / part)
    assert len(utterances) == (2 if "26" in part else 6)
    assert {u.corpus for u in utterances} == {"train-clean-100"}
    known = {clip.path.name: clip for clip in read(DATA / "clips.tsv")}
    for u in utterances:
        assert u.text == known[u.path.name].text
        assert u.seconds == pytest.approx(known[u.path.name].seconds, abs=0.01)
        assert u.speaker == u.path.name.split("-")[0]
    monkeypatch.chdir(librispeech / part)
    assert [u.corpus for u in read(".")] == [u.corpus for u in utterances]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "m.tsv:1 must name the columns"),
        (b"path\ttext\n", "m.tsv:1 must name the columns .* but it has path, text"),
        (HEADER.encode(), "m.tsv lists no utterance"),
        (HEADER.encode() + b"a.wav\t1\ts\tc\n", "m.tsv:2 has 4 columns instead of 5"),
        (HEADER.encode() + b"a.wav\t1\ts\tc\tA\n\nb.wav\tlong\ts\tc\tB\n", "m.tsv:4 gives 'long' as seconds"),
        (HEADER.encode() + b"a.wav\tnan\ts\tc\tA\n", "m.tsv:2 gives 'nan' as seconds"),
        (HEADER.encode() + b"a.wav\t-1\ts\tc\tA\n", "above 0"),
        (HEADER.encode() + b"\xff\xfe", "m.tsv is not UTF-8 text"),
    ],
)
def test_a_bad_manifest_is_refused_by_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.tsv").write_bytes(content)
    with pytest.raises(ASRError, match=message):
        read(tmp_path / "m.tsv")


def test_missing_and_empty_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ASRError, match=f"no manifest or folder {re.escape(str(tmp_path / 'none.tsv'))}"):
        read(tmp_path / "none.tsv")
    with pytest.raises(ASRError, match=r"holds no \*.trans.txt"):
        read(tmp_path)


def test_a_librispeech_line_without_its_recording_is_refused(librispeech: Path) -> None:
    chapter = librispeech / "train-clean-100" / "26" / "495"
    (chapter / "26-495-0007.flac").write_bytes(b"not audio")
    with pytest.raises(ASRError, match=r"26-495.trans.txt:1 names 26-495-0007.flac, which cannot be read"):
        read(librispeech)
    (chapter / "26-495-0007.flac").unlink()
    with pytest.raises(ASRError, match=r"26-495.trans.txt:1 names 26-495-0007.flac, which does not exist"):
        read(librispeech)


def test_validate_names_every_problem(tmp_path: Path) -> None:
    clip = read(DATA / "clips.tsv")[0]
    lost = Utterance(tmp_path / "lost.wav", 1.0, "s", "c", " ")
    problems = validate([clip, lost, clip])
    assert problems == [f"{lost.path} does not exist", f"{lost.path} has no text", f"{clip.path} is listed 2 times"]
