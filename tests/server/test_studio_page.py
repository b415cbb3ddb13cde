"""The studio in a real browser: every form sends what was filled in, jobs are followed, used, repeated and removed."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from running import served
from studio_stand_in import StudioStandIn

from poet import media
from poet.server.access import Keys

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
HISTORY, PROBLEM = "#history > li", "#problem"


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with served(tmp_path_factory.mktemp("studio") / "store", StudioStandIn()) as found:
        yield found


@pytest.fixture
def page(browser, client):
    """The studio of an empty service; scripts that fail, or ask for other hosts, fail the test."""
    for job in client.get("/v1/jobs?limit=100").json()["data"]:
        client.delete(f"/v1/jobs/{job['id']}")
    found, wrong = browser.new_page(), []
    found.on("pageerror", lambda error: wrong.append(str(error)))
    found.on(
        "request", lambda r: wrong.append(r.url) if not r.url.startswith((str(client.base_url), "blob:")) else None
    )
    found.goto(str(client.base_url))
    found.wait_for_selector("#form button.main")
    yield found
    found.close()
    assert not wrong


@pytest.fixture(scope="module")
def picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((40, 60, 3), (40, 90, 160), np.uint8)).save(file, "png")
    return file.getvalue()


def choose(page, task: str) -> None:
    page.select_option("#task", task)


def submit(page, client) -> dict:
    """The job that the form makes, when it is done."""
    before = {job["id"] for job in client.get("/v1/jobs?limit=100").json()["data"]}
    page.click("#form button.main")
    page.locator(HISTORY).nth(len(before)).wait_for()
    (new,) = [job for job in client.get("/v1/jobs?limit=100").json()["data"] if job["id"] not in before]
    return client.until(new["id"])


def drop(page, label: str, name: str, kind: str, data: bytes) -> None:
    page.get_by_label(label).set_input_files({"name": name, "mimeType": kind, "buffer": data})


def test_a_prompt_becomes_a_clip_that_stays_when_the_page_is_loaded_again(page, client):
    page.get_by_label("Prompt", exact=True).fill("a door opens")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Candidates").fill("2")
    job = submit(page, client)
    assert job["status"] == "completed"
    asked = {"task": "text_to_video", "prompt": "a door opens", "seed": 7, "num": 2}
    assert job["request"] == asked
    page.wait_for_selector(f"{HISTORY} .results img")
    page.reload()
    page.wait_for_selector(f"{HISTORY} .results img")
    assert "a door opens" in page.inner_text(HISTORY) and "seed 7" in page.inner_text(HISTORY)


# Milliseconds from the start of the navigation to the first paint of any content.
PAINTS = """() => performance.getEntriesByName("first-contentful-paint")[0]?.startTime"""


def test_the_page_is_painted(browser, client, capsys):
    """Once with nothing in the browser's cache, then again; how soon goes to the terminal (`-s` is not needed)."""
    context, found = browser.new_context(), []
    page = context.new_page()
    for _ in range(2):
        page.goto(str(client.base_url))
        page.wait_for_selector("#form button.main")
        page.wait_for_function(PAINTS)
        found.append((page.evaluate(PAINTS), page.evaluate("performance.now()")))
    context.close()
    assert all(0 < paint < form for paint, form in found)
    with capsys.disabled():
        print("\nfirst paint, whole form:", "; ".join(f"{paint:.0f} ms, {form:.0f} ms" for paint, form in found))


def test_a_clip_is_asked_for_larger(page, client):
    page.get_by_label("Prompt", exact=True).fill("a door opens")
    page.get_by_label("Upscale").check()
    assert submit(page, client)["request"] == {"task": "text_to_video", "prompt": "a door opens", "upscale": True}
    page.get_by_label("Upscale").uncheck()
    assert "upscale" not in submit(page, client)["request"]


def test_the_keyboard_is_enough(page, client):
    page.get_by_label("Prompt", exact=True).focus()
    page.keyboard.type("rain")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(f"{HISTORY} .results img")
    page.get_by_role("button", name="Delete").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#empty:visible")
    assert client.get("/v1/jobs").json()["data"] == []


def test_settings_are_sent_as_numbers_and_schedules(page, client):
    page.get_by_text("Sampling settings").click()
    page.get_by_label("Temperature").fill("1, 0.9")
    page.get_by_label("Top k").fill("20")
    page.get_by_label("Prompt", exact=True).fill("x")
    asked = submit(page, client)["request"]
    assert (asked["temperature"], asked["top_k"]) == ([1, 0.9], 20) and "top_p" not in asked


def test_a_painted_mask_is_white_where_the_brush_was(page, client, picture):
    choose(page, "inpainting")
    drop(page, "Clip", "frame.png", "image/png", picture)
    canvas = page.locator(".painter canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.5, steps=5)
    page.mouse.up()
    job = submit(page, client)
    assert "region" not in job["request"]
    mask = np.asarray(
        Image.open(client.service.store.folder / client.service.store.upload(job["request"]["mask"]).file)
    )
    assert mask.shape[:2] == (40, 60)
    white = mask[..., 0] > 127
    assert white[20, 27] and not white[2].any() and not white[:, 58].any() and set(np.unique(mask[..., 0])) <= {0, 255}


def test_a_box_can_be_marked_without_a_pointer(page, client, picture):
    choose(page, "inpainting")
    drop(page, "Clip", "frame.png", "image/png", picture)
    page.locator(".painter canvas").wait_for()
    for name, value in {"left": 0, "top": 0, "right": 50, "bottom": 100}.items():
        page.get_by_label(f"{name} %").fill(str(value))
    page.get_by_role("button", name="Mark this box").press("Enter")
    job = submit(page, client)
    store = client.service.store
    white = np.asarray(Image.open(store.folder / store.upload(job["request"]["mask"]).file))[..., 0] > 127
    np.testing.assert_array_equal(white, np.arange(60)[None].repeat(40, 0) < 30)


def test_a_mask_is_painted_over_the_first_frame_of_a_clip(page, client, tmp_path):
    video = np.full((9, 48, 64, 3), 40, np.uint8)
    video[0] = 200
    media.write_mp4(tmp_path / "clip.mp4", video, 8.0)
    choose(page, "inpainting")
    page.get_by_label("Clip").set_input_files(tmp_path / "clip.mp4")
    page.locator(".painter canvas").wait_for()
    look = "canvas => [canvas.width, canvas.height, canvas.getContext('2d').getImageData(5, 5, 1, 1).data[0]]"
    width, height, level = page.locator(".painter canvas").evaluate(look)
    assert (width, height) == (64, 48) and level > 150


def test_a_result_opens_the_next_job(page, client):
    page.get_by_label("Prompt", exact=True).fill("one")
    first = submit(page, client)
    page.wait_for_selector(f"{HISTORY} .results img")
    choose(page, "image_to_video")
    page.get_by_role("button", name="Use").click()
    page.wait_for_selector(".drop img")
    page.get_by_label("Prompt", exact=True).fill("two")
    asked = submit(page, client)["request"]
    store, upload = client.service.store, client.service.store.upload(asked["clip"])
    theirs = Image.open(store.folder / upload.file).convert("RGB")
    ours = Image.open(io.BytesIO(client.get(first["files"][0]["url"]).content)).convert("RGB")
    np.testing.assert_array_equal(np.asarray(theirs), np.asarray(ours))


def test_same_again_and_new_seed(page, client):
    page.get_by_label("Prompt", exact=True).fill("again")
    first = submit(page, client)
    page.get_by_role("button", name="Same again").click()
    page.locator(HISTORY).nth(1).wait_for()
    page.get_by_role("button", name="New seed").last.click()
    page.locator(HISTORY).nth(2).wait_for()
    other, same, _ = client.get("/v1/jobs").json()["data"]
    assert same["seed"] == first["seed"] != other["seed"]
    client.until(same["id"])
    files = [client.get(f"/v1/jobs/{job}/content").content for job in (same["id"], first["id"])]
    assert files[0] == files[1]


def test_a_story_becomes_scenes(page, client):
    choose(page, "storyboard")
    page.get_by_text("From plain text").click()
    page.get_by_label("Story").fill("a door\n\n a hall ")
    page.get_by_role("button", name="Read as scenes").click()
    scene = page.locator(".items > li").nth(1)
    scene.get_by_label("Seconds").fill("3")
    scene.get_by_label("Transition").select_option("continue")
    page.get_by_role("button", name="Up").nth(1).click()
    asked = submit(page, client)["request"]
    assert asked["scenes"] == [{"prompt": "a hall", "seconds": 3, "transition": "continue"}, {"prompt": "a door"}]


def test_texts_of_a_long_film_have_their_times(page, client):
    choose(page, "long")
    page.get_by_label("Seconds", exact=True).fill("12")
    page.get_by_label("Prompt", exact=True).fill("morning")
    page.get_by_role("button", name="Add a text").click()
    page.get_by_label("Prompt", exact=True).nth(1).fill("night")
    shown = page.get_by_role("img", name="from second 0: morning; from second 5: night")
    assert shown.count() == 1
    page.get_by_label("Camera").select_option("pan left")
    asked = submit(page, client)["request"]
    assert asked == {"task": "long", "prompt": ["morning", "5: night"], "seconds": 12, "camera": "pan left"}


def test_a_chain_lists_its_jobs(page, client):
    choose(page, "chain")
    page.get_by_label("Prompt", exact=True).fill("a hall")
    page.get_by_role("button", name="Add a job").click()
    page.locator(".items > li").nth(1).get_by_label("Job").select_option("stylization")
    asked = submit(page, client)["request"]
    assert asked["jobs"] == [{"task": "text_to_video", "prompt": "a hall"}, {"task": "stylization"}]


def test_refusals_are_read_aloud_and_nothing_is_lost(page, client):
    page.get_by_label("Prompt", exact=True).fill("keep me")
    page.get_by_text("Sampling settings").click()
    page.get_by_label("Seed").fill("-1")
    page.click("#form button.main")
    page.locator(PROBLEM, has_text="seed").wait_for()
    assert page.get_by_label("Prompt", exact=True).input_value() == "keep me"
    assert page.locator(HISTORY).count() == 0


def test_every_control_has_a_name_and_every_task_a_form(page, client):
    for task in page.eval_on_selector_all("#task option", "all => all.map(one => one.value)"):
        choose(page, task)
        unnamed = page.eval_on_selector_all(
            "main input, main select, main textarea",
            "all => all.filter(one => !one.labels.length).map(one => one.outerHTML)",
        )
        assert not unnamed, (task, unnamed)


def test_nothing_is_wider_than_a_phone(page):
    page.set_viewport_size({"width": 390, "height": 844})
    for task in page.eval_on_selector_all("#task option", "all => all.map(one => one.value)"):
        choose(page, task)
        page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") == 390, task


def test_a_key_is_asked_for(browser, tmp_path):
    with served(tmp_path / "store", StudioStandIn(), Keys({"me": "secret" * 4}), ready=False) as client:
        page = browser.new_page()
        page.goto(str(client.base_url))
        page.get_by_label("API key").fill("secret" * 4)
        page.get_by_role("button", name="Continue").click()
        page.wait_for_selector("#form button.main")
        page.close()
