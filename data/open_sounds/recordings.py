"""The recordings of each package: where they lie, what is said or heard, and their licence."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Iterator

Roots = dict[str, pathlib.Path]  # folders of the unpacked packages by name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
    """A sound file of an unpacked package.

    Attributes:
      name: unique in its collection.
      text: what is said, or a label; '' where the package gives none.
      family: recordings of one family (takes of one sound, say) share their split; '' where a
        recording stands alone.
    """

    name: str
    path: pathlib.Path
    text: str = ""
    family: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collection:
    """Recordings of one package that are alike: one voice, or one kind of sound.

    Attributes:
      kind: 'speech', 'music' or 'effects'.
      find: yields the recordings.
      further_packages: what `find` needs beside `package`.
      licence: SPDX identifier, or `LicenseRef-` and a name, of the sounds as the package's
        copyright file states it.
      minutes: recordings are taken until they last that long.
      recording_seconds: most that is used of one recording, as excerpts spread over it evenly.
      held_out_every: of so many families of recordings one is for test and one for validation.
    """

    name: str
    kind: str
    package: str
    licence: str
    find: Callable[[Roots], Iterator[Recording]]
    further_packages: tuple[str, ...] = ()
    minutes: float = math.inf
    recording_seconds: float = math.inf
    held_out_every: int = 20


def _words(stem: str) -> str:
    return re.sub(r"[-_\s]+", " ", stem).strip()


# ------------------------------------------------------------------------------ Fish Fillets

_FILLETS = "usr/share/games/fillets-ng"
_DIALOGUE = re.compile(r'dialogId\("([^"]+)",[^\n]*\)\s*dialogStr\("((?:[^"\\]|\\.)*)"\)')
# Levels whose sounds for all languages are voices or melodies; those of other levels are effects.
_NO_EFFECTS = {"elk", "warcraft", "music", "cancan"}


def _fillets_dutch(roots: Roots) -> Iterator[Recording]:
    said: dict[str, str] = {}
    for script in sorted((roots["fillets-ng-data"] / _FILLETS / "script").rglob("*dialogs_nl.lua")):
        said.update(_DIALOGUE.findall(script.read_text(encoding="utf-8")))
    folder = roots["fillets-ng-data-nl"] / _FILLETS / "sound"
    for path in sorted(folder.rglob("*.ogg")):
        text = re.sub(r"\\(.)", r"\1", said.get(path.stem, ""))
        yield Recording(name=_inner_name(path, folder), path=path, text=text)


def _fillets_music(roots: Roots) -> Iterator[Recording]:
    for path in sorted((roots["fillets-ng-data"] / _FILLETS / "music").glob("*.ogg")):
        yield Recording(name=path.stem, path=path)


def _fillets_effects(roots: Roots) -> Iterator[Recording]:
    folder = roots["fillets-ng-data"] / _FILLETS / "sound"
    for path in sorted(folder.rglob("*.ogg")):
        level = path.relative_to(folder).parts[0]
        if level not in _NO_EFFECTS and not path.stem.endswith("music"):
            # Copies of one sound lie in several levels under one name; numbers count its takes.
            family = path.stem.rstrip("0123456789")
            yield Recording(name=_inner_name(path, folder), path=path, family=family)


def _inner_name(path: pathlib.Path, folder: pathlib.Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


# ------------------------------------------------------------------------- voices of other kinds


def _festvox_russian(roots: Roots) -> Iterator[Recording]:
    folder = roots["festvox-ru"] / "usr/share/festival/voices/russian/msu_ru_nsh_clunits"
    prompts = (folder / "etc/txt.done.data").read_text(encoding="utf-8")
    for name, text in re.findall(r'^\( (\S+) "(.*)" \)', prompts, re.MULTILINE):
        # A plus sign marks the stressed vowel.
        yield Recording(name=name, path=folder / f"wav/{name}.wav", text=text.replace("+", ""))


def _asterisk(roots: Roots) -> Iterator[Recording]:
    folder = roots["asterisk-core-sounds-en-g722"] / "usr/share/asterisk/sounds"
    for path in sorted(folder.rglob("*.g722")):
        yield Recording(name=_inner_name(path, folder), path=path)


# ----------------------------------------------------------------------------------- Tux Paint

_STAMPS = "usr/share/tuxpaint/stamps"


def _tuxpaint_captions(language: str) -> Callable[[Roots], Iterator[Recording]]:
    ending = "_desc" if language == "en" else f"_desc_{language}"

    def find(roots: Roots) -> Iterator[Recording]:
        folder = roots["tuxpaint-stamps-default"] / _STAMPS
        for path in sorted(folder.rglob(f"*{ending}.ogg")):
            name = _inner_name(path, folder).removesuffix(ending)
            yield Recording(name=name, path=path, text=_stamp_text(folder / name, language))

    return find


def _tuxpaint_effects(roots: Roots) -> Iterator[Recording]:
    folder = roots["tuxpaint-stamps-default"] / _STAMPS
    for path in sorted(folder.rglob("*.ogg")):
        name = _inner_name(path, folder)
        # Symbols are letters and numbers, which are spoken.
        if "_desc" not in path.stem and not name.startswith("symbols/"):
            yield Recording(name=name, path=path, text=_stamp_text(folder / name, "en"))


def _stamp_text(stamp: pathlib.Path, language: str) -> str:
    """The stamp's description: a line `<language>.utf8=...`, or the first line in English."""
    file = stamp.with_name(stamp.name + ".txt")
    if not file.exists():
        return _words(stamp.name) if language == "en" else ""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    if language == "en":
        return lines[0].strip()
    found = (line.partition("=")[2] for line in lines if line.startswith(f"{language}.utf8="))
    return next(found, "").strip()


# --------------------------------------------------------------------------- music and samples


def _wesnoth_music(roots: Roots) -> Iterator[Recording]:
    folder = roots["wesnoth-1.16-music"] / "usr/share/games/wesnoth/1.16/data/core/music"
    for path in sorted(folder.glob("*.ogg")):
        yield Recording(name=path.stem, path=path, text=_words(path.stem), family=path.stem.removesuffix("-old"))


def _sonic_pi(*prefixes: str) -> Callable[[Roots], Iterator[Recording]]:
    def find(roots: Roots) -> Iterator[Recording]:
        folder = roots["sonic-pi-samples"] / "usr/share/sonic-pi/samples"
        for path in sorted(folder.glob("*.flac")):
            if path.stem.partition("_")[0] in prefixes:
                yield Recording(name=path.stem, path=path, text=_words(path.stem))

    return find


# Parts of the game whose sounds the copyright file puts under one licence.
_MINETEST_MODS = ("default", "env_sounds", "fire")


def _minetest(roots: Roots) -> Iterator[Recording]:
    folder = roots["minetest-data"] / "usr/share/games/minetest/games/minetest_game/mods"
    for mod in _MINETEST_MODS:
        for path in sorted((folder / mod / "sounds").glob("*.ogg")):
            sound = path.stem.rstrip("0123456789").rstrip(".")  # `name.2.ogg` is its second take
            yield Recording(
                name=path.stem,
                path=path,
                family=sound,
                text=_words(sound.removeprefix("default").removeprefix("env_sounds")),
            )


_GPL2, _GPL2_LATER = "GPL-2.0-only", "GPL-2.0-or-later"
_CAPTION_MINUTES = {"fr": 8, "es": 8, "en": 8, "be": 4, "bg": 4, "ca": 4, "da": 4, "el": 4, "ro": 4, "ru": 4}
_FEW = 8  # `held_out_every` of collections of some minutes

COLLECTIONS: tuple[Collection, ...] = (
    Collection(
        name="fillets-nl",
        kind="speech",
        package="fillets-ng-data-nl",
        licence=_GPL2,
        further_packages=("fillets-ng-data",),
        find=_fillets_dutch,
        minutes=35,
    ),
    Collection(
        name="festvox-ru",
        kind="speech",
        package="festvox-ru",
        licence="LicenseRef-festvox-ru",
        find=_festvox_russian,
        minutes=20,
    ),
    Collection(
        name="asterisk-en",
        kind="speech",
        package="asterisk-core-sounds-en-g722",
        licence="CC-BY-SA-3.0",
        find=_asterisk,
        minutes=20,
    ),
    *(
        Collection(
            name=f"tuxpaint-{language}",
            kind="speech",
            package="tuxpaint-stamps-default",
            licence=_GPL2_LATER,
            find=_tuxpaint_captions(language),
            minutes=minutes,
        )
        for language, minutes in _CAPTION_MINUTES.items()
    ),
    Collection(
        name="wesnoth",
        kind="music",
        package="wesnoth-1.16-music",
        licence=_GPL2_LATER,
        find=_wesnoth_music,
        recording_seconds=80,
    ),
    Collection(
        name="fillets-music",
        kind="music",
        package="fillets-ng-data",
        licence=_GPL2,
        find=_fillets_music,
        recording_seconds=60,
    ),
    Collection(
        name="sonic-pi-music",
        kind="music",
        package="sonic-pi-samples",
        licence="CC0-1.0",
        find=_sonic_pi("ambi", "bass", "guit", "loop"),
        held_out_every=_FEW,
    ),
    Collection(
        name="sonic-pi-effects",
        kind="effects",
        package="sonic-pi-samples",
        licence="CC0-1.0",
        held_out_every=_FEW,
        find=_sonic_pi("bd", "drum", "elec", "glitch", "mehackit", "misc", "perc", "sn", "tabla", "vinyl"),
    ),
    Collection(
        name="tuxpaint-effects",
        kind="effects",
        package="tuxpaint-stamps-default",
        licence=_GPL2_LATER,
        find=_tuxpaint_effects,
        held_out_every=_FEW,
    ),
    Collection(
        name="fillets-effects",
        kind="effects",
        package="fillets-ng-data",
        licence=_GPL2,
        find=_fillets_effects,
        held_out_every=_FEW,
    ),
    Collection(
        name="minetest-effects",
        kind="effects",
        package="minetest-data",
        licence="CC-BY-SA-3.0",
        find=_minetest,
        held_out_every=_FEW,
    ),
)
