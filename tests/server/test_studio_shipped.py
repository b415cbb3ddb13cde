"""Every job of the studio in a real browser, on the shipped weights: filled in, sent, made, and there to be played."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from shipped import WEIGHTS, serve, wait_ready

from poet import media
from poet.runs.run import Run

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]
TASKS = [*Run.open(WEIGHTS).checkpoint.spec.data.mixture_rates]
RESULTS = "#history > li:first-child .results"
# Of an element of a result: whether it has something to play or to look at.
LOADED = "media => media.tagName === 'IMG' ? media.naturalWidth > 0 : media.readyState > 0 && media.duration > 0"


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studio")
    process, found = serve(folder / "store", folder / "log")
    try:
        wait_ready(found)
        yield found
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def page(browser, client):
    found, wrong = browser.new_page(), []
    found.on("pageerror", lambda error: wrong.append(str(error)))
    found.goto(client.url)
    found.wait_for_selector("#form button.main")
    yield found
    found.close()
    assert not wrong


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """Two seconds of a square that moves, with a tone."""
    file = tmp_path_factory.mktemp("clip") / "clip.mp4"
    video = np.random.default_rng(0).integers(60, 120, (1, 64, 64, 3)).repeat(17, 0).astype(np.uint8)
    for number, frame in enumerate(video):
        frame[20:36, 2 * number : 2 * number + 16] = (200, 60, 40)
    media.write_mp4(file, video, 8.0, np.int16(6000 * np.sin(np.arange(34_000) / 6)), 16_000)
    return file


def send(page, client) -> None:
    """Sends the form, and waits until its result can be played, or read."""
    before = {job.id for job in client.jobs()}
    page.click("#form button.main")
    page.locator(f"#history > li:nth-child({len(before) + 1}), #problem:not(:empty)").first.wait_for()
    assert not (said := page.inner_text("#problem")), said
    (new,) = {job.id for job in client.jobs()} - before
    job = client.wait(new, timeout_s=600)
    assert job.files or job.texts, job
    if job.texts:
        page.locator(RESULTS, has_text=job.texts[0]).wait_for()
    else:
        element = page.locator(f"{RESULTS} video, {RESULTS} img, {RESULTS} audio").first
        element.wait_for()
        page.wait_for_function(LOADED, arg=element.element_handle())


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_made(page, client, clip, task):
    page.select_option("#task", task)
    facts = next(t for t in client.models()[0]["tasks"] if t["name"] == task)
    if facts["text"]:
        page.get_by_label("Prompt", exact=True).fill("the player walks forward in a red hall")
    if facts["clip"]:
        page.locator("#form input[type=file]").first.set_input_files(clip)
        page.wait_for_selector(".drop video, .drop audio")
    if facts["regions"]:
        page.get_by_label("Region").select_option(facts["regions"][0])
    send(page, client)
    if "audio" in facts["outputs"]:
        page.locator(f"{RESULTS} canvas.wave").wait_for()


def test_a_long_film_with_sound_and_a_changing_text_is_made(page, client, clip):
    page.select_option("#task", "long")
    page.get_by_label("Seconds", exact=True).fill("4")
    page.get_by_label("Prompt", exact=True).fill("a red hall")
    page.get_by_role("button", name="Add a text").click()
    page.get_by_label("From second", exact=True).nth(1).fill("2")
    page.get_by_label("Prompt", exact=True).nth(1).fill("a green hall")
    page.get_by_label("Sound", exact=True).check()
    send(page, client)


def test_a_storyboard_is_made(page, client):
    page.select_option("#task", "storyboard")
    page.get_by_label("Prompt", exact=True).fill("a red hall")
    page.get_by_label("Seconds", exact=True).fill("2")
    page.get_by_role("button", name="Add a scene").click()
    page.get_by_label("Prompt", exact=True).nth(1).fill("a green hall")
    page.get_by_label("Seconds", exact=True).nth(1).fill("2")
    page.get_by_label("Transition").nth(1).select_option("continue")
    send(page, client)


def test_a_chain_is_made(page, client):
    page.select_option("#task", "chain")
    page.get_by_label("Prompt", exact=True).fill("a red hall")
    page.get_by_role("button", name="Add a job").click()
    page.locator(".items > li").nth(1).get_by_label("Job").select_option("video_to_audio")
    send(page, client)
