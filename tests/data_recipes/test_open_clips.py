"""The Open-Clips recipe: cutting of films, moving garments, packages, and a small build."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import pathlib
import shutil
import subprocess
import sys
import types

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from poet import media
from poet.spec import ClipSpec

FOLDER = pathlib.Path(__file__).parents[2] / "data" / "open_clips"
FREE_LICENCES = {
    "MIT",
    "GPL-2.0-only",
    "GPL-2.0-or-later",
    "GPL-3.0-or-later",
    "CC-BY-2.5",
    "CC-BY-SA-3.0",
    "CC-BY-SA-4.0",
}


@functools.cache
def recipe(name: str) -> types.ModuleType:
    full_name = f"open_clips_{name}"  # as the builder names them, so that both share one module
    spec = importlib.util.spec_from_file_location(full_name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[full_name] = module
    spec.loader.exec_module(module)
    return module


def small_film(**fields):
    film = dict(
        package="fake-films",
        file="usr/share/film.mp4",
        licence="MIT",
        caption="a square",
        aspect=4 / 3,
        seconds=4.0,
        crops=3,
    )
    return recipe("films").Film(**(film | fields))


def write_film(path: pathlib.Path, moving: slice, frames: int = 33) -> None:
    """A grey square on stripes, 96x128 at 8 frames a second; it moves in the frames `moving`."""
    video = np.zeros((frames, 96, 128, 3), np.uint8)
    video[:, :, ::16] = 90
    path.parent.mkdir(parents=True, exist_ok=True)
    places = np.full(frames, moving.start)
    places[moving] = np.arange(frames)[moving]
    places[moving.stop :] = moving.stop
    for frame, place in zip(video, places):
        frame[30:70, 2 * place : 2 * place + 60] = 200
    media.write_mp4(path, video, 8.0)


# --- films


def test_films_are_free_distinct_and_long_enough_for_a_clip():
    films = recipe("films")
    assert {film.licence for film in films.FILMS} <= FREE_LICENCES
    assert len({film.name for film in films.FILMS}) == len(films.FILMS)
    for film in films.FILMS:
        assert int(film.seconds * film.rate_hz) >= films.CLIP_FRAMES, film.name


def test_films_of_transfer_tests_are_not_trained_on():
    names = " ".join(film.file for film in recipe("films").FILMS).lower()
    assert not any(name in names for name in ("carphone", "bikes", "bigbuckbunny"))


@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=25, deadline=None)
def test_resizing_takes_the_mean_of_the_pixels_whose_centres_are_covered(data):
    height, width, size = (data.draw(st.integers(*r)) for r in ((8, 40), (8, 40), (2, 8)))
    side = data.draw(st.integers(size, min(height, width)))
    left, top = (data.draw(st.integers(0, limit - side)) for limit in (width, height))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    video = rng.integers(0, 256, (2, height, width, 3), np.uint8)
    # In units of 1 / (2 size) pixels: the centre of pixel h lies between edges m and m + 1.
    centres, edges = (2 * np.arange(side) + 1) * size, 2 * side * np.arange(size + 1)
    hypothesis.assume(not np.isin(edges, centres).any())  # which side takes it is not defined
    covered = (edges[:-1, None] < centres) & (centres <= edges[1:, None])
    weights = covered / covered.sum(1, keepdims=True)
    crop = video[:, top : top + side, left : left + side].astype(float)
    mean = np.einsum("mh,nw,thwc->tmnc", weights, weights, crop, optimize=True)
    resized = recipe("films").mean_resize(video, (left, top, left + side, top + side), size)
    assert resized.shape == (2, size, size, 3) and resized.dtype == np.uint8
    assert np.abs(resized - mean).max() <= 1.01  # columns and rows are rounded one after the other


def test_every_place_gives_the_central_square_and_random_ones(tmp_path):
    film, films = small_film(), recipe("films")
    write_film(tmp_path / "film.mp4", slice(0, 33))
    clips = dict(films.film_clips(film, tmp_path / "film.mp4", 32, seed=0))
    assert list(clips) == [f"fake-films/film/{start:04d}-{crop}" for start in (0, 8) for crop in range(3)]
    whole = media.read_clip(tmp_path / "film.mp4", ClipSpec(frames=32, height=96, width=96)).video
    for start in (0, 8):
        central = clips[f"fake-films/film/{start:04d}-0"].astype(float)
        reference = whole[start : start + 17].reshape(17, 32, 3, 32, 3, 3).mean((2, 4))
        assert central.shape == (17, 32, 32, 3)
        assert np.abs(central - reference).mean() < 4
    random = clips["fake-films/film/0000-1"], clips["fake-films/film/0000-2"]
    assert np.abs(random[0].astype(float) - random[1]).mean() > 4
    again = dict(films.film_clips(film, tmp_path / "film.mp4", 32, seed=0))
    other = dict(films.film_clips(film, tmp_path / "film.mp4", 32, seed=1))
    assert all((clips[key] == again[key]).all() for key in clips)
    assert any((clips[key] != other[key]).any() for key in clips)


def test_stills_are_left_out(tmp_path):
    film = small_film(seconds=6.0, crops=1)
    write_film(tmp_path / "film.mp4", slice(0, 12), frames=49)
    keys = [key for key, _ in recipe("films").film_clips(film, tmp_path / "film.mp4", 32, 0)]
    assert keys == ["fake-films/film/0000-0", "fake-films/film/0008-0"]


def test_a_surface_of_one_colour_is_not_lively_even_if_it_flickers():
    flicker = np.zeros((17, 8, 8, 3), np.uint8)
    flicker[::2] = 200
    noise = np.random.default_rng(0).integers(0, 256, (17, 8, 8, 3), np.uint8)
    assert not recipe("films").is_lively(flicker)
    assert not recipe("films").is_lively(np.repeat(noise[:1], 17, axis=0))
    assert recipe("films").is_lively(noise)


def test_a_film_shorter_than_stated_is_an_error(tmp_path):
    write_film(tmp_path / "film.mp4", slice(0, 20), frames=20)
    with pytest.raises(media.MediaError, match="too short"):
        list(recipe("films").film_clips(small_film(), tmp_path / "film.mp4", 32, 0))


# --- garments


def garments(count: int = 20):
    """Images with a bright square, and labels that repeat 0..9."""
    images = np.zeros((count, 28, 28), np.uint8)
    images[:, 4:24, 4:24] = 220
    return images, np.arange(count, dtype=np.uint8) % 10


@hypothesis.given(start=st.floats(0, 1), speed=st.floats(-3, 3), span=st.floats(0.5, 20), frames=st.integers(1, 40))
def test_a_bouncing_point_is_reflected_at_both_ends(start, speed, span, frames):
    place, places = start * span, []
    step = speed
    for _ in range(frames):
        places.append(place)
        place += step
        while not 0 <= place <= span:
            place = -place if place < 0 else 2 * span - place
            step = -step
    got = recipe("garments").bouncing(start * span, speed, span, frames)
    np.testing.assert_allclose(got, places, atol=1e-9 * span * frames + 1e-9)


@pytest.mark.parametrize("size", [16, 64])
def test_garments_move_over_a_still_ground_and_are_named(size):
    module = recipe("garments")
    for number in range(6):
        video, text = module.garment_clip(*garments(), size, (0, number))
        assert video.shape == (17, size, size, 3) and video.dtype == np.uint8
        words, _, ground = text.partition(" drift over a")
        assert 2 <= sum(words.count(kind) for kind in ("a ", "an ")) and ground
        assert any(kind in words for kind in module.KINDS)
        changes = (np.abs(np.diff(video.astype(int), axis=0)) > 0).any((0, 3))
        assert 0 < changes.mean()
        again, same_text = module.garment_clip(*garments(), size, (0, number))
        assert (video == again).all() and text == same_text
    assert (module.garment_clip(*garments(), size, (1, 0))[0] != video).any()


def test_a_black_image_leaves_nothing_but_the_ground():
    images, labels = garments()
    video, _ = recipe("garments").garment_clip(np.zeros_like(images), labels, 64, (0, 0))
    assert (video == video[0]).all()


@hypothesis.given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple))
def test_idx_files_round_trip(tmp_path_factory, shape):
    values = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    path = tmp_path_factory.mktemp("idx") / "file.gz"
    write_idx(path, values)
    np.testing.assert_array_equal(recipe("garments").read_idx(path), values)


@pytest.mark.parametrize("data", [b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", b"\0\0\x08\x01\0\0\0\x05ab"])
def test_other_idx_files_are_refused(tmp_path, data):
    (tmp_path / "file.gz").write_bytes(gzip.compress(data))
    with pytest.raises(ValueError, match="file.gz"):
        recipe("garments").read_idx(tmp_path / "file.gz")


def write_idx(path: pathlib.Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(head + values.tobytes()))


# --- packages


def write_package(root: pathlib.Path, name: str, target: pathlib.Path) -> None:
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        f"Package: {name}\nVersion: 1.2-3\nArchitecture: all\nMaintainer: nobody\nDescription: x\n"
    )
    target.mkdir(parents=True, exist_ok=True)
    file = target / f"{name}_1.2-3_all.deb"
    subprocess.run(["dpkg-deb", "--build", str(root), str(file)], check=True, capture_output=True)


needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is missing")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "apt-get is not installed.*put the .deb files of no-such"),
        ("echo 'E: Unable to locate'; exit 100", "Unable to locate(.|\n)*Run apt-get update"),
        ("exit 0", "cannot download no-such"),
    ],
)
def test_a_package_that_cannot_be_had_is_named(tmp_path, monkeypatch, script, message):
    tools = tmp_path / "bin"
    tools.mkdir()
    if script:
        (tools / "apt-get").write_text(f"#!/bin/sh\n{script}\n")
        (tools / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    packages = recipe("packages")
    with pytest.raises(packages.PackageError, match=message):
        packages.fetch(["no-such"], tmp_path / "kept")
    assert not list((tmp_path / "kept").iterdir())


@needs_dpkg
def test_a_damaged_package_is_named(tmp_path):
    packages = recipe("packages")
    (tmp_path / "some_1_all.deb").write_bytes(b"nothing")
    with pytest.raises(packages.PackageError, match="some_1_all.deb is damaged"):
        packages.unpack("some", tmp_path, tmp_path / "out")


@needs_dpkg
def test_a_small_build_is_read_by_the_project(tmp_path, monkeypatch, capsys):
    from poet.store.raw import RawClip
    from poet.store.sources import open_source

    module = recipe("open_clips_dataset_builder")
    films, drawing = module.load_sibling("films"), module.load_sibling("garments")
    film = small_film(crops=2)
    monkeypatch.setattr(films, "FILMS", (film,))
    write_film(tmp_path / "films" / film.file, slice(0, 33))
    write_package(tmp_path / "films", film.package, tmp_path / "kept")
    images, labels = garments()
    for file, values in ((drawing.IMAGES_FILE, images), (drawing.LABELS_FILE, labels)):
        write_idx(tmp_path / "garments" / file, values)
    write_package(tmp_path / "garments", module.GARMENTS_PACKAGE, tmp_path / "kept")
    builder = module.Builder(
        data_dir=str(tmp_path / "data"), size=16, garment_clips=3, packages_dir=str(tmp_path / "kept")
    )
    builder.download_and_prepare()
    source = open_source(str(builder.data_path), "train", ClipSpec(height=16, width=16))
    clips = {clip.key: clip for clip in source.read(0, len(source))}
    assert all(isinstance(clip, RawClip) for clip in clips.values())
    assert set(clips) == {f"dataset-fashion-mnist/{i:05d}" for i in range(3)} | {
        f"fake-films/film/{start:04d}-{crop}" for start in (0, 8) for crop in range(2)
    }
    expected = dict(films.film_clips(film, tmp_path / "films" / film.file, 16, 0))
    assert all((clips[key].video == video).all() for key, video in expected.items())
    assert clips["fake-films/film/0000-0"].caption == "a square"
    examples = builder.as_dataset(split="train").as_numpy_iterator()
    found = {(e["source"].decode(), e["licence"].decode()) for e in examples}
    assert found == {("fake-films 1.2-3", "MIT"), ("dataset-fashion-mnist 1.2-3", "MIT")}
    monkeypatch.setitem(sys.modules, "open_clips_dataset_builder", module)
    build, same = recipe("build"), [f"--data_dir={tmp_path / 'data'}", "--size=16"]
    build.build(build.parse_arguments([*same, "--garment_clips=3"]))
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(ValueError, match="other settings: .*--overwrite"):
        build.build(build.parse_arguments([*same, "--garment_clips=4"]))
    # Unpacked files are not kept beside the packages.
    assert all(p.suffix == ".deb" for p in (tmp_path / "kept").iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"size": 20}, "size is 20"), ({"size": 8}, "size is 8"), ({"garment_clips": -1}, "negative")],
)
def test_impossible_settings_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        recipe("open_clips_dataset_builder").Builder(data_dir=str(tmp_path), **settings)
