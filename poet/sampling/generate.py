"""From a checkpoint and a request to clips: the Python API of `poet generate`.

A sample is determined by the seed and its row (its place in the request): every row has its own noise,
and what else is in its batch does not matter.  In float32 the size of the batch does not matter either; in
bfloat16 sums of another shape round otherwise, and a sample is repeated at the same batch alone.

N samples, n clips, S layout length, L text positions, K known codes, T video frames, F audio samples.
"""

from __future__ import annotations

import functools
import logging
from typing import Any, Mapping, Sequence

import jax
import numpy as np

from poet.checkpoints import checkpoint as checkpoint_lib
from poet import conditioning
from poet.runs import networks
from poet.runs.run import Run
from poet.spec import compat
from poet.models.transformer import Params, build_model
from poet.sampling.decode import Decoder, ModelPrograms
from poet.sampling.engine import Drawn, Engine, Inputs
from poet.sampling.plans import DEFAULT_BATCH, Plan, Text
from poet.sampling.requests import (
    Given,
    check_all,
    check_depth,
    choose_condition,
    latents_of_codes,
    latents_of_frames,
    make_plan,
    opening_frames,
    whole_clips,
)
from poet.spec import Experiment, SampleSpec, UserError
from poet.tasks.registry import Task, get_task
from poet.tokenizers.audio.base import AudioTokenizer, load_audio_tokenizer
from poet.tokenizers.pieces import Pieces, load_pieces
from poet.tokenizers.text import TextEncoder, load_text_encoder
from poet.tokenizers.video.base import VideoTokenizer, load_video_tokenizer
from poet.tasks.resolved import Resolved

_LOG = logging.getLogger(__name__)


class Generator:
    """A trained model with its frozen networks, ready to sample.

    Attributes:
      experiment: the spec in the checkpoint.
      model, params: the language model; parameters in its compute dtype.
      made_with: fingerprints of the frozen networks that the model was trained with (`poet.runs.networks`); the
        networks that are loaded must be these.  None does not say.
    """

    def __init__(
        self,
        experiment: Experiment,
        params: Params,
        video_tokenizer: VideoTokenizer | None = None,
        text_encoder: TextEncoder | None = None,
        audio_tokenizer: AudioTokenizer | None = None,
        made_with: networks.Networks | None = None,
    ):
        self.experiment = experiment
        self.made_with = made_with
        self.model = build_model(Resolved(experiment))
        self.params = jax.jit(self.model.compute_params)(params)
        self._video_tokenizer = video_tokenizer
        self._text_encoder = text_encoder
        self._audio_tokenizer = audio_tokenizer
        self._codecs = _Codecs(self)
        self._programs: dict[Plan, ModelPrograms] = {}

    @classmethod
    def from_checkpoint(
        cls, run: Run, experiment: Experiment | None = None, task: str | None = None
    ) -> Generator:
        """Loads the checkpoint of a run, and the networks that it names.

        `experiment` replaces the one in the checkpoint, e.g. with other sampling settings.  The networks
        of `task` are loaded first; without one the video tokenizer is, and the others when they are needed.

        Raises:
          UserError: damaged, or settings or networks other than those it was trained with.
        """
        trained, what = run.checkpoint.spec, str(run.checkpoint.path)
        experiment = experiment or trained
        compat.check(
            trained, experiment, "sample", what=what, remedy="leave them as they were trained"
        )
        made_with = run.checkpoint.networks
        video_tokenizer = None
        if task is None or shows(get_task(task)):
            video_tokenizer = load_video_tokenizer(experiment.video_tokenizer)
            networks.check(made_with, {networks.VIDEO: video_tokenizer.fingerprint}, what=what)
        params = checkpoint_lib.load_params(run, build_model(Resolved(experiment)).abstract())
        return cls(experiment, params, video_tokenizer, made_with=made_with)

    @functools.cached_property
    def video_tokenizer(self) -> VideoTokenizer:
        """Encodes given frames and decodes those that are sampled; loaded when a task first needs it."""
        found = self._video_tokenizer or load_video_tokenizer(self.experiment.video_tokenizer)
        self._expect(networks.VIDEO, found.fingerprint)
        return found

    @functools.cached_property
    def text_encoder(self) -> TextEncoder:
        """Loaded when a task first needs it."""
        found = self._text_encoder or load_text_encoder(self.experiment.text)
        self._expect(networks.TEXT, found.fingerprint)
        return found

    @functools.cached_property
    def pieces(self) -> Pieces:
        """Loaded when a task first needs it."""
        found = load_pieces(self.experiment.text.pieces)
        self._expect(networks.PIECES, found.fingerprint)
        return found

    @functools.cached_property
    def audio_tokenizer(self) -> AudioTokenizer:
        """Loaded when a task first needs it."""
        found = self._audio_tokenizer or load_audio_tokenizer(self.experiment.audio_tokenizer)
        self._expect(networks.AUDIO, found.fingerprint)
        return found

    @property
    def networks_used(self) -> dict[str, str]:
        """Fingerprints of the frozen networks that were loaded so far."""
        names = {
            networks.VIDEO: "video_tokenizer",
            networks.AUDIO: "audio_tokenizer",
            networks.TEXT: "text_encoder",
            networks.PIECES: "pieces",
        }
        loaded = {name: vars(self).get(attribute) for name, attribute in names.items()}
        return {name: network.fingerprint for name, network in loaded.items() if network is not None}

    def load_networks(self, task: str) -> None:
        """Loads the frozen networks of a task, so that what is missing shows before anything is sampled."""
        declared = get_task(task)
        wanted = {
            "text_encoder": declared.text,
            "video_tokenizer": shows(declared),
            "audio_tokenizer": declared.has_audio,
            "pieces": declared.writes,
        }
        for name in (name for name, needed in wanted.items() if needed):
            getattr(self, name)

    def _expect(self, name: str, fingerprint: str) -> None:
        """Refuses a network that the model was not trained with; what is not known passes."""
        if self.made_with is not None:
            networks.check(self.made_with, {name: fingerprint}, what="the model")

    def generate(
        self,
        task: str,
        prompts: Sequence[str] = (),
        *,
        negative_prompt: str = "",
        clips: np.ndarray | None = None,
        sounds: np.ndarray | None = None,
        depths: np.ndarray | None = None,
        conditioning_frames: int = 0,
        ends: np.ndarray | None = None,
        region: str = "",
        count: int = 1,
        sample: SampleSpec | None = None,
        batch: int = DEFAULT_BATCH,
    ) -> Drawn:
        """Draws clips of what `check_all` accepts.

        Args:
          task: a name in `poet.tasks.registry.TASKS`.
          prompts: one or more for a task with text, none for one without.
          negative_prompt: the text that guidance steers away from; empty means no text at all.  It needs a
            guidance other than 1.
          clips: uint8 [n, >= conditioning_frames, H, W, 3] whose first frames open the output, or whole
            clips for a task that is conditioned on video, from which a condition such as a mask or a
            structure is made.  Prompts and clips pair up, one of either serves
            all of the other.
          sounds: int16 or floats in [-1, 1] [n, F] at CLIP.sample_rate_hz: those of `clips` where
            the task continues them, or the condition of a task that is conditioned on audio.
          depths: distances [1 or n, T, h, w] of the clips, any size and scale, for a task that takes
            their structure.
          conditioning_frames: how many; 1 for a still image.  They come back as the tokenizer shows them.  For a task
            whose prefix holds them: those at the beginning, or at both ends for frame_interpolation; 0 is
            the fewest, or CONDITIONING.interpolation_frames.
          ends: uint8 [1 or n, >= conditioning_frames, H, W, 3], what frame_interpolation ends with, where `clips`
            are not whole.
          region: what inpainting fills or outpainting keeps, one of CONDITIONING's; it may be left out
            where that names one alone.
          count: samples of each prompt (or clip), adjacent in the result.
          sample: default is the checkpoint's; guidance has no effect on a task without text.
          batch: samples decoded together.

        Raises:
          UserError: the request does not fit the task.
        """
        given = Given(videos=clips, sounds=sounds)
        check_all(
            self.experiment.replace(sample=sample or self.experiment.sample), task, prompts, conditioning_frames,
            clips=len(given), ends=_count(ends), depths=_count(depths), region=region,
            negative_prompt=negative_prompt,
        )
        sample = sample or self.experiment.sample
        latents = latents_of_frames(self.experiment, opening_frames(get_task(task), conditioning_frames))
        items = max(len(prompts), len(given), 1)
        self.load_networks(task)
        engine, inputs = self.engine(task, sample, latents), {}
        if prompts:
            inputs["text"] = _spread(self.encode_text(prompts), items, count)
            inputs["negative"] = _spread(self.encode_text([negative_prompt]), items, count)
        if len(given):
            index = places(len(given), items, count)
            found = self.encode_condition(
                task, clips, sounds, depths, conditioning_frames=conditioning_frames, ends=ends, region=region
            ).items()
            inputs["condition"] = {name: codes[index] for name, codes in found}
        if latents:
            inputs["known"] = engine.conditioning_codes({"video": clips, "audio": sounds})[index]
        return engine.detokenize(engine.sample(Inputs(**inputs), items * count, sample, batch=batch))

    def tokens(
        self,
        task: str,
        count: int,
        *,
        text: Text | None = None,
        negative: Text | None = None,
        condition: Mapping[str, np.ndarray] | None = None,
        known: np.ndarray | None = None,
        sample: SampleSpec | None = None,
        batch: int = DEFAULT_BATCH,
        source: int = 0,
    ) -> np.ndarray:
        """Draws whole sequences, int32 [N, S], that the task's layout parses.

        Args:
          text, negative: states of N texts; absent means no text.
          condition: codes [N, n] of every stream that the task is conditioned on: "video_in",
            "image_in" or "audio_in".
          known: codes [N, K] that open the output, in the order of `encode_conditioning`.
          source: the data source whose look is asked for, an index below 128.
        """
        latents = 0 if known is None else latents_of_codes(self.experiment, task, np.shape(known)[-1])
        inputs = Inputs(text=text, negative=negative, condition=condition or {}, known=known, source=source)
        sample = sample or self.experiment.sample
        return self.engine(task, sample, latents).sample(inputs, count, sample, batch=batch)

    def engine(self, task: str, sample: SampleSpec | None = None, latents: int = 0) -> Engine:
        """What samples a task; its programs are compiled when they first run, and kept.

        Args:
          sample: default is the checkpoint's; top_k, and whether top_p and guidance take part, shape the programs.
          latents: known latent frames that open the output.
        """
        plan = make_plan(self.experiment, task, sample or self.experiment.sample, latents)
        if plan not in self._programs:
            decoder = Decoder(self.model, plan)
            self._programs[plan] = ModelPrograms(decoder, self.params, self.experiment.text.width)
        return Engine(self._programs[plan], self._codecs, task)

    def encode_text(self, texts: Sequence[str]) -> Text:
        """States of texts; what the encoder has no room for is dropped and said."""
        encoded = self.text_encoder(texts)
        dropped_B = encoded.dropped_B if encoded.dropped_B is not None else np.zeros(len(texts), int)
        for text, dropped, length in zip(texts, dropped_B, encoded.lengths_B):
            if dropped:
                words = len(text.split())
                lost = round(words * dropped / (dropped + length))
                _LOG.warning(
                    "a prompt of %d words is cut: its last %d of %d pieces, about %d words, are not "
                    "read (TEXT.length = %d): %.60s...",
                    words, dropped, dropped + length, lost, self.experiment.text.length, text,
                )
        return Text(encoded.states_BxLxD, encoded.lengths_B)

    def encode_condition(
        self,
        task: str,
        clips: np.ndarray | None,
        sounds: np.ndarray | None,
        depths: np.ndarray | None = None,
        **chosen: Any,
    ) -> dict[str, np.ndarray]:
        """Codes [n, N] of the streams that a task is conditioned on, by name in its layout.

        `chosen` is that of `show_condition`.
        """
        shown = cells = None
        if not {"video", "image"}.isdisjoint(get_task(task).condition) and clips is not None:
            shown, cells = self.make_condition(task, clips, depths, **chosen)
        hides = self.experiment.conditioning.hide_cells
        media = {"video": shown, "audio": sounds}
        return self.engine(task).condition_codes(media, cells if hides else None)

    def show_condition(self, task: str, *arguments: Any, **chosen: Any) -> np.ndarray:
        """The first of what `make_condition` gives."""
        return self.make_condition(task, *arguments, **chosen)[0]

    def make_condition(
        self,
        task: str,
        clips: np.ndarray,
        depths: np.ndarray | None = None,
        *,
        conditioning_frames: int = 0,
        ends: np.ndarray | None = None,
        region: str = "",
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """What a task sees of clips uint8 [n, T, H, W, 3]: the clips, or what is made from each; and the latents
        that are given, bool [n, t, h, w], None for all.

        The arguments are those of `generate`.
        """
        declared, spec = get_task(task), self.experiment.conditioning
        chosen = choose_condition(
            self.experiment, declared, conditioning_frames, region,
            ends=_count(ends), clips=len(clips),
        )
        check_depth(self.experiment, declared, _count(depths), len(clips))
        made = declared.made
        if not made:
            return clips, None
        for given in (clips, ends):
            if given is not None:
                self._check_frames(given, chosen.frames or 1)
        if conditioning.CONDITIONS[made].learned:
            self._expect_rendering(made, depths is not None)
        if depths is not None:
            spec = spec.replace(depth="dataset")
            depths = np.broadcast_to(depths, (len(clips), *depths.shape[1:]))
        whole = whole_clips(clips, self.experiment.clip.frames, chosen, ends)
        found = [
            conditioning.make(
                made, clip, spec, chosen=chosen, depth=None if depths is None else depths[row],
                factor=self.experiment.video_tokenizer.factor,
            )
            for row, clip in enumerate(whole)
        ]
        return np.stack([m.video for m in found]), np.stack([m.cells for m in found])

    def _expect_rendering(self, made: str, has_depth: bool) -> None:
        """Refuses a condition that is made in another way than the model was trained with.

        A caller's distances, or those of a network, may stand for the data set's.
        """
        spec, tokenizer = self.experiment.conditioning, self.video_tokenizer.fingerprint
        measured = conditioning.fingerprint(made, spec.replace(depth="dataset"), tokenizer)
        trained = (self.made_with or {}).get(made)
        if not (has_depth or spec.depth not in spec.BUILT_IN) or trained != measured:
            self._expect(made, conditioning.fingerprint(made, spec, tokenizer))

    def encode_conditioning(
        self, task: str, conditioning_frames: int, clips: np.ndarray | None, sounds: np.ndarray | None
    ) -> np.ndarray:
        """Codes [n, K] of the first frames, and for output with sound of the sound in their time.

        The order is that of the loss spans: video first, then level by level.
        """
        latents = latents_of_frames(self.experiment, conditioning_frames)
        return self.engine(task, latents=latents).conditioning_codes({"video": clips, "audio": sounds})

    def encode_frames(self, clips: np.ndarray, frames: int) -> np.ndarray:
        """Codes [n, K] of the first frames of n clips."""
        self._check_frames(clips, frames)
        return self.video_tokenizer.encode(clips[:, :frames]).reshape(len(clips), -1)

    def _check_frames(self, clips: np.ndarray, frames: int) -> None:
        clip = self.experiment.clip
        expected = (clip.height, clip.width, 3)
        if clips.ndim != 5 or clips.shape[2:] != expected or clips.shape[1] < frames:
            raise UserError(
                f"the given clips have shape {clips.shape}, expected (n, at least {frames}, "
                f"{', '.join(map(str, expected))}): resize them to the checkpoint's clip format"
            )

    def encode_sounds(self, sounds: np.ndarray, frames: int) -> np.ndarray:
        """Codes [n, levels * frames], level by level, of the first frames of codes of n sounds."""
        clip, levels = self.experiment.clip, self.experiment.vocabulary.audio_levels
        samples = frames * self.experiment.audio_tokenizer.hop
        if sounds.ndim != 2 or sounds.shape[1] < samples:
            raise UserError(
                f"the given sounds have shape {sounds.shape}, expected (n, at least {samples}): "
                f"mono at {clip.sample_rate_hz} Hz"
            )
        if not frames:
            return np.zeros((len(sounds), 0), np.int32)
        codes_nxLxf = self.audio_tokenizer.encode(sounds[:, : clip.samples], levels=levels)
        return codes_nxLxf[:, :, :frames].reshape(len(sounds), -1)

    def detokenize(self, task: str, tokens_NxS: np.ndarray) -> Drawn:
        """What the output streams of whole sequences show and sound like."""
        return self.engine(task).detokenize(tokens_NxS)


class _Codecs:
    """`poet.sampling.engine.Codecs` of a generator: its frozen networks, each loaded when it is first needed."""

    def __init__(self, generator: Generator):
        self._generator = generator

    def tokenize(self, stream: str, media: np.ndarray, codes: int) -> np.ndarray:
        generator, experiment = self._generator, self._generator.experiment
        if stream == "audio":
            return generator.encode_sounds(media, codes // experiment.vocabulary.audio_levels)
        _, h, w = Resolved(experiment).format.video
        return generator.encode_frames(media, Resolved(experiment).frames_of(codes // (h * w)))

    def detokenize(self, stream: str, codes_NxM: np.ndarray) -> Any:
        generator, experiment, count = self._generator, self._generator.experiment, len(codes_NxM)
        if stream == "pieces":
            return generator.pieces.decode(np.minimum(codes_NxM, generator.pieces.size - 1))
        if stream == "audio":
            codes_NxLxF = codes_NxM.reshape(count, experiment.vocabulary.audio_levels, -1)
            return generator.audio_tokenizer.decode(codes_NxLxF, experiment.clip.samples)
        _, h, w = Resolved(experiment).format.video
        return generator.video_tokenizer.decode(codes_NxM.reshape(count, -1, h, w))


def shows(task: Task) -> bool:
    """Whether a task takes or gives frames, for which it needs the video tokenizer."""
    return bool({"video", "image"} & {*task.condition, *task.output})


def _count(array: np.ndarray | None) -> int:
    return 0 if array is None else len(array)


def places(given: int, items: int, count: int) -> np.ndarray:
    """Which of 1 or `items` given things each of items x count samples takes."""
    index = np.arange(items) if given == items else np.zeros(items, np.int64)
    return np.repeat(index, count)


def _spread(text: Text, items: int, count: int) -> Text:
    return text.rows(places(len(text.lengths), items, count))
