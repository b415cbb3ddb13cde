"""What can be asked of a stream of tokens, and the sizes that its answers depend on.

Shape suffixes: B clips of a batch, N samples, M codes.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from poet.spec import ClipSpec, ConditioningSpec, Spec, UserError, VocabularySpec
from poet.spec.vocabulary import Range, Special, Vocabulary

CONDITION, OUTPUT = "condition", "output"
# What the name of a stream ends with where it stands in the condition.
GIVEN = "_in"
# The local code of what a condition does not give.
HIDDEN = -1

Grid = tuple[int, int, int]


class Target(NamedTuple):
    """Where and how the media of one sample are written.

    stem: folder and name of the files, without a suffix.
    clip: gives the frame rate and the sample rate.
    sample: all media of the sample, by `medium`.
    formats: suffixes without a dot, of which a stream writes those that it knows; () is what is usual.
    comment: what every file says of itself.
    original: the file whose frames the sample's sound is made for; '' is none.
    """

    stem: Path
    clip: ClipSpec
    sample: Mapping[str, Any]
    formats: tuple[str, ...] = ()
    comment: str = ""
    original: str = ""

    def files(self, formats: Sequence[str], usual: Sequence[str]) -> list[Path]:
        """The files to write of those that a stream can write."""
        return [self.stem.with_name(f"{self.stem.name}.{name}") for name in self.formats or usual if name in formats]


@dataclasses.dataclass(frozen=True)
class Format:
    """Sizes of the token streams of a run.

    Attributes:
      video: latent grid (t, h, w) of a clip, e.g. (5, 16, 16).
      audio_frames: latent audio frames, e.g. 106; 0 if the run has no audio.
      text_length: positions kept for text states.
      portrait: whether `<res>` is emitted (VideoPoet: only for 128x224).
      long: whether `<duration>` is emitted; absent, it means clips of 17 frames or less, as an absent
        `<res>` means square ones.  An image says both as the clip that it opens does.
      pieces_length: positions of a text that is written; 0 if the run writes none.
      audio_time: place of the first audio frame on the axis of latent frames, and the step to the next.
      known_audio: audio frames within the time of 0, 1, 2... latent frames; () if the run has no audio.
      opening_audio: whether the sound that opens an output with a picture stands in the prefix too.
      clip: the pixels and samples that these are the codes of.
    """

    video: Grid
    text_length: int
    audio_frames: int = 0
    portrait: bool = False
    long: bool = False
    pieces_length: int = 0
    audio_time: tuple[float, float] = (0.0, 1.0)
    known_audio: tuple[int, ...] = ()
    opening_audio: bool = False
    clip: ClipSpec = ClipSpec()


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamInfo(Spec):
    """The stored codes of one stream: their grid, ids in [0, 2**bits), and who made them.

    The grid is (t, h, w) for video, (levels, frames, 1) for audio; codes are stored row-major.
    """

    grid: tuple[int, ...]
    bits: int
    fingerprint: str

    @property
    def length(self) -> int:
        """Codes per clip."""
        return math.prod(self.grid)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoders:
    """The frozen networks of a store by name, those of `Stream.network` and the text encoder.

    `conditioning` shapes the conditions that are derived from pixels.
    """

    networks: Mapping[str, Any]
    conditioning: ConditioningSpec = ConditioningSpec()
    vocabulary: VocabularySpec = VocabularySpec()


class Traced(NamedTuple):
    """A part of a network that a compiler can trace.

    run: (weights, array [B, *shape] of `dtype`) -> array [B, ...].  weights: nested dict of arrays.
    """

    run: Callable[[Any, Any], Any]
    weights: Any
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """One stream of tokens: how it is laid out, coded, stored, shown and named.

    A subclass overrides what differs from a grid of visual codes.  Methods take plain specs and arrays
    and import nothing heavy but where they run a network.

    Attributes:
      name: in tasks, and in layouts; there a condition is called `<name>_in`.
      title: what it is to a person, as a condition.
      slot: the stream in whose place it stands in layouts; '' for its own.
      bare: whether a condition keeps the bare name in layouts.
      network: the name of the frozen network that makes its codes (`poet.runs.networks`).
      section: of the experiment (such as 'video_tokenizer'), which says where its network lies; '' for none.
      base: whether every store holds it of a run that has room for it (`lacking`); others are made for the tasks
        that name them.
      setting: what a store is made with to have it; '' where its tasks alone decide.
      stored: the feature of a token store that holds its codes; None where nothing is stored.
      flag: the feature of a store that says whether a clip has it, 1 or 0; '' where every clip does.
      medium: what it is made from and decoded to: 'video' (pictures), 'audio', 'text' or another; '' for nothing.
      stage: of `poet.store.stages`, where the time that its codes take counts.
      marks: of its boundary tokens, as in `<bov_i>`; '' for none.
      closes: whether an output ends with boundary tokens; one that does not may open a longer one.
      shows_latents: latent frames of the clip that it gives away at the least, as a condition.
      opens: the output stream whose given beginning it repeats in the condition.
      levels: whether its parts are told apart when its codes are counted.
      identifies: whether a clip is a copy of one with equal codes of this stream.
      constant: whether, as a condition, it says nothing of a clip.
      exports: whether its network can be a program of an export (`encoder`, `decoder`).
      colour: in pictures of layouts.
      formats: suffixes of the files that `write` can make of it.
    """

    name: str
    title: str = ""
    slot: str = ""
    bare: bool = False
    network: str = ""
    section: str = ""
    base: bool = False
    setting: str = ""
    stored: str | None = None
    flag: str = ""
    medium: str = ""
    stage: str = "encode video"
    marks: str = ""
    closes: bool = True
    shows_latents: int = 0
    opens: str = ""
    levels: bool = False
    identifies: bool = False
    constant: bool = False
    exports: bool = False
    colour: str = "#9aa5b1"
    formats: tuple[str, ...] = ()

    @property
    def shows(self) -> bool:
        """Whether it holds pictures, so that the size and duration of a clip are told before it."""
        return self.medium == "video"

    # ------------------------------------------------------------------------------- in a layout

    def called(self, role: str) -> str:
        """Its name in layouts."""
        return (self.slot or self.name) + (GIVEN if role == CONDITION and not self.bare else "")

    def boundaries(self, role: str) -> tuple[Special, ...]:
        """The tokens before and after it; one alone where nothing closes it, () for none."""
        if not self.marks:
            return ()
        end = "I" if role == CONDITION else "O"
        found = Special[f"BO{self.marks}_{end}"], Special[f"EO{self.marks}_{end}"]
        return found if self.closes or role == CONDITION else found[:1]

    def ids(self, vocabulary: Vocabulary) -> tuple[Range, ...]:
        """Legal ids of each of its parts, in order."""
        return (vocabulary.visual,)

    def grid(self, fmt: Format, known: int = 0) -> Grid:
        """(t, h, w) of a part; `known`: the most latent frames that a task gives of its output."""
        return fmt.video

    def lacking(self, fmt: Format) -> str:
        """Why a run has no room for it, as 'needs ... : set ...'; '' where it has."""
        return ""

    def time(self, fmt: Format) -> tuple[float, float] | None:
        """Place of its first position on the axis of latent frames, and the step; None where `places` says all."""
        return None

    def places(self, segment: Any) -> np.ndarray | None:
        """Rotary positions [length, 3] in (t, h, w) of a `Segment`; None: it belongs to no place and time.

        The same place of the same clip has the same position in whatever stream it stands.
        """
        return np.indices(segment.grid).reshape(3, -1).T

    def known(self, fmt: Format, latents: int) -> int:
        """Codes that open each of its parts as given, as an output of which so many latent frames are known."""
        return 0

    # -------------------------------------------------------------------------------- in a store

    def load(self, spec: Any, vocabulary: VocabularySpec, mesh: Any = None) -> Any:
        """The frozen network that makes its codes, of which `section` is the spec; on a mesh or one device.

        Raises UserError for none, or one whose codes the vocabulary has no room for.
        """
        raise NotImplementedError(f"stream {self.name} has no network of its own")

    def info(self, clip: ClipSpec, encoders: Encoders) -> StreamInfo:
        """What a store says of it.  Raises UserError where its network does not fit the clips."""
        raise NotImplementedError

    def check(self, clip: ClipSpec, encoders: Encoders, *, has_depth: bool) -> None:
        """Raises UserError where it cannot be made of a source's clips; `has_depth`: they come with distances."""

    def expected(
        self, fmt: Format, vocabulary: VocabularySpec, conditioning: ConditioningSpec, fingerprints: Mapping[str, str]
    ) -> dict[str, Any]:
        """Fields of `StreamInfo` that a run needs; `fingerprints` of networks, one that is absent is not compared."""
        return {"fingerprint": fingerprints.get(self.network)}

    def read(self, raw: Any, clip: ClipSpec, encoders: Encoders) -> Any:
        """What its network takes of a `RawClip`."""
        return raw.video

    def has(self, raw: Any) -> bool:
        """Whether a `RawClip` has it; where not, `read` fills in."""
        return True

    def tokenize(self, items: Sequence[Any], info: StreamInfo, encoders: Encoders) -> np.ndarray:
        """int32 [B, info.length]: codes of what `read` gave of each clip, -1 for what is not given."""
        return checked(np.asarray(encoders.networks[self.network].encode(np.stack(items))), info)

    # ----------------------------------------------------------------- of a request, and out of a model

    def read_file(self, path: str, clip: ClipSpec, frames: int = 0) -> np.ndarray:
        """Media of one sample from a user's file; `frames`: of a clip that it opens, 0 takes all of it.

        Raises UserError (`poet.media.MediaError`) for a file that does not give it.
        """
        raise UserError(f"{path}: a {self.title or self.name} is read from no file")

    def media_shape(self, network: Any, fmt: Format, latents: int | None = None) -> tuple[int, ...]:
        """Shape of the media of one sample that `encode` asks for, of which the first dim may be longer."""
        raise NotImplementedError(f"stream {self.name} is given as codes alone")

    def encode(
        self, network: Any, media: np.ndarray, fmt: Format, parts: int, latents: int | None = None
    ) -> np.ndarray:
        """int32 [N, parts * codes of each part]: what `network` makes of N samples' media.

        Args:
          media: [N, *dims], each dim as in `media_shape`, the first one at least.
          parts: those of `ids`.
          latents: latent frames of an output that the codes open (`known`); None takes all codes.

        Raises UserError for media of another shape.
        """
        shape = self.media_shape(network, fmt, latents)
        self.check_media(media, shape)
        return np.asarray(network.encode(media[:, : shape[0]]), np.int32).reshape(len(media), -1)

    def check_media(self, media: np.ndarray, shape: tuple[int, ...]) -> None:
        """Raises UserError unless all N media have this shape, or a longer first dim."""
        first, *others = shape
        if media.ndim != 1 + len(shape) or list(media.shape[2:]) != others or media.shape[1] < first:
            wanted = ", ".join(map(str, ("n", f"at least {first}", *others)))
            raise UserError(
                f"the given {self.medium} has shape {media.shape}, expected ({wanted}): resize or resample it to "
                "the checkpoint's clip format"
            )

    def detokenize(self, network: Any, codes_NxM: np.ndarray, fmt: Format) -> Any:
        """Media of N samples' codes by `network`: uint8 [N, T, H, W, 3], int16 [N, samples] or N texts."""
        return network.decode(codes_NxM.reshape(-1, *self.grid(fmt)))

    def encoder(self, network: Any, fmt: Format, parts: int, batch: int, latents: int | None = None) -> Traced:
        """`encode` of `batch` samples, of media as short as `media_shape`."""
        raise NotImplementedError

    def decoder(self, network: Any, fmt: Format, parts: int, batch: int) -> Traced:
        """`detokenize` of `batch` samples, of codes in the shape that the network takes."""
        raise NotImplementedError

    def write(self, item: Any, target: Target) -> list[Path]:
        """Writes the media of one sample, an element of what `detokenize` gives; returns its files."""
        raise NotImplementedError(f"stream {self.name} is written to no file")

    def record(self, item: Any) -> dict[str, Any]:
        """What `generation.json` says of the media of one sample."""
        return {}


def checked(codes: np.ndarray, info: StreamInfo) -> np.ndarray:
    """int32 [B, length] of codes that a stream declares; ValueError for others."""
    if codes.shape[1:] != info.grid:
        raise ValueError(f"the tokenizer gave {codes.shape}, its grid is {info.grid}")
    if codes.min() < 0 or codes.max() >= 2**info.bits:
        raise ValueError(f"the tokenizer gave codes outside [0, 2**{info.bits})")
    return codes.reshape(len(codes), -1).astype(np.int32)


def code_bits(codes: int) -> int:
    """Bits that hold any of so many codes.

    >>> code_bits(1024)
    10
    """
    return (codes - 1).bit_length()


def reach(name: str) -> Any:
    """What 'module:attribute' names, imported now: declarations load no network's packages."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
