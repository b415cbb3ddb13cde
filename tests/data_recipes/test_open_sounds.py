"""The Open-Sounds recipe: reading of packages, splits, cutting and joining, and small builds."""

from __future__ import annotations

import functools
import importlib.util
import pathlib
import shutil
import subprocess
import sys
import types
from collections import Counter

import av
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from poet import media

FOLDER = pathlib.Path(__file__).parents[2] / "data" / "open_sounds"
FREE = {"CC-BY-SA-3.0", "CC0-1.0", "GPL-2.0-only", "GPL-2.0-or-later", "LicenseRef-festvox-ru"}
RATE_HZ = 16_000

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is missing")


@functools.cache
def recipe(name: str) -> types.ModuleType:
    full_name = f"open_sounds_{name}"  # as the builder names them, so that both share one module
    spec = importlib.util.spec_from_file_location(full_name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[full_name] = module
    spec.loader.exec_module(module)
    return module


def tone(seconds: float, hz: float = 440.0, rate_hz: int = RATE_HZ, level: float = 0.3):
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    return np.round(32767 * level * np.sin(2 * np.pi * hz * times)).astype(np.int16)


def write_sound(path: pathlib.Path, seconds: float, rate_hz: int = RATE_HZ, **tone_settings):
    """A tone as wav, whatever the name says: FFmpeg looks at the content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = path.with_suffix(".wav")
    media.write_wav(wave, tone(seconds, rate_hz=rate_hz, **tone_settings), rate_hz)
    wave.rename(path)


def write_g722(path: pathlib.Path, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="g722") as container:
        stream = container.add_stream("g722", rate=RATE_HZ)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(tone(seconds)[None], format="s16", layout="mono")
        frame.sample_rate = RATE_HZ
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)


def write_package(root: pathlib.Path, name: str, target: pathlib.Path) -> None:
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        f"Package: {name}\nVersion: 1.2-3\nArchitecture: all\nMaintainer: nobody\nDescription: x\n"
    )
    target.mkdir(parents=True, exist_ok=True)
    file = target / f"{name}_1.2-3_all.deb"
    subprocess.run(["dpkg-deb", "--build", str(root), str(file)], check=True, capture_output=True)


# --- what the packages hold


def small_packages(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Every package in miniature, unpacked: three recordings or more of each collection."""
    roots = {name: folder / name for c in recipe("recordings").COLLECTIONS for name in (c.package, *c.further_packages)}
    fillets, dutch = (roots[name] / "usr/share/games/fillets-ng" for name in ("fillets-ng-data", "fillets-ng-data-nl"))
    for number in range(4):
        write_sound(dutch / f"sound/city/nl/vit-{number}.ogg", 2.5 + number, rate_hz=22_050)
        write_sound(fillets / f"music/rybky{number}.ogg", 7.0 + number, rate_hz=22_050)
        write_sound(fillets / f"sound/drop{'abcd'[number]}/en/tap{'abcd'[number]}.ogg", 0.7)
    write_sound(fillets / "sound/elk/en/voice.ogg", 3.0)
    (script := fillets / "script/city/dialogs_nl.lua").parent.mkdir(parents=True)
    script.write_text(
        'dialogId("vit-0", "font_big", "Hi, \\"you\\"!")\n'
        'dialogStr("Dag, \\"jij\\"!")\n\n'
        'dialogId("vit-1", "font_big", "Two")\ndialogStr("Twee")\n',
        "utf-8",
    )
    voice = roots["festvox-ru"] / "usr/share/festival/voices/russian/msu_ru_nsh_clunits"
    for number in range(3):
        write_sound(voice / f"wav/ru_{number}.wav", 3.0 + 4 * number)
    (voice / "etc").mkdir()
    lines = (f'( ru_{number} "Вол+осы {number}, да." )\n' for number in range(3))
    (voice / "etc/txt.done.data").write_text("".join(lines), "utf-8")
    for number in range(3):
        write_g722(roots["asterisk-core-sounds-en-g722"] / f"usr/share/asterisk/sounds/en/vm-{number}.g722", 2.5)
        write_sound(
            roots["wesnoth-1.16-music"] / f"usr/share/games/wesnoth/1.16/data/core/music/song_{'abc'[number]}.ogg",
            90.0,
            rate_hz=8000,
            hz=200.0 + 100 * number,
        )
        samples = roots["sonic-pi-samples"] / "usr/share/sonic-pi/samples"
        write_sound(samples / f"loop_{'abc'[number]}.flac", 2.0)
        write_sound(samples / f"perc_{'abc'[number]}.flac", 0.5)
    small_stamps(roots["tuxpaint-stamps-default"] / "usr/share/tuxpaint/stamps")
    small_minetest(roots["minetest-data"] / "usr/share/games/minetest/games/minetest_game/mods")
    return roots


def small_stamps(stamps: pathlib.Path) -> None:
    for stamp in ("birds/hen", "birds/duck", "cow"):
        languages = [f"_desc_{code}" for code in "fr es be bg ca da el ro ru".split()]
        for ending in ["", "_desc", *languages]:
            write_sound(stamps / f"animals/{stamp}{ending}.ogg", 0.9, rate_hz=11_025)
        (stamps / f"animals/{stamp}.txt").write_text(
            f"A {stamp}.\nfr.utf8=Voici {stamp}.\nes.utf8=¡{stamp}!\n", "utf-8"
        )
    write_sound(stamps / "symbols/math/7_fr.ogg", 0.9)


def small_minetest(mods: pathlib.Path) -> None:
    for name in (
        "default/sounds/default_dig.1",
        "default/sounds/default_dig.2",
        "default/sounds/default_step",
        "fire/sounds/fire_large",
        "doors/sounds/door",
    ):
        write_sound(mods / f"{name}.ogg", 2.2)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    return small_packages(tmp_path_factory.mktemp("packages"))


def found(roots, name: str) -> dict:
    collection = next(c for c in recipe("recordings").COLLECTIONS if c.name == name)
    return {recording.name: recording for recording in collection.find(roots)}


def test_collections_are_free_and_of_a_known_kind():
    collections = recipe("recordings").COLLECTIONS
    assert {c.licence for c in collections} <= FREE
    assert {c.kind for c in collections} == {"speech", "music", "effects"}
    assert len({c.name for c in collections}) == len(collections)


def test_texts_are_those_of_the_packages(roots):
    assert [r.text for r in found(roots, "fillets-nl").values()] == ['Dag, "jij"!', "Twee", "", ""]
    assert found(roots, "festvox-ru")["ru_1"].text == "Волосы 1, да."
    assert found(roots, "tuxpaint-fr")["animals/birds/hen"].text == "Voici birds/hen."
    assert found(roots, "tuxpaint-en")["animals/cow"].text == "A cow."
    assert found(roots, "tuxpaint-ro")["animals/cow"].text == ""
    assert found(roots, "tuxpaint-effects")["animals/cow"].text == "A cow."
    assert found(roots, "wesnoth")["song_a"].text == "song a"
    assert found(roots, "minetest-effects")["default_dig.2"].text == "dig"


def test_voices_are_no_effects_and_other_licences_are_left_out(roots):
    assert set(found(roots, "tuxpaint-effects")) == {"animals/birds/hen", "animals/birds/duck", "animals/cow"}
    assert set(found(roots, "fillets-effects")) == {f"drop{x}/en/tap{x}" for x in "abcd"}
    assert set(found(roots, "minetest-effects")) == {"default_dig.1", "default_dig.2", "default_step", "fire_large"}
    assert set(found(roots, "sonic-pi-music")) == {"loop_a", "loop_b", "loop_c"}


# --- choice and splits


def collection(**fields):
    fields = dict(name="tones", kind="effects", package="p", licence="MIT", find=None) | fields
    return recipe("recordings").Collection(**fields)


def recordings(names, family=lambda name: ""):
    return [recipe("recordings").Recording(name=name, path=pathlib.Path(name), family=family(name)) for name in names]


@hypothesis.given(
    count=st.integers(3, 90), every=st.integers(3, 20), seed=st.integers(0, 9), families=st.integers(3, 40)
)
def test_families_stay_together_and_every_split_gets_its_share(count, every, seed, families):
    splits = recipe("splits")
    names = [f"r{number}" for number in range(count)]
    family = {name: f"f{number % families}" for number, name in enumerate(names)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "sound_seconds", lambda path: 1.0)
        chosen, other_order = (
            splits.choose(collection(held_out_every=every), recordings(order, family.get), seed, Counter())
            for order in (names, names[::-1])
        )
    where, reordered = (
        {r.name: split for split, found in splits.items() for r in found} for splits in (chosen, other_order)
    )
    assert set(where) == set(names) and where == reordered
    split_of_family = {family[name]: split for name, split in where.items()}
    assert all(split_of_family[family[name]] == split for name, split in where.items())
    shares, total = Counter(split_of_family.values()), len(split_of_family)
    assert shares["test"] == -(-total // every)
    assert shares["validation"] == -(-(total - 1) // every)


def test_choice_ends_when_the_minutes_are_full_and_skips_what_has_no_length(monkeypatch):
    splits, dropped = recipe("splits"), Counter()
    names = [f"r{number:02d}" for number in range(40)]
    broken = set(names[::4])
    monkeypatch.setattr(splits, "sound_seconds", lambda p: 0.0 if p.name in broken else 30.0)
    limited = collection(minutes=2.0, recording_seconds=10.0)
    chosen = splits.choose(limited, recordings(names), 0, dropped)
    taken = [r.name for split in chosen.values() for r in split]
    assert len(taken) == 12 and not set(taken) & broken  # 12 times 10 seconds
    assert 0 < dropped["unreadable"] <= len(broken)
    other = splits.choose(limited, recordings(names), 1, Counter())
    assert {r.name for r in other["test"]} != {r.name for r in chosen["test"]}


# --- excerpts


@hypothesis.given(length=st.integers(2 * RATE_HZ, 100 * RATE_HZ), most_s=st.sampled_from([None, 5, 10, 60]))
def test_cuts_lie_in_the_recording_do_not_overlap_and_use_what_they_may(length, most_s):
    most = length if most_s is None else most_s * RATE_HZ
    stretches = recipe("excerpts").cut(length, most)
    (size,) = {s.stop - s.start for s in stretches}
    assert 2 * RATE_HZ <= size <= 6 * RATE_HZ
    assert stretches[0].start == 0 and stretches[-1].stop <= length
    assert all(a.stop <= b.start for a, b in zip(stretches, stretches[1:]))
    used = size * len(stretches)
    if length <= most:
        assert length - used < len(stretches)  # of a whole recording only a remainder is lost
    else:
        assert used == most


def excerpts_of(folder: pathlib.Path, sounds: dict[str, np.ndarray], **settings):
    items, dropped = [], Counter()
    for name, samples in sounds.items():
        media.write_wav(folder / f"{name}.wav", samples, RATE_HZ)
        items.append(recipe("recordings").Recording(name=name, path=folder / f"{name}.wav", text=f"says {name}"))
    settings = {"most_seconds": float("inf"), "spoken": False, "workers": 1} | settings
    return list(recipe("excerpts").excerpts(items, dropped=dropped, **settings)), dropped


def test_short_recordings_are_joined_and_named(tmp_path):
    sounds = {"a": tone(0.8), "long": tone(3.0), "b": tone(0.7, 300), "c": tone(1.0, 200), "d": tone(0.25, 500)}
    found, dropped = excerpts_of(tmp_path, sounds)
    assert [e.key for e in found] == ["long", "a+2", "d"]
    _, joined, last = found
    gap = np.zeros(RATE_HZ // 10, np.int16)
    np.testing.assert_array_equal(joined.audio, np.concatenate([sounds["a"], gap, sounds["b"], gap, sounds["c"]]))
    assert joined.recordings == ("a", "b", "c") and joined.text == "says a says b says c"
    assert len(last.audio) == 2 * RATE_HZ and not last.audio[RATE_HZ // 4 :].any()
    np.testing.assert_array_equal(found[0].audio, sounds["long"])
    assert not dropped.total()


@pytest.mark.parametrize("spoken", [True, False])
def test_parts_of_a_spoken_line_have_no_transcript(tmp_path, spoken):
    sounds = {"line": tone(9.0), "whole": tone(4.0)}
    found, _ = excerpts_of(tmp_path, sounds, spoken=spoken)
    assert [e.key for e in found] == ["line/000", "line/001", "whole"]
    assert [e.text for e in found] == [*("" if spoken else "says line",) * 2, "says whole"]
    np.testing.assert_array_equal(np.concatenate([e.audio for e in found[:2]]), sounds["line"])


def test_silence_is_left_out_and_counted(tmp_path):
    edge = 2**0.5 * 10 ** (-50 / 20)  # amplitude of a sine whose root mean square is -50 dB
    sounds = {
        "silent": np.zeros(3 * RATE_HZ, np.int16),
        "short": np.zeros(RATE_HZ, np.int16),
        "below": tone(3.0, level=0.95 * edge),
        "above": tone(3.0, level=1.05 * edge),
        "half": np.concatenate([tone(5.0), np.zeros(5 * RATE_HZ, np.int16)]),
    }
    found, dropped = excerpts_of(tmp_path, sounds)
    assert [e.key for e in found] == ["above", "half/000"]
    assert dropped == {"silent": 4}


def test_clipped_sound_is_kept_as_it_is(tmp_path):
    square = np.where(tone(3.0) < 0, -32768, 32767).astype(np.int16)
    (found,), _ = excerpts_of(tmp_path, {"square": square})
    np.testing.assert_array_equal(found.audio, square)


def test_what_is_no_sound_is_counted(tmp_path):
    dropped, bad = Counter(), recipe("recordings").Recording(name="x", path=tmp_path / "x.ogg")
    bad.path.write_bytes(b"no sound at all" * 99)
    assert not list(recipe("excerpts").excerpts([bad], most_seconds=9.0, spoken=True, workers=2, dropped=dropped))
    assert dropped == {"unreadable": 1}


# --- builds


@pytest.fixture(scope="module")
def kept(roots, tmp_path_factory):
    """The folder of the packages in miniature; those of `roots` stay as they are."""
    folder, copies = tmp_path_factory.mktemp("kept"), tmp_path_factory.mktemp("copies")
    for name, root in roots.items():
        shutil.copytree(root, copies / name)
        write_package(copies / name, name, folder)
    return folder


def build_small(folder: pathlib.Path, kept: pathlib.Path, **settings):
    builder = recipe("open_sounds_dataset_builder").Builder(data_dir=str(folder), packages_dir=str(kept), **settings)
    builder.download_and_prepare()
    return builder


@needs_dpkg
def test_a_small_build_holds_every_kind_in_every_split_and_no_recording_twice(tmp_path, kept):
    builder = build_small(tmp_path / "one", kept)
    where: dict[tuple[str, str], str] = {}
    for split in ("train", "validation", "test"):
        kinds = set()
        for example in builder.as_dataset(split=split).as_numpy_iterator():
            audio, key = example["audio"], example["key"].decode()
            assert audio.dtype == np.int16 and 2 * RATE_HZ <= len(audio) <= 6 * RATE_HZ
            kinds.add(example["kind"].decode())
            for name in example["recordings"]:
                assert where.setdefault((key.partition("/")[0], name.decode()), split) == split
            check_origin(example, key)
        assert kinds == {"speech", "music", "effects"}
    assert {name for name, _ in where} == {c.name for c in recipe("recordings").COLLECTIONS}
    assert builder.info.metadata["sample_rate_hz"] == RATE_HZ
    # Unpacked files are not kept beside the packages.
    assert all(p.suffix == ".deb" for p in kept.iterdir())


ORIGINS = {  # of whole tones: pitch in Hz, sample rate of the file, source, licence
    "wesnoth/song_a": (200, 8000, "wesnoth-1.16-music 1.2-3", "GPL-2.0-or-later"),
    "asterisk-en/": (440, 16_000, "asterisk-core-sounds-en-g722 1.2-3", "CC-BY-SA-3.0"),
    "fillets-nl/": (440, 22_050, "fillets-ng-data-nl 1.2-3", "GPL-2.0-only"),
}


def check_origin(example, key: str) -> None:
    """Resampling keeps the pitch, and an excerpt says where it is from."""
    for start, (hz, rate_hz, source, licence) in ORIGINS.items():
        if key.startswith(start):
            spectrum = np.abs(np.fft.rfft(example["audio"].astype(float)))
            assert abs(np.argmax(spectrum) * RATE_HZ / len(example["audio"]) - hz) < 1.0
            assert example["recorded_rate_hz"] == rate_hz
            assert example["source"].decode() == source
            assert example["licence"].decode() == licence


@needs_dpkg
def test_the_set_follows_from_the_seed_and_not_from_the_number_of_workers(tmp_path, kept):
    without = [
        p
        for p in sorted({c.package for c in recipe("recordings").COLLECTIONS})
        if p not in ("fillets-ng-data", "sonic-pi-samples")
    ]
    sets = []
    for name, settings in {"one": {}, "two": {"workers": 2}, "seed": {"seed": 1}}.items():
        builder = build_small(tmp_path / name, kept, without=without, **settings)
        # Values in their order; protobuf fixes no order of the fields in a record's bytes.
        sets.append(
            {
                split: [
                    {field: np.asarray(value).tolist() for field, value in e.items()}
                    for e in builder.as_dataset(split=split).as_numpy_iterator()
                ]
                for split in builder.info.splits
            }
        )
    one, two, other_seed = sets
    assert all(one.values()) and one == two and one != other_seed


@needs_dpkg
def test_a_finished_set_is_not_built_twice(tmp_path, kept, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "open_sounds_dataset_builder", recipe("open_sounds_dataset_builder"))
    build = recipe("build")
    without = sorted({c.package for c in recipe("recordings").COLLECTIONS} - {"sonic-pi-samples"})
    arguments = [f"--data_dir={tmp_path}", f"--packages_dir={kept}", "--without", *without]
    build.build(build.parse_arguments(arguments))
    assert "left out: nothing" in capsys.readouterr().out
    build.build(build.parse_arguments(arguments))
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(ValueError, match="other settings: .*--overwrite"):
        build.build(build.parse_arguments([*arguments, "--seed=3"]))


def test_without_the_packages_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    builder = recipe("open_sounds_dataset_builder").Builder(data_dir=str(tmp_path / "data"))
    with pytest.raises(ValueError, match="put the .deb files of .*festvox-ru.* and build again"):
        builder.download_and_prepare()


@pytest.mark.parametrize(
    ("settings", "message"), [({"workers": 0}, "workers is 0"), ({"without": ["nothing"]}, "nothing; the packages are")]
)
def test_impossible_settings_are_refused(tmp_path, settings, message):
    builder = recipe("open_sounds_dataset_builder").Builder
    with pytest.raises(ValueError, match=message):
        builder(data_dir=str(tmp_path), **settings)
    with pytest.raises(ValueError, match="leave one of them in"):
        builder(data_dir=str(tmp_path), without=[c.package for c in recipe("recordings").COLLECTIONS])
