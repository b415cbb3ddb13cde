"""The next clip of a film: its conditioning codes, its texts, its noise.

The next clip is conditioned on c latent frames, which end where the film ends.  There are two variants:

*   carrying the codes: the last c - 1 latent frames are those that were sampled.  The first, which decodes to one
    frame, is encoded from the film's frame there or, with `sink`, is the first latent frame of the film.  The film is
    decoded as one stream of codes, so it has no seams;
*   encoding anew (`recode`; VideoPoet §3.4): all of them are encoded from the film's last frames, and each clip is
    decoded by itself.

N candidates, t h w latents, T frames, S samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from poet.runs import networks
from poet.sampling.base import TaskSampler
from poet.sampling.films import pictures, sounds
from poet.sampling.films.pictures import Pictures
from poet.sampling.films.pieces import Piece
from poet.sampling.films.sounds import Sounds
from poet.sampling.films.windows import Windows
from poet.sampling.plans import DEFAULT_BATCH
from poet.sampling.requests import check_negative
from poet.spec import SampleSpec, UserError
from poet.tasks.registry import get_task
from poet.tasks.resolved import Resolved

_SOUND_ALONE = "text_to_audio"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wish:
    """The request for one clip.

    Attributes:
      prompt: the text; '' for a task without one.
      negative: the text that guidance steers away from.
      sound_prompt: separate text of the sound, which is then sampled by itself; '': the prompt.
    """

    prompt: str = ""
    negative: str = ""
    sound_prompt: str = ""


class FilmSampler:
    """Samples the clips of films.

    Attributes:
      windows: how films are cut into clips.
      pictures, sounds: the continuation of frames and sound; `sounds` is None in silent films.
    """

    def __init__(
        self,
        generator: TaskSampler,
        *,
        has_audio: bool = False,
        recode: bool = False,
        sink: bool = False,
        context: int = 0,
        batch: int = DEFAULT_BATCH,
    ):
        """`generator`: of a checkpoint, or of an export with films.  `recode`, `sink`: see the module.

        `context`: conditioning latent frames, see `Windows.of`.

        Raises UserError for sound in a run without it, or a context longer than a clip allows.
        """
        resolved = generator.resolved
        self.generator, self.windows, self._batch = generator, Windows.of(resolved, context), batch
        if has_audio and not self.windows.hop:
            raise UserError("the checkpoint has no sound: make a silent film")
        if recode and sink:
            raise UserError("a sink is a carried code: give only one of recode and sink")
        tokenizer = generator.networks[networks.VIDEO]
        self.pictures = Pictures(windows=self.windows, tokenizer=tokenizer, recode=recode, sink=sink)
        self.sounds = None
        if has_audio:
            self.sounds = Sounds(
                windows=self.windows,
                tokenizer=generator.networks[networks.AUDIO],
                levels=resolved.spec.vocabulary.audio_levels,
                clip_samples=resolved.spec.clip.samples,
                recode=recode,
            )

    @property
    def made_by(self) -> dict[str, Any]:
        """What determines a film besides the request: the frozen networks, and the variant of continuation."""
        found = {networks.VIDEO: self.pictures, networks.AUDIO: self.sounds}
        return {
            "networks": {name: side.tokenizer.fingerprint for name, side in found.items() if side is not None},
            "context": self.windows.context,
            "recode": self.pictures.recode,
            "sink": self.pictures.sink,
        }

    def begin(self, video: np.ndarray | None = None, sound: np.ndarray | None = None) -> Piece:
        """The opening of a film: frames uint8 [T, H, W, 3] and samples [S], int16 or floats; or nothing.

        The frames are kept; missing sound is silence.

        Raises UserError for frames of another size than the model's.
        """
        clip = self.generator.resolved.spec.clip
        shape = (clip.height, clip.width, 3)
        video = np.zeros((0, *shape), np.uint8) if video is None else np.asarray(video)
        if video.ndim != 4 or video.shape[1:] != shape or video.dtype != np.uint8:
            wanted = ", ".join(map(str, shape))
            raise UserError(f"the opening frames are {video.dtype} {video.shape}, expected uint8 (T, {wanted})")
        added = self.pictures.begin(video)
        return self._joined(added, self.sounds and self.sounds.begin(sound, len(video)))

    def resume(self, pieces: Iterable[Piece]) -> Piece:
        """The last of the pieces of a film (at least one), with the state of its decoders."""
        video, audio = self.pictures.stream(), self.sounds and self.sounds.stream()
        for last in pieces:
            if video is not None and len(last.video):
                _, video = video.push(last.video)
            if audio is not None and last.audio.shape[1]:
                audio.push(last.audio)
        end = dataclasses.replace(last.end, decoder=video)
        sound_end = last.sound_end and dataclasses.replace(last.sound_end, decoder=audio)
        return dataclasses.replace(last, end=end, sound_end=sound_end)

    def go_on(
        self, piece: Piece, wishes: Sequence[Wish], *, seed: int, number: int, sample: SampleSpec | None = None
    ) -> list[Piece]:
        """The clip after a piece, once for each of N wishes.

        Args:
          number: of the clip in its film; the noise depends on it, the seed, and the index of the wish.
          sample: default: that of the checkpoint; its seed is not used.

        Raises UserError for tasks that the checkpoint was not trained on.
        """
        return self.go_on_each([piece] * len(wishes), wishes, seed=seed, number=number, sample=sample)

    def go_on_each(
        self,
        before: Sequence[Piece],
        wishes: Sequence[Wish],
        *,
        seed: int,
        number: int,
        sample: SampleSpec | None = None,
    ) -> list[Piece]:
        """`go_on` of N films at once, one piece and one wish of each."""
        given = {len(piece.end.given) for piece in before}
        if len(given) != 1 or len(before) != len(wishes):
            raise UserError(
                f"{len(before)} films, {len(wishes)} wishes: films continued together need equal conditioning lengths"
            )
        latents = given.pop()
        sample = (sample or self.generator.resolved.spec.sample).replace(seed=seed_of(seed, number))
        if len({(bool(wish.prompt), bool(wish.sound_prompt)) for wish in wishes}) != 1:
            raise UserError("either all candidates have a prompt (and a sound prompt), or none")
        self.check(wishes[0], sample, opened=latents > 0)
        tasks = self._tasks(wishes[0], latents)
        codes = self._codes(tasks[0], before, wishes, sample)
        if tasks[1:]:
            for_sound = [Wish(prompt=wish.sound_prompt, negative=wish.negative) for wish in wishes]
            codes |= self._codes(tasks[1], before, for_sound, sample)
        return [self._piece(piece, {name: rows[n] for name, rows in codes.items()}) for n, piece in enumerate(before)]

    def check(self, wish: Wish, sample: SampleSpec, *, opened: bool) -> None:
        """Raises UserError unless the checkpoint can sample such clips; `opened`: the film has opening frames.

        A negative prompt needs guidance.
        """
        has_audio = self.sounds is not None
        check_wish(self.generator.resolved, self.windows, wish, sample, opened=opened, has_audio=has_audio)

    def _tasks(self, wish: Wish, latents: int) -> list[str]:
        return tasks_of(wish, latents, has_audio=self.sounds is not None)

    def _codes(
        self, task: str, before: Sequence[Piece], wishes: Sequence[Wish], sample: SampleSpec
    ) -> dict[str, np.ndarray]:
        """Codes [N, n] of each output stream of a task that continues N pieces."""
        latents, outputs = len(before[0].end.given), get_task(task).output
        known = [[piece.end.given for piece in before]] if "video" in outputs else []
        if "audio" in outputs:
            known.append([piece.sound_end.given for piece in before])
        inputs: dict[str, Any] = {}
        if latents:
            inputs["known"] = np.concatenate([np.stack(codes).reshape(len(before), -1) for codes in known], axis=1)
        if wishes[0].prompt:
            inputs["text"] = self.generator.encode_text([wish.prompt for wish in wishes])
            inputs["negative"] = self.generator.encode_text([wish.negative for wish in wishes])
        tokens = self.generator.tokens(task, len(wishes), latents=latents, sample=sample, batch=self._batch, **inputs)
        return self.generator.engine(task, sample, latents).plan.layout.parse(tokens)

    def _piece(self, before: Piece, codes: dict[str, np.ndarray]) -> Piece:
        """A clip's codes, by stream, as the piece after another."""
        added = self.pictures.add(before.end, codes["video"].reshape(self.generator.resolved.format.video))
        if self.sounds is None:
            return self._joined(added, None)
        audio = codes["audio"].reshape(self.sounds.levels, -1)
        return self._joined(added, self.sounds.add(before.sound_end, audio, added.end.frames))

    def _joined(self, added: pictures.Added, heard: sounds.Added | None) -> Piece:
        piece = Piece(frames=added.frames, video=added.codes, end=added.end)
        if heard is None:
            return piece
        rest = self.sounds.rest(heard.end, added.end.frames)
        return dataclasses.replace(piece, samples=heard.samples, audio=heard.codes, rest=rest, sound_end=heard.end)


def check_wish(
    resolved: Resolved, windows: Windows, wish: Wish, sample: SampleSpec, *, opened: bool, has_audio: bool
) -> None:
    """`FilmSampler.check` without the model."""
    if has_audio and not windows.hop:
        raise UserError("the checkpoint has no sound: make a silent film")
    for latents in (int(opened), windows.context):
        for task in tasks_of(wish, latents, has_audio=has_audio):
            check_trained(resolved, task)
            check_negative(get_task(task), sample, wish.negative)


def tasks_of(wish: Wish, latents: int, *, has_audio: bool) -> list[str]:
    """The task of a clip, and that of its sound if it is sampled separately."""
    apart = has_audio and bool(wish.sound_prompt)
    joint = has_audio and not apart
    return [task_for(bool(wish.prompt), joint, latents), *([_SOUND_ALONE] if apart else [])]


def task_for(text: bool, has_audio: bool, latents: int) -> str:
    """The task of the next clip of a film, by its number of conditioning latent frames.

    Raises UserError for sound without any condition.
    """
    if text:
        return "text_to_video_with_audio" if has_audio else "image_to_video" if latents else "text_to_video"
    if not latents and has_audio:
        raise UserError("a film with sound needs a prompt, a picture or a clip: give one, or make a silent film")
    return "audio_video_continuation" if has_audio else "frame_prediction" if latents else "unconditional"


# Tasks that continue films, whatever may open their output otherwise.
CONTINUING = frozenset(task_for(text, has_audio, 1) for text in (False, True) for has_audio in (False, True))


def check_trained(resolved: Resolved, task: str) -> None:
    """Raises UserError for a task that the checkpoint was not trained on, if the run has a mixture."""
    seen = {declared.name for declared in resolved.mixture}
    if seen and task not in seen:
        raise UserError(
            f"this film needs the task {task}, and the checkpoint was trained on {', '.join(sorted(seen))}: make a "
            "film (with or without sound and text) of these tasks, or train it with that task in DATA.mixture_rates"
        )


def seed_of(seed: int, number: int) -> int:
    """The seed of a clip of a film: a hash of the film's seed and the clip's number."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
