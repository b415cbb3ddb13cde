"""From a checkpoint and a request to clips: the Python API and the body of `poet generate`.

A sample is determined by the seed and its row (its place in the request), not by the batch size:
the last batch is filled up and every row draws its own noise.

N samples, B batch, S layout length, L text positions, E width of a text state, K known codes.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, NamedTuple, Sequence

import jax
import numpy as np

from poet import checkpoint as checkpoint_lib
from poet import media, specs
from poet.models.transformer import Params, build_model
from poet.sampling.decode import Decoder, Plan, given_tokens
from poet.sampling.requests import allowed_latents, check_request
from poet.sampling.samplers import Knobs, Truncation
from poet.specs import Experiment, SampleSpec, UserError
from poet.tasks.layout import Layout
from poet.tasks.registry import get_task, run_format, task_layout
from poet.tokenizers.video.base import VideoTokenizer, load_video_tokenizer
from poet.tokenizers.text import TextEncoder, load_text_encoder
from poet.vocabulary import SOURCES, Vocabulary

DEFAULT_BATCH = 8


class Text(NamedTuple):
    """Text encoder states: float32 [N, L, E], and int32 [N] pieces of each (0 is no text)."""

    states: np.ndarray
    lengths: np.ndarray

    def rows(self, index: np.ndarray) -> Text:
        return Text(self.states[index], self.lengths[index])


# ------------------------------------------------------------------------------- the Python API


class Generator:
    """A trained model with its frozen networks, ready to sample.

    Attributes:
      experiment: the spec in the checkpoint.
      model, params: the language model; parameters in its compute dtype.
      video_tokenizer: encodes known frames and decodes what is drawn.
    """

    def __init__(
        self,
        experiment: Experiment,
        params: Params,
        video_tokenizer: VideoTokenizer,
        text_encoder: TextEncoder | None = None,
    ):
        self.experiment = experiment
        self.model = build_model(experiment)
        self.params = jax.jit(self.model.compute_params)(params)
        self.video_tokenizer = video_tokenizer
        self._text_encoder = text_encoder
        self._decoders: dict[Plan, Decoder] = {}

    @classmethod
    def from_checkpoint(cls, path: str | Path, experiment: Experiment | None = None) -> Generator:
        """Loads a checkpoint, or the newest one of a work dir, and the networks that it names.

        `experiment` replaces the one in the checkpoint, e.g. with other sampling settings.
        """
        experiment = experiment or checkpoint_lib.load_experiment(path)
        video_tokenizer = load_video_tokenizer(experiment.video_tokenizer)
        params = checkpoint_lib.load_params(path, build_model(experiment).abstract())
        return cls(experiment, params, video_tokenizer)

    @functools.cached_property
    def text_encoder(self) -> TextEncoder:
        """Loaded when a task first needs it."""
        return self._text_encoder or load_text_encoder(self.experiment.text)

    def generate(
        self,
        task: str,
        prompts: Sequence[str] = (),
        *,
        negative_prompt: str = "",
        clips: np.ndarray | None = None,
        known_frames: int = 0,
        count: int = 1,
        sample: SampleSpec | None = None,
        batch: int = DEFAULT_BATCH,
    ) -> np.ndarray:
        """Draws clips, uint8 [N, T, H, W, 3]; T is 1 for an image task.

        Args:
          task: a name in `poet.tasks.registry.TASKS`.
          prompts: one or more for a task with text, none for one without.
          negative_prompt: what guidance leads away from; empty means no text at all.
          clips: uint8 [n, >= known_frames, H, W, 3] whose first frames open the output.  Prompts
            and clips pair up, one of either serves all of the other.
          known_frames: how many; 1 for a still image.  They come back as the tokenizer shows them.
          count: samples of each prompt (or clip), adjacent in the result.
          sample: default is the checkpoint's; guidance has no effect on a task without text.
          batch: samples decoded together.

        Raises:
          UserError: the request does not fit the task.
        """
        given = 0 if clips is None else len(clips)
        check_request(self.experiment, task, prompts, known_frames, given)
        items = max(len(prompts), given, 1)
        total = items * count
        text = negative = known = None
        if prompts:
            text = _spread(self.encode_text(prompts), items, count)
            negative = _spread(self.encode_text([negative_prompt]), items, count)
        if clips is not None:
            known = self.encode_frames(clips, known_frames)[_index(given, items, count)]
        tokens_NxS = self.tokens(
            task, total, text=text, negative=negative, known=known, sample=sample, batch=batch
        )
        return self.detokenize(task, tokens_NxS)

    def tokens(
        self,
        task: str,
        count: int,
        *,
        text: Text | None = None,
        negative: Text | None = None,
        known: np.ndarray | None = None,
        sample: SampleSpec | None = None,
        batch: int = DEFAULT_BATCH,
        source: int = 0,
    ) -> np.ndarray:
        """Draws whole sequences, int32 [N, S], that the task's layout parses.

        Args:
          text, negative: states of N texts; absent means no text.
          known: codes [N, K] that open the first output stream.
          source: the data source whose look is asked for, an index below 128.
        """
        sample = sample or self.experiment.sample
        if batch < 1 or count < 1 or not 0 <= source < SOURCES:
            raise UserError(
                f"batch = {batch}, count = {count}, source = {source}: batch and count must be "
                f"positive, source must lie in 0..{SOURCES - 1}"
            )
        decoder = self._decoder(task, sample, 0 if known is None else known.shape[1])
        batch, pieces = min(batch, count), []
        for start in range(0, count, batch):
            rows = np.arange(start, start + batch)
            index = np.minimum(rows, count - 1)
            streams = {"source": np.full((batch, 1), source, np.int32)}
            given = given_tokens(decoder.plan, streams, None if known is None else known[index])
            inputs = self._text_rows(decoder.plan, index, text, negative)
            pieces.append(decoder(self.params, given, rows, Knobs.of(sample), *inputs))
        return np.concatenate(pieces)[:count]

    def _decoder(self, task: str, sample: SampleSpec, known: int) -> Decoder:
        plan = make_plan(self.experiment, task, sample, known)
        if plan not in self._decoders:
            self._decoders[plan] = Decoder(self.model, plan)
        return self._decoders[plan]

    def _text_rows(
        self, plan: Plan, index: np.ndarray, text: Text | None, negative: Text | None
    ) -> tuple[np.ndarray, ...]:
        """States and lengths of a batch: conditional rows, then unconditional ones if guided."""
        if plan.layout.text_span is None:
            return ()
        wanted = (text, negative) if plan.guided else (text,)
        rows = [self._no_text(len(index)) if t is None else t.rows(index) for t in wanted]
        return tuple(np.concatenate(arrays) for arrays in zip(*rows))

    def _no_text(self, count: int) -> Text:
        spec = self.experiment.text
        states = np.zeros((count, spec.length, spec.width), np.float32)
        return Text(states, np.zeros(count, np.int32))

    def encode_text(self, texts: Sequence[str]) -> Text:
        encoded = self.text_encoder(texts)
        return Text(encoded.states_BxLxD, encoded.lengths_B)

    def encode_frames(self, clips: np.ndarray, known_frames: int) -> np.ndarray:
        """Codes [n, K] of the first frames of n clips."""
        clip = self.experiment.clip
        expected = (clip.height, clip.width, 3)
        if clips.ndim != 5 or clips.shape[2:] != expected or clips.shape[1] < known_frames:
            raise UserError(
                f"known clips have shape {clips.shape}, expected (n, at least {known_frames}, "
                f"{', '.join(map(str, expected))}): resize them to the checkpoint's clip format"
            )
        return self.video_tokenizer.encode(clips[:, :known_frames]).reshape(len(clips), -1)

    def detokenize(self, task: str, tokens_NxS: np.ndarray) -> np.ndarray:
        """uint8 [N, T, H, W, 3] of the visual output stream."""
        layout = make_layout(self.experiment, task)
        segment = layout.loss_spans[0].segment
        codes = layout.parse(tokens_NxS)[segment.stream]
        return self.video_tokenizer.decode(codes.reshape(-1, *segment.grid))


def _index(given: int, items: int, count: int) -> np.ndarray:
    """Which of 1 or `items` given things each of items x count samples takes."""
    index = np.arange(items) if given == items else np.zeros(items, np.int64)
    return np.repeat(index, count)


def _spread(text: Text, items: int, count: int) -> Text:
    return text.rows(_index(len(text.lengths), items, count))


def make_layout(experiment: Experiment, task: str) -> Layout:
    """The static layout of a task in a run."""
    return task_layout(get_task(task), run_format(experiment), Vocabulary(experiment.vocabulary))


def make_plan(experiment: Experiment, task: str, sample: SampleSpec, known: int) -> Plan:
    """The decoding program of a task; guided where there is text and the scale is not 1."""
    layout = make_layout(experiment, task)
    return Plan(
        layout=layout,
        known=known,
        guided=layout.text_span is not None and sample.guidance != 1,
        truncation=Truncation.of(sample),
    )


# ----------------------------------------------------------------------------- the command's body


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """Arguments of `poet generate`; sampling values come with the experiment."""

    checkpoint: str
    out: str
    task: str = "text_to_video"
    prompt: Sequence[str] = ()
    prompt_file: str = ""
    negative_prompt: str = ""
    clip: Sequence[str] = ()
    known_frames: int = 0
    num: int = 1
    batch: int = DEFAULT_BATCH


def run(request: Request, experiment: Experiment) -> list[Path]:
    """Generates and writes what was asked for; returns the files.

    Args:
      request: anything with the attributes of `Request`.
      experiment: the checkpoint's, `sample` overridden as the user wishes.

    Raises:
      UserError: before the model is loaded wherever the mistake can be seen by then.
    """
    if request.num < 1 or request.batch < 1:
        raise UserError(f"num = {request.num}, batch = {request.batch}: both must be positive")
    prompts = [*request.prompt, *_read_prompts(request.prompt_file)]
    known_frames = request.known_frames or _default_known_frames(experiment, request)
    check_request(experiment, request.task, prompts, known_frames, len(request.clip))
    clips = _read_clips(experiment, request.clip, known_frames)
    videos = Generator.from_checkpoint(request.checkpoint, experiment).generate(
        request.task,
        prompts,
        negative_prompt=request.negative_prompt,
        clips=clips,
        known_frames=known_frames,
        count=request.num,
        batch=request.batch,
    )
    details = {
        "task": request.task,
        "checkpoint": str(checkpoint_lib.find(request.checkpoint)),
        "negative_prompt": request.negative_prompt,
        "clips": list(request.clip),
        "known_frames": known_frames,
        "sample": specs.to_dict(experiment.sample),
    }
    labels = _labels(prompts, len(videos))
    return write_outputs(videos, labels, request.out, experiment.clip.rate_hz, details)


def _labels(prompts: Sequence[str], count: int) -> list[str]:
    """The prompt of each of `count` samples; empty where there is none."""
    prompts = prompts or [""]
    return [prompts[row * len(prompts) // count] for row in range(count)]


def _read_prompts(path: str) -> list[str]:
    """Non-empty lines of a text file."""
    if not path:
        return []
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompt file {path} cannot be read as UTF-8 text: {error}") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"prompt file {path} holds no prompt: write one per line")
    return prompts


def _read_clips(
    experiment: Experiment, paths: Sequence[str], known_frames: int
) -> np.ndarray | None:
    """uint8 [n, known_frames, H, W, 3] in the run's clip format."""
    if not paths:
        return None
    wanted = experiment.clip.replace(frames=known_frames)
    return np.stack([media.read_clip(path, wanted).video for path in paths])


def _default_known_frames(experiment: Experiment, request: Request) -> int:
    """For a clip without a number, the fewest frames that the task takes."""
    fewest = allowed_latents(experiment, get_task(request.task))[0]
    if not request.clip or not fewest:
        return 0
    return 1 + experiment.video_tokenizer.factor[0] * (fewest - 1)


def write_outputs(
    videos: np.ndarray,
    prompts: Sequence[str],
    out_dir: str | Path,
    rate_hz: float,
    details: dict[str, Any],
) -> list[Path]:
    """Writes each clip as mp4, gif and PNG strip (an image as PNG alone), and `generate.json`.

    Args:
      videos: uint8 [N, T, H, W, 3].
      prompts: one label per clip.
      details: what else `generate.json` records.
    """
    out_dir = Path(out_dir).expanduser()
    files, samples = [], []
    for row, (video, prompt) in enumerate(zip(videos, prompts, strict=True)):
        written = _write_clip(video, out_dir / f"{row:03d}", rate_hz)
        files += written
        names = [path.name for path in written]
        samples.append({"row": row, "prompt": prompt, "files": names})
    record = out_dir / "generate.json"
    with media.replacing(record) as file:
        file.write_text(json.dumps({**details, "rate_hz": rate_hz, "samples": samples}, indent=2))
    return [*files, record]


def _write_clip(video: np.ndarray, stem: Path, rate_hz: float) -> list[Path]:
    strip, gif, mp4 = (stem.with_suffix(suffix) for suffix in (".png", ".gif", ".mp4"))
    media.write_png_strip(strip, video)
    if len(video) == 1:
        return [strip]
    media.write_gif(gif, video, rate_hz)
    if video.shape[1] % 2 or video.shape[2] % 2:  # H.264 takes even sides only.
        return [gif, strip]
    media.write_mp4(mp4, video, rate_hz)
    return [mp4, gif, strip]
