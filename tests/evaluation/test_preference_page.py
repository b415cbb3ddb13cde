"""The page of a study in a real browser: keys, resumption, a server that goes away, a page without a server."""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from poet import media
from poet.evaluation.preference import answers, making, server, study
from poet.evaluation.preference.questions import QUESTIONS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
OPEN = ".choices button:not([disabled])"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Half a second a clip: three pairs, two checks and one pair for practice."""
    root = tmp_path_factory.mktemp("systems")
    for name, level in {"one": 200, "two": 90}.items():
        (root / name).mkdir()
        for place in range(3):
            video = np.full((6, 32, 32 + 16 * (name == "two"), 3), 20, np.uint8)
            for t in range(6):
                video[t, 4:20, 2 * t : 2 * t + 14] = level - 20 * place
            media.write_mp4(root / name / f"{place}.mp4", video, 12.0)
    questions = [name for name, question in QUESTIONS.items() if not question.needs_prompt]
    folders, out = [str(root / "one"), str(root / "two")], str(root / "study")
    making.make(
        folders, making.Wanted(raters=2, checks=2, training=1, questions=questions), making.claim(out, folders, False)
    )
    return Path(out)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "study"))


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1100, "height": 800}, accept_downloads=True)
    found = context.new_page()
    problems: list[str] = []
    found.on("pageerror", lambda error: problems.append(str(error)))
    yield found
    context.close()
    assert not problems


def start(folder: Path) -> server.Server:
    running = server.Server(folder, study.read(folder))
    threading.Thread(target=running.serve_forever, daemon=True).start()
    return running


def start_command(folder: Path, port: int = 0) -> tuple[subprocess.Popen, str]:
    """`poet prefer serve` in a process, and its address."""
    command = [sys.executable, "-m", "poet.cli", "prefer", "serve", str(folder), f"--port={port}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().split()[0]


def stop(running: server.Server) -> None:
    running.shutdown()
    running.server_close()


def kept(folder: Path) -> answers.Answers:
    book = answers.read(study.read(folder), [folder / answers.FILE])
    assert not book.refused
    return book.answers


def answer_trial(page, questions: int, key: str = "ArrowLeft") -> None:
    """Answers all questions of the pair on the page by keys, and goes on."""
    page.wait_for_selector(OPEN)
    before = page.inner_text("#place")
    for place in range(questions):
        page.wait_for_selector(f"#questions li:nth-child({place + 1})[aria-current=step]")
        page.keyboard.press(key)
    page.wait_for_function("before => place.textContent !== before || !hint.hidden", arg=before)
    if page.is_visible("#hint"):
        page.keyboard.press("Enter")  # The button that goes on has the focus.
        page.wait_for_function("before => place.textContent !== before", arg=before)


def test_a_rater_answers_by_keys_stops_and_goes_on(page, folder: Path):
    running, found = start(folder), study.read(folder)
    count, trials = len(found.questions), found.raters[0]
    page.goto(running.url)
    page.fill("#rater", "3")
    page.keyboard.press("Enter")
    assert "from 1 to 2" in page.inner_text("#who-problem")
    page.fill("#rater", "1")
    page.keyboard.press("Enter")
    page.wait_for_selector("#trial")
    assert page.locator(OPEN).count() == 0 and "Watch" in page.inner_text("#state"), "first both clips are watched"
    answer_trial(page, count)
    page.wait_for_selector(OPEN)
    sizes = page.evaluate("[left, right].map(v => v.clientWidth * v.clientHeight)")
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1) and min(sizes) > 10_000, "one area on the screen"
    times = page.evaluate("[left, right].map(v => v.currentTime)")
    assert abs(times[0] - times[1]) < 0.1, "they play together"
    assert page.evaluate("document.documentElement.scrollHeight <= innerHeight"), "all is on one screen"
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#questions li:nth-child(2)[aria-current=step]")
    page.goto(f"{running.url}?rater=1")
    page.wait_for_selector("#questions li:nth-child(2)[aria-current=step]")
    assert page.inner_text("#place") == f"Pair 2 of {len(trials)}"
    page.wait_for_selector(OPEN)
    page.keyboard.press("Backspace")
    page.wait_for_selector("#questions li:nth-child(1)[aria-current=step]")
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("#questions li:nth-child(2)[aria-current=step]")
    assert kept(folder)[1, trials[1], found.questions[0]] == "tie"
    for _ in range(count - 1):
        page.keyboard.press("ArrowLeft")
        page.wait_for_timeout(150)
    for _ in trials[2:]:
        answer_trial(page, count)
    page.wait_for_selector("#end")
    assert page.inner_text("#heading") == "Thank you."
    assert {key[:2] for key in kept(folder)} == {(1, trial) for trial in trials}
    assert len(kept(folder)) == count * len(trials)
    stop(running)


def test_an_answer_is_sent_again_until_a_server_keeps_it(page, folder: Path):
    """The command is killed, and started again on the same port."""
    process, url = start_command(folder)
    page.goto(f"{url}?rater=2")
    page.wait_for_selector(OPEN)
    process.kill()
    process.wait()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("trouble.textContent.includes('sent again')")
    assert page.get_attribute("#questions li:nth-child(1)", "aria-current") == "step" and not kept(folder)
    again, _ = start_command(folder, int(url.rstrip("/").rsplit(":", 1)[1]))
    page.wait_for_selector("#questions li:nth-child(2)[aria-current=step]")
    assert len(kept(folder)) == 1 and page.inner_text("#trouble") == ""
    again.terminate()
    again.wait()


def test_a_page_without_our_server_hands_its_answers_over_as_a_file(page, folder: Path, tmp_path: Path):
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler = functools.partial(quiet, directory=str(folder / "page"))
    found = study.read(folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as plain:
        threading.Thread(target=plain.serve_forever, daemon=True).start()
        page.goto(f"http://127.0.0.1:{plain.server_port}/?rater=2")
        answer_trial(page, len(found.questions), "ArrowRight")
        answer_trial(page, len(found.questions), "ArrowRight")
        page.reload()
        page.wait_for_selector(OPEN)
        assert page.inner_text("#place").startswith("Pair 3 ")
        with page.expect_download() as download:
            page.click("#download")
        download.value.save_as(tmp_path / "answers_2.jsonl")
        plain.shutdown()
    book = answers.read(found, [tmp_path / "answers_2.jsonl"])
    assert (
        len(book.answers) == 2 * len(found.questions) and set(book.answers.values()) == {"right"} and not book.refused
    )


def test_the_page_has_names_for_all_that_can_be_pressed_and_obeys_the_theme(page, folder: Path):
    running = start(folder)
    page.emulate_media(color_scheme="dark")
    page.goto(f"{running.url}?rater=1")
    page.wait_for_selector(OPEN)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 28)"
    page.emulate_media(color_scheme="light")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for name in ("Left clip", "Right clip"):
        assert page.get_by_label(name, exact=True).count() == 1
    groups = page.get_by_role("group")
    assert groups.count() == len(study.read(folder).questions)
    first = groups.first.get_by_role("button", name="No difference")
    first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#questions li:nth-child(2)[aria-current=step]")
    assert page.evaluate("document.activeElement.dataset.answer") == "tie", (
        "who answers by Tab stays in the row of answers"
    )
    assert page.evaluate("document.activeElement.closest('li').matches(':nth-child(2)')")
    stop(running)
