"""The page of `asr serve` in a real browser, whose microphone hears a real recording."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile
from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, expect, sync_playwright

import asr
from asr.text import normalize

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).parent / "data"
RATE = 16_000
CLIPS = ("27-124992-0008.flac", "26-495-0000.flac")
RECORDING = DATA / "27-124992-0002.flac"
NEAR = 0.15  # character error rate between a recording and the same heard from any sample on: frames fall elsewhere
PATIENCE = 60_000.0  # ms, on a busy machine
DESKTOP = ViewportSize(width=1100, height=760)
PHONE = ViewportSize(width=360, height=700)
ALLOWED = ["microphone", "clipboard-read", "clipboard-write"]


@contextmanager
def serving(*options: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`asr serve` at a free port, and the address of its page."""
    command = [sys.executable, str(ROOT / "run_asr.py"), "serve", "--port", "0", *options]
    with subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        address = re.match(r"serving at (\S+)", process.stderr.readline())
        assert address, process.stderr.read()
        try:
            yield process, address[1]
        finally:
            process.send_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving() as (_, address):
        yield address


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the microphone hears: two people, with pauses before, between and after."""
    pieces = [np.zeros(RATE, np.float32)]
    for clip in CLIPS:
        pieces += [soundfile.read(DATA / clip, dtype="float32")[0], np.zeros(RATE * 3 // 2, np.float32)]
    path = tmp_path_factory.mktemp("speech") / "speech.wav"
    soundfile.write(path, np.concatenate(pieces), RATE, "PCM_16")
    return path


@pytest.fixture(scope="module")
def browser(speech: Path) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("chromium-browser"),
            args=[
                "--use-fake-device-for-media-stream",
                f"--use-file-for-fake-audio-capture={speech}%noloop",
                *(["--no-sandbox"] if os.geteuid() == 0 else []),
            ],
        )
        with browser:
            yield browser


@contextmanager
def visit(browser: Browser, address: str, size: ViewportSize = DESKTOP, *, dark: bool = False) -> Iterator[Page]:
    """The page, opened by somebody who allows the microphone; it must not complain to the console."""
    with browser.new_context(
        viewport=size, color_scheme="dark" if dark else "light", permissions=ALLOWED, accept_downloads=True
    ) as context:
        yield from opened(context, address)


def opened(context: BrowserContext, address: str) -> Iterator[Page]:
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(error.message))
    page.goto(address)
    yield page
    assert complaints == []


def reference(*clips: str) -> str:
    rows = [line.split("\t") for line in (DATA / "clips.tsv").read_text().splitlines()[1:]]
    texts = {row[0]: normalize(row[4]) for row in rows}
    return " ".join(texts[clip] for clip in clips)


def download(page: Page, name: str) -> str:
    with page.expect_download() as file:
        page.get_by_role("button", name=name).click()
    return file.value.path().read_text()


def cues(srt: str) -> list[tuple[str, str, str]]:
    """Start, end and text of each."""
    found = []
    for number, block in enumerate(srt.rstrip("\n").split("\n\n"), 1):
        index, times, *lines = block.split("\n")
        assert index == str(number)
        assert len(lines) <= 2
        start, end = times.split(" --> ")
        found.append((start, end, " ".join(lines)))
    return found


def test_what_is_said_is_shown(browser: Browser, server: str, speech: Path) -> None:
    wanted = 2 * soundfile.info(speech).duration  # bytes, times the rate
    with visit(browser, server) as page:
        with page.expect_websocket() as socket:
            page.get_by_role("button", name="Speak").click()
        rate, sent = 0.0, 0

        def heard_all(payload: str | bytes) -> bool:
            nonlocal rate, sent
            if isinstance(payload, str):
                rate = float(re.findall(r'"sample_rate":(\d+)', payload)[0])
            else:
                sent += len(payload)
            return sent > wanted * rate > 0

        with socket.value.expect_event("framesent", heard_all, timeout=PATIENCE):
            expect(page.locator(".partial")).not_to_be_empty(timeout=PATIENCE)
            expect(page.get_by_role("status")).to_have_text("Listening")
            colour = "element => getComputedStyle(element).color"
            dim = page.locator(".partial").evaluate(colour)
            expect(page.locator(".word").first).to_be_visible(timeout=PATIENCE)
            assert page.locator(".word").first.evaluate(colour) != dim
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("status")).to_have_text("Ready", timeout=PATIENCE)

        text = download(page, "Download as text")
        page.get_by_role("button", name="Copy").click()
        expect(page.get_by_role("button", name="Copied")).to_be_visible()
        assert page.evaluate("navigator.clipboard.readText()") == text
        shown = page.get_by_role("log").inner_text()
        subtitles = cues(download(page, "Download as subtitles"))
        latency = page.locator("#latency").inner_text()
        word = page.locator(".word").first
        word.hover()
        assert re.fullmatch(r"\d+ % sure, at 00:0[0-3]", word.get_attribute("data-tip") or "")

    heard = " ".join(text.split())
    assert " ".join(shown.split()) == heard
    assert " ".join(text for _, _, text in subtitles) == heard
    assert re.fullmatch(r"Latency \d+ ms", latency)
    transcript = asr.load().transcribe(speech)
    assert jiwer.cer(transcript.text, heard) <= NEAR
    assert jiwer.wer(reference(*CLIPS), heard) <= jiwer.wer(reference(*CLIPS), transcript.text) + NEAR


def test_a_recording_is_written_down(browser: Browser, server: str, tmp_path: Path) -> None:
    transcript = asr.load().transcribe(RECORDING)
    with visit(browser, server, PHONE, dark=True) as page:
        page.get_by_label("Open a recording").set_input_files(RECORDING)
        expect(page.get_by_role("article", name=RECORDING.name)).to_contain_text(transcript.text, timeout=PATIENCE)
        expect(page.get_by_role("progressbar")).to_be_hidden()
        found = cues(download(page, "Download as subtitles"))
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 20, 22)"
        page.get_by_role("button", name="Remove").click()
        expect(page.get_by_text("drop a recording")).to_be_visible()
    assert " ".join(text for _, _, text in found) == transcript.text
    assert found == sorted(found)
    hours, minutes, seconds = found[0][0].replace(",", ".").split(":")
    start = 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    assert start == pytest.approx(transcript.words[0].start, abs=0.002)


def test_a_recording_can_be_dropped_anywhere(browser: Browser, server: str) -> None:
    with visit(browser, server) as page:
        data = page.evaluate_handle(
            """bytes => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], "talk.flac"));
                return data;
            }""",
            list(RECORDING.read_bytes()),
        )
        page.dispatch_event("main", "dragenter", {"dataTransfer": data})
        expect(page.get_by_text("Drop to have it written down")).to_be_visible()
        page.dispatch_event("main", "drop", {"dataTransfer": data})
        expect(page.get_by_text("Drop to have it written down")).to_be_hidden()
        expect(page.get_by_role("article", name="talk.flac").locator(".word").first).to_be_visible(timeout=PATIENCE)


def test_what_is_no_recording_is_named(browser: Browser, server: str) -> None:
    with visit(browser, server) as page:
        page.get_by_label("Open a recording").set_input_files(DATA / "clips.tsv")
        expect(page.get_by_role("alert")).to_contain_text("clips.tsv", timeout=PATIENCE)
        expect(page.get_by_role("article")).to_have_count(0)


def test_the_keyboard_is_enough(browser: Browser, server: str) -> None:
    with visit(browser, server) as page:
        reached = []
        for _ in range(4):
            page.keyboard.press("Tab")
            reached.append(
                page.evaluate("document.activeElement.labels?.[0]?.innerText ?? document.activeElement.innerText")
            )
        assert [name.strip() for name in reached] == ["Show confidence", "Options", "Speak", "Open a recording"]
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Enter")
        expect(page.get_by_role("log")).to_have_attribute("aria-live", "polite")
        expect(page.get_by_role("status")).to_have_text("Listening", timeout=PATIENCE)
        page.keyboard.press("Space")
        expect(page.get_by_role("button", name="Speak")).to_be_visible(timeout=PATIENCE)
        page.get_by_role("button", name="Options").focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog", name="Options")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_microphone_that_is_not_allowed(browser: Browser, server: str) -> None:
    with browser.new_context() as context:
        for page in opened(context, server):
            page.get_by_role("button", name="Speak").click()
            expect(page.get_by_role("alert")).to_contain_text("The microphone is not allowed here.")
            expect(page.get_by_role("button", name="Speak")).to_be_visible()


def test_a_token_is_asked_for_and_a_lost_server_is_told(browser: Browser) -> None:
    alone = ("--workers", "1")  # which nobody outlives to say goodbye
    with serving(*alone, ASR_TOKEN="s3cret") as (process, address), visit(browser, address) as page:
        page.get_by_role("button", name="Speak").click()
        expect(page.get_by_role("alert")).to_contain_text("If it wants a token", timeout=PATIENCE)
        page.get_by_label("Open a recording").set_input_files(RECORDING)
        expect(page.get_by_role("alert")).to_contain_text("wants its token", timeout=PATIENCE)
        page.get_by_role("button", name="Options").click()
        page.get_by_label("Access token").fill("s3cret")
        page.get_by_role("button", name="Done").click()
        page.get_by_role("button", name="Speak").click()
        expect(page.locator(".word").first).to_be_visible(timeout=PATIENCE)
        expect(page.get_by_role("alert")).to_be_hidden()
        process.kill()
        expect(page.get_by_role("alert")).to_contain_text("The connection to the server was lost", timeout=PATIENCE)
        expect(page.locator(".word").first).to_be_visible()
