"""Storyboards: a film as a list of scenes, written as YAML or as plain lines.

    seed: 7
    sound: true
    scenes:
      - prompt: in a red hall the player walks forward
        seconds: 4
        camera: pan left
      - prompt: a demon comes closer
        transition: continue
        sound_prompt: loud shots

A plain text has a line for each `LINE_S` seconds; each continues the one before it, except after a line of dashes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poet.runs import assets
from poet.sampling.films import camera
from poet.spec import MOST_SEED, PromptSpec, Spec, UserError, foreign, from_dict, near_names, setting, to_dict

CUT, CONTINUE = "cut", "continue"
LINE_S = 5.0
MOST_SECONDS = 86_400


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene(Spec):
    """One scene.

    `camera` is a preset of `poet.sampling.films.camera`.  `transition`: 'cut' begins anew, 'continue' continues the
    last frames of the scene before.  `frame` and `clip` are opening files: a picture, or a video.
    `sound_prompt` is a separate text for the sound.  `seed`: -1 is that of the storyboard.
    """

    prompt: str = setting("", changes="nothing")
    seconds: float = setting(LINE_S, changes="nothing", above=0, at_most=MOST_SECONDS)
    camera: str = setting("", changes="nothing")
    transition: str = setting(CUT, changes="nothing", one_of=(CUT, CONTINUE))
    frame: str = setting("", changes="nothing")
    clip: str = setting("", changes="nothing")
    sound_prompt: str = setting("", changes="nothing")
    negative: str = setting("", changes="nothing")
    seed: int = setting(-1, changes="nothing", at_least=-1, at_most=MOST_SEED)

    def validate(self) -> None:
        camera.phrase(self.camera)
        given = [name for name in ("frame", "clip") if getattr(self, name)]
        self.require(len(given) < 2, "clip", "a scene opens with a frame or with a clip, not both")
        if self.transition == CONTINUE and given:
            self.require(
                False, given[0], "a scene that continues another opens with its end: use transition: cut, or drop this"
            )

    @classmethod
    def gin_name(cls) -> str:
        """Its name in messages."""
        return "scene"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Storyboard(Spec):
    """A film.

    `suffix` is added to every prompt; `negative` is the default of scenes without one.
    """

    scenes: tuple[Scene, ...] = setting(changes="nothing")
    seed: int = setting(0, changes="nothing", at_least=0, at_most=MOST_SEED)
    sound: bool = setting(False, changes="nothing")
    suffix: str = setting("", changes="nothing")
    negative: str = setting("", changes="nothing")

    def validate(self) -> None:
        self.require(bool(self.scenes), "scenes", "a storyboard has at least one scene")
        first = self.scenes[0]
        self.require(first.transition == CUT, "scenes", "the first scene cannot continue another: transition: cut")

    @classmethod
    def gin_name(cls) -> str:
        """Its name in messages."""
        return "storyboard"

    def prompt(self, scene: Scene, words: Mapping[str, str] | None = None) -> str:
        """The prompt for the model; `words` as of `camera.phrase`."""
        return PromptSpec(suffix=self.suffix).complete(scene.prompt, camera.phrase(scene.camera, words))

    def seed_of(self, scene: Scene) -> int:
        """The seed of a scene."""
        return self.seed if scene.seed < 0 else scene.seed


def read(path: str | Path) -> Storyboard:
    """The storyboard in a file: .yaml, .yml and .json hold fields, every other one plain lines.

    Files of scenes are searched beside it.

    Raises UserError, with the file and the scene, for an invalid one.
    """
    text, file = read_text(path, "storyboard"), _found(path)
    try:
        board = parse(text) if file.suffix.lower() in (".yaml", ".yml", ".json") else parse_lines(text)
    except UserError as error:
        raise UserError(f"storyboard {path}: {error}") from None
    return board.replace(scenes=tuple(_beside(scene, file.parent) for scene in board.scenes))


def read_text(path: str | Path, what: str) -> str:
    """A text that a user wrote, from the current folder or among the shipped ones.  UserError where there is none."""
    file = _found(path)
    try:
        if not file.is_file():
            raise UserError(f"{what} {path}: " + ("not a file" if file.exists() else "no such file"))
        return foreign.limited(file, foreign.WRITTEN).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what} {path}: cannot be read as UTF-8 text: {error}") from None


def _found(path: str | Path) -> Path:
    places = assets.places(Path(path).expanduser())
    return next((place for place in places if place.exists()), places[0])


def parse(text: str) -> Storyboard:
    """A storyboard in YAML.  Raises UserError for another text, unknown fields with near names."""
    values = foreign.parse_yaml(text)
    if not isinstance(values, dict) or not isinstance(values.get("scenes"), list):
        raise UserError("expected fields such as 'seed: 0', and 'scenes:' with a list of them")
    check_names(values, Storyboard, "it")
    scenes = tuple(_scene(number, value) for number, value in enumerate(values["scenes"], 1))
    return Storyboard(**{**values, "scenes": scenes})


def _scene(number: int, value: Any) -> Scene:
    if isinstance(value, str):
        value = {"prompt": value}
    if not isinstance(value, dict):
        raise UserError(f"scene {number} is {value!r}: expected fields such as 'prompt: a dog runs'")
    check_names(value, Scene, f"scene {number}")
    try:
        return from_dict(Scene, value)
    except UserError as error:
        raise UserError(f"scene {number}: {error}") from None


def check_names(values: Mapping[Any, Any], cls: type, what: str) -> None:
    """Raises UserError, with near names, for a field that a spec has not."""
    names = [field.name for field in dataclasses.fields(cls)]
    for name in values:
        if name not in names:
            raise UserError(f"{what} has the unknown field {name!r}{near_names(str(name), names)}")


def parse_lines(text: str) -> Storyboard:
    """A storyboard of a prompt a line.  Raises UserError for a text without one."""
    scenes: list[Scene] = []
    cut = True
    for line in map(str.strip, text.splitlines()):
        if line and not line.strip("-"):
            cut = True
        elif line:
            scenes.append(Scene(prompt=line, transition=CUT if cut else CONTINUE))
            cut = False
    if not scenes:
        raise UserError(f"it holds no prompt: write a line for each {LINE_S:g} seconds")
    return Storyboard(scenes=tuple(scenes))


def write(board: Storyboard) -> str:
    """The YAML of a storyboard, without fields that are as by default; `parse` reads it back."""
    import yaml

    values = _set(board) | {"scenes": [_set(scene) for scene in board.scenes]}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)


def _set(spec: Spec) -> dict[str, Any]:
    """The fields that differ from their defaults."""
    values = to_dict(spec)
    return {f.name: values[f.name] for f in dataclasses.fields(spec) if getattr(spec, f.name) != f.default}


def _beside(scene: Scene, folder: Path) -> Scene:
    """A scene whose files are found from the folder of its storyboard."""
    files = {name: str((folder / value).absolute()) for name in ("frame", "clip") if (value := getattr(scene, name))}
    return scene.replace(**files)
