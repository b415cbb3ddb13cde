"""The inputs of metrics: a checkpoint, a token store, raw clips, a tokenizer; each opened once.

Shape suffixes: N clips, T frames, H height, W width, 3 colour channels.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from poet.checkpoints import checkpoint
from poet.data.checks import check, networks_of
from poet.distributed import mesh as mesh_lib
from poet.evaluation import likelihood
from poet.evaluation.condition_gain import kinds
from poet.models.transformer import Model, Params, build_model
from poet.runs import networks
from poet.runs.run import Run
from poet.sampling.generate import Generator
from poet.spec import Experiment, UserError
from poet.store.manifest import Manifest
from poet.store.merge import DUPLICATE_KEY
from poet.store.raw import RawClip, origin, usable
from poet.store.reader import dataset
from poet.store.sources import open_source
from poet.tasks.registry import get_task
from poet.tasks.resolved import Resolved
from poet.tokenizers.audio.base import AudioTokenizer
from poet.tokenizers.video.base import VideoTokenizer

_LOG = logging.getLogger(__name__)

STORE, SOURCE, TOKENIZER, EXAMPLES = "store", "source", "tokenizer", "examples"
OTHERS = "others"
PREDICTION = "frame_prediction"


@dataclasses.dataclass(frozen=True)
class Resources:
    """Lazily opened parts of an evaluation.

    Attributes:
      run: its `checkpoint` is evaluated.
      resolved: its spec, with what the user changed, and what follows from it.
      out: folder for pictures.
    """

    run: Run
    resolved: Resolved
    out: Path

    @property
    def experiment(self) -> Experiment:
        """The spec."""
        return self.resolved.spec

    def lacks(self, need: str) -> str | None:
        """Why a need cannot be met, or None.  A task's name needs a positive rate in the mixture."""
        e = self.experiment
        if need == STORE:
            return None if e.data.store else "DATA.store is empty"
        if need == SOURCE:
            return None if self.source_path else self._no_source()
        if need == TOKENIZER:
            return None if e.video_tokenizer.path else "VIDEO_TOKENIZER.path is empty"
        if need == OTHERS:
            return self._no_others()
        if need == EXAMPLES:
            return None if e.eval.examples else "EVAL.examples is False"
        get_task(need)
        trained = e.data.mixture_rates.get(need, 0) > 0
        return None if trained else f"the checkpoint was not trained on {need} (DATA.mixture_rates)"

    @functools.cached_property
    def source_path(self) -> str:
        """EVAL.source or STORE.source, else what the store was made from, if that is still there."""
        given = self.experiment.eval.source or self.experiment.store.source
        if given or self.lacks(STORE):
            return given
        made_from = self.manifest.source
        return made_from if Path(made_from).exists() else ""

    def _no_source(self) -> str:
        if self.lacks(STORE):
            return "EVAL.source and STORE.source are empty"
        return f"EVAL.source is empty, and {self.manifest.source}, which the store was made from, is not there"

    def _no_others(self) -> str | None:
        """Why no clip can be scored with another one's condition, or None."""
        spec = self.experiment.eval
        if not spec.gain_clips:
            return "EVAL.gain_clips is 0"
        if not any(kinds(self.resolved, task) for task in self.resolved.mixture):
            return "no task of DATA.mixture_rates has a condition"
        if not self.lacks(STORE) and self.gain_batches * spec.batch == 1:
            return (
                "a single clip has no other clip's condition: set EVAL.gain_clips and "
                f"EVAL.batch so that two or more of split {spec.split!r} are taken"
            )
        return None

    @property
    def gain_batches(self) -> int:
        """Batches of EVAL.batch that hold EVAL.gain_clips clips, as far as the split has them."""
        spec = self.experiment.eval
        split = self.manifest.splits.get(spec.split)
        return min(-(-spec.gain_clips // spec.batch), split.clips // spec.batch if split else 0)

    @functools.cached_property
    def dropped(self) -> frozenset[str]:
        """Keys of the split's clips that the store skipped; their pixels are not scored either."""
        if self.lacks(STORE) or not _same(self.manifest.source, self.source_path):
            return frozenset()
        split = self.manifest.splits.get(self.experiment.eval.split)
        skipped = split.skipped if split else ()
        return frozenset(clip.key for clip in skipped if clip.reason != DUPLICATE_KEY)

    def check(self) -> None:
        """Opens everything that is configured, so that mistakes are found before any device work."""
        for task in self.resolved.mixture:
            self.resolved.eval_latents(task)
        if not self.lacks(TOKENIZER):
            self.tokenizer  # noqa: B018
        if not self.lacks(STORE):
            self.manifest  # noqa: B018
            likelihood.check_feeds(self.resolved, self.manifest, self.mesh)
        if not self.lacks(SOURCE):
            self.source  # noqa: B018

    # ------------------------------------------------------------------------------------- codes

    @functools.cached_property
    def manifest(self) -> Manifest:
        """The manifest of DATA.store, which must fit the experiment and its tokenizer."""
        e = self.experiment
        # One clip a batch: how many EVAL.batch needs is checked against its own split.
        data = e.data.replace(batch=1, equal_tokens=False)
        manifest = check(Resolved(e.replace(data=data)), fingerprints=self._fingerprints(), split=e.eval.split)
        made = networks_of(self.resolved, manifest)
        # Likelihoods are those of any split of any store that the same networks made.
        self._expect({name: value for name, value in made.items() if name != networks.STORE})
        return manifest

    def _fingerprints(self) -> dict[str, str]:
        """Fingerprints of the tokenizers that are configured and that the mixture uses."""
        found = {} if self.lacks(TOKENIZER) else {networks.VIDEO: self.tokenizer.fingerprint}
        return found | ({networks.AUDIO: self.audio_tokenizer.fingerprint} if self.resolved.has_audio else {})

    def clip_names(self, count: int) -> tuple[list[str], list[str]]:
        """Keys and captions of the leading clips of EVAL.split in the store."""
        e = self.experiment
        read = dataset(e.data.store, e.eval.split).take(count).as_numpy_iterator()
        names = [(clip["key"].decode(), clip["caption"].decode()) for clip in read]
        return [key for key, _ in names], [caption for _, caption in names]

    @functools.cached_property
    def tokenizer(self) -> VideoTokenizer:
        found = VideoTokenizer.of(self.experiment.video_tokenizer)
        self._expect({networks.VIDEO: found.fingerprint})
        return found

    @functools.cached_property
    def audio_tokenizer(self) -> AudioTokenizer:
        found = AudioTokenizer.of(self.experiment.audio_tokenizer)
        self._expect({networks.AUDIO: found.fingerprint})
        return found

    @functools.cached_property
    def made_with(self) -> dict[str, str]:
        """Fingerprints of the networks that the checkpoint was trained with; {} where it does not say."""
        found = self.run.checkpoint.networks
        networks.check(found, {}, what=str(self.run.checkpoint.path))
        return found or {}

    def _expect(self, ours: networks.Networks) -> None:
        networks.check(self.made_with, ours, what=f"the model in {self.run.checkpoint.path}")

    # ------------------------------------------------------------------------------------- clips

    @functools.cached_property
    def source(self) -> Any:
        e = self.experiment
        source = open_source(self.source_path, e.eval.split, e.clip)
        if not len(source):
            raise UserError(f"split {e.eval.split!r} of {self.source_path} holds no clips")
        return source

    @functools.cached_property
    def clips(self) -> list[RawClip]:
        """EVAL.clips clips of the split, spread evenly over it.

        Those that cannot be read, or that the store skipped, are absent, and are logged.
        """
        count = min(self.experiment.eval.clips, len(self.source))
        places = [len(self.source) * i // count for i in range(count)]
        items = itertools.chain.from_iterable(self.source.read(i, i + 1) for i in places)
        read = list(usable(items))
        # Whole files are read here; where the store cut them, the clip is the first of its file.
        clips = [c for c in read if not {c.key, f"{c.key}#0"} & self.dropped]
        if len(clips) < len(read):
            _LOG.warning("%d of %d clips are not scored, as the store skipped them", len(read) - len(clips), len(read))
        if not clips:
            raise UserError(f"none of the {count} clips tried in {self.source_path} can be read")
        return clips

    @functools.cached_property
    def videos(self) -> np.ndarray:
        """uint8 [N, T, H, W, 3] of `clips`."""
        return np.stack([clip.video for clip in self.clips])

    @property
    def origins(self) -> list[str]:
        """The film, map or episode of each of `clips`."""
        return [origin(clip.key) for clip in self.clips]

    @functools.cached_property
    def reconstructions(self) -> np.ndarray:
        """uint8 [N, T, H, W, 3]: `videos` as codes and back."""
        return self.tokenizer.decode(self.tokenizer.encode(self.videos))

    # ---------------------------------------------------------------------------- what is measured

    @property
    def examples_of_store(self) -> str:
        """Fingerprint of the codes that likelihoods are of: equal where checkpoints score the same examples."""
        e = self.experiment
        codes = {name: self.manifest.networks.get(name) for name in networks.MODEL}
        clips = self.manifest.identity(e.eval.split)
        return _fingerprint([clips, codes, e.eval.batch, e.eval.conditioning_frames, e.train.loss_vocabulary])

    @property
    def examples_of_source(self) -> str:
        """Fingerprint of `clips`."""
        return _fingerprint([self.source.fingerprint, [clip.key for clip in self.clips], repr(self.experiment.clip)])

    @property
    def data(self) -> dict[str, str]:
        """Fingerprints of the data and of the tokenizers that are configured, opened by `check`."""
        found = {} if self.lacks(STORE) else {STORE: self.manifest.identity(self.experiment.eval.split)}
        found |= {} if self.lacks(SOURCE) else {SOURCE: self.source.fingerprint}
        return found | self._fingerprints()

    # ------------------------------------------------------------------------------------- model

    @functools.cached_property
    def mesh(self) -> Mesh:
        return mesh_lib.build(self.experiment.mesh)

    @functools.cached_property
    def model(self) -> Model:
        return build_model(self.resolved)

    def load_params(self) -> Params:
        """The parameters of the checkpoint, sharded over the mesh as in training; not cached."""
        axes, shapes = self.model.axes(), self.model.abstract()
        rules = mesh_lib.Rules()
        rules.check(self.mesh, axes, shapes)
        abstract = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, rules.shardings(self.mesh, axes)
        )
        return checkpoint.load_params(self.run, abstract)

    @functools.cached_property
    def generator(self) -> Generator:
        """Samples on one device."""
        params = checkpoint.load_params(self.run, self.model.abstract())
        loaded = {networks.VIDEO: self.tokenizer}
        return Generator(self.resolved, params, loaded, self.made_with)

    @property
    def conditioning_frames(self) -> int:
        """Conditioning frames of frame prediction."""
        return self.resolved.frames_of(self.resolved.eval_latents(get_task(PREDICTION)))

    @functools.cached_property
    def predictions(self) -> np.ndarray:
        """uint8 [N, K, T, H, W, 3]: K ways in which the model continues each of `videos`."""
        e = self.experiment
        sampled = self.generator.generate(
            PREDICTION,
            media={"video": self.videos},
            conditioning_frames=self.conditioning_frames,
            sample=e.sample.replace(temperature=e.eval.temperature),
            batch=e.eval.batch,
            count=e.eval.samples,
        ).video
        return sampled.reshape(-1, e.eval.samples, *sampled.shape[1:])


def _fingerprint(what: Any) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def _same(one: str, other: str) -> bool:
    """Whether two paths name one folder; URLs are compared as they are."""
    return one == other or (os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other))
