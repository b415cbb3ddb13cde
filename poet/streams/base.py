"""The interface of token streams, and the sizes that it depends on.

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
# The suffix of a stream's name where it is a condition.
GIVEN = "_in"
# The local code of hidden cells of a condition.
HIDDEN = -1

Grid = tuple[int, int, int]


class Target(NamedTuple):
    """The target of writing the media of one sample.

    stem: folder and name of the files, without a suffix.
    clip: has the frame rate and the sample rate.
    sample: all media of the sample, by `medium`.
    formats: suffixes without a dot; a stream writes those that it supports; () means its usual ones.
    comment: metadata of every file.
    original: the file whose frames the sound was generated for; '' is none.
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
      text_length: positions reserved for text states.
      portrait: whether `<res>` is emitted (VideoPoet: only for 128x224).
      long: whether `<duration>` is emitted; its absence means clips of 17 frames or less, as the absence of
        `<res>` means square ones.  An image has those of the clip that it opens.
      pieces_length: text tokens of a generated text; 0 if the run generates none.
      audio_time: time of the first audio frame on the axis of latent frames, and the step to the next.
      known_audio: audio frames within the time of 0, 1, 2... latent frames; () if the run has no audio.
      opening_audio: whether conditioning sound that opens an output with frames stands in the prefix too.
      clip: frames, size and rates of the clips.
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
    """The stored codes of one stream: their grid, ids in [0, 2**bits), and the fingerprint of their tokenizer.

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

    `conditioning` has the settings of derived conditions.
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
    """One stream of tokens: its layout, codes, storage, media and names.

    A subclass overrides what differs from a grid of visual codes.  Methods take plain specs and arrays;
    only those that run a network import large packages.

    Attributes:
      name: in tasks, and in layouts; there a condition is called `<name>_in`.
      title: name for people, as a condition.
      slot: the stream that it replaces in layouts; '' for its own.
      bare: whether a condition has the bare name in layouts.
      network: name of the frozen network that makes its codes (`poet.runs.networks`).
      section: of the experiment (such as 'video_tokenizer') that has the path of its network; '' for none.
      base: whether every store has it if the run supports it (`lacking`); others are made for the tasks that use
        them.
      setting: the setting with which a store has it; '' if only its tasks decide.
      stored: feature of a token store with its codes; None if nothing is stored.
      flag: feature of a store, 1 or 0, whether a clip has it; '' if every clip has it.
      medium: what is encoded and decoded: 'video' (frames), 'audio', 'text' or another; '' for nothing.
      stage: of `poet.store.stages`, for the time of its encoding.
      marks: letter of its boundary tokens, as in `<bov_i>`; '' for none.
      closes: whether an output ends with a boundary token; one that does not may open a longer one.
      shows_latents: latent frames of the clip that it reveals at least, as a condition.
      opens: the output stream whose opening codes it repeats in the condition.
      levels: whether its parts are counted separately.
      identifies: whether clips with equal codes of this stream are copies.
      constant: whether, as a condition, it is the same for every clip.
      exports: whether its network can be a program of an export (`encoder`, `decoder`).
      colour: in pictures of layouts.
      formats: suffixes of the files that `write` can write.
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
        """Whether it holds frames, so that tokens of size and duration precede it."""
        return self.medium == "video"

    # ------------------------------------------------------------------------------- in a layout

    def called(self, role: str) -> str:
        """Its name in layouts."""
        return (self.slot or self.name) + (GIVEN if role == CONDITION and not self.bare else "")

    def boundaries(self, role: str) -> tuple[Special, ...]:
        """The tokens before and after it; only the first if nothing closes it, () for none."""
        if not self.marks:
            return ()
        end = "I" if role == CONDITION else "O"
        found = Special[f"BO{self.marks}_{end}"], Special[f"EO{self.marks}_{end}"]
        return found if self.closes or role == CONDITION else found[:1]

    def ids(self, vocabulary: Vocabulary) -> tuple[Range, ...]:
        """Legal ids of each of its parts, in order."""
        return (vocabulary.visual,)

    def grid(self, fmt: Format, known: int = 0) -> Grid:
        """(t, h, w) of a part; `known`: the most conditioning latent frames of the task's output."""
        return fmt.video

    def lacking(self, fmt: Format) -> str:
        """Why a run does not support it, as 'needs ... : set ...'; '' if it does."""
        return ""

    def time(self, fmt: Format) -> tuple[float, float] | None:
        """Time of its first position on the axis of latent frames, and the step; None if `places` has the times."""
        return None

    def places(self, segment: Any) -> np.ndarray | None:
        """Rotary positions [length, 3] in (t, h, w) of a `Segment`; None: it has no place and time.

        The same place of the same clip has the same position in all streams.
        """
        return np.indices(segment.grid).reshape(3, -1).T

    def known(self, fmt: Format, latents: int) -> int:
        """Conditioning codes at the start of each part of an output with so many conditioning latent frames."""
        return 0

    # -------------------------------------------------------------------------------- in a store

    def load(self, spec: Any, vocabulary: VocabularySpec, mesh: Any = None) -> Any:
        """The frozen network of the spec `section`; on a mesh or one device.

        Raises UserError if there is none, or its codes exceed the vocabulary.
        """
        raise NotImplementedError(f"stream {self.name} has no network of its own")

    def info(self, clip: ClipSpec, encoders: Encoders) -> StreamInfo:
        """Its entry in the manifest of a store.  Raises UserError if its network does not fit the clips."""
        raise NotImplementedError

    def check(self, clip: ClipSpec, encoders: Encoders, *, has_depth: bool) -> None:
        """Raises UserError if it cannot be made from a source's clips; `has_depth`: they have depth."""

    def expected(
        self, fmt: Format, vocabulary: VocabularySpec, conditioning: ConditioningSpec, fingerprints: Mapping[str, str]
    ) -> dict[str, Any]:
        """Fields of `StreamInfo` that a run needs; `fingerprints` of networks: absent ones are not compared."""
        return {"fingerprint": fingerprints.get(self.network)}

    def read(self, raw: Any, clip: ClipSpec, encoders: Encoders) -> Any:
        """The part of a `RawClip` that its network encodes."""
        return raw.video

    def has(self, raw: Any) -> bool:
        """Whether a `RawClip` has it; if not, `read` returns a substitute."""
        return True

    def tokenize(self, items: Sequence[Any], info: StreamInfo, encoders: Encoders) -> np.ndarray:
        """int32 [B, info.length]: codes of the results of `read`, -1 for hidden cells."""
        return checked(np.asarray(encoders.networks[self.network].encode(np.stack(items))), info)

    # ----------------------------------------------------------------- of a request, and out of a model

    def read_file(self, path: str, clip: ClipSpec, frames: int = 0) -> np.ndarray:
        """Media of one sample from a user's file; `frames`: conditioning frames, 0 reads a whole clip.

        Raises UserError (`poet.media.MediaError`) for a file that lacks it.
        """
        raise UserError(f"{path}: a {self.title or self.name} cannot be read from a file")

    def media_shape(self, network: Any, fmt: Format, latents: int | None = None) -> tuple[int, ...]:
        """Shape of the media of one sample for `encode`; the first dim may be longer."""
        raise NotImplementedError(f"stream {self.name} is encoded by no network")

    def encode(
        self, network: Any, media: np.ndarray, fmt: Format, parts: int, latents: int | None = None
    ) -> np.ndarray:
        """int32 [N, parts * codes of each part]: the codes of N samples' media by `network`.

        Args:
          media: [N, *dims], dims as in `media_shape`, the first at least that long.
          parts: those of `ids`.
          latents: conditioning latent frames of an output (`known`); None returns all codes.

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
                f"the conditioning {self.medium} has shape {media.shape}, expected ({wanted}): resize or resample it "
                "to the checkpoint's clip format"
            )

    def detokenize(self, network: Any, codes_NxM: np.ndarray, fmt: Format) -> Any:
        """Media of N samples' codes by `network`: uint8 [N, T, H, W, 3], int16 [N, samples] or N texts."""
        return network.decode(codes_NxM.reshape(-1, *self.grid(fmt)))

    def encoder(self, network: Any, fmt: Format, parts: int, latents: int | None = None) -> Traced:
        """`encode` of media as short as `media_shape`, of any number of samples."""
        raise NotImplementedError

    def decoder(self, network: Any, fmt: Format, parts: int) -> Traced:
        """`detokenize` of codes in the shape that the network takes, of any number of samples."""
        raise NotImplementedError

    def write(self, item: Any, target: Target) -> list[Path]:
        """Writes the media of one sample, an element of the result of `detokenize`; returns its files."""
        raise NotImplementedError(f"stream {self.name} cannot be written to a file")

    def record(self, item: Any) -> dict[str, Any]:
        """Fields of `generation.json` for the media of one sample."""
        return {}


def checked(codes: np.ndarray, info: StreamInfo) -> np.ndarray:
    """Codes as int32 [B, length]; ValueError unless they have the declared grid and range."""
    if codes.shape[1:] != info.grid:
        raise ValueError(f"the tokenizer gave {codes.shape}, its grid is {info.grid}")
    if codes.min() < 0 or codes.max() >= 2**info.bits:
        raise ValueError(f"the tokenizer gave codes outside [0, 2**{info.bits})")
    return codes.reshape(len(codes), -1).astype(np.int32)


def code_bits(codes: int) -> int:
    """Bits of an id of so many codes.

    >>> code_bits(1024)
    10
    """
    return (codes - 1).bit_length()


def reach(name: str) -> Any:
    """Imports 'module:attribute' when it is used, so that declarations load no network's packages."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
