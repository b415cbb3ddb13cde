"""Frozen tokenizers: what all of them share, and their folders of `model.safetensors`, `spec.json` and hashes."""

from __future__ import annotations

import abc
import dataclasses
import functools
import hashlib
import json
import logging
import pathlib
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Self

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from poet.checkpoints.weights import check_arrays, flatten, read_arrays, write_arrays
from poet.distributed.mesh import batch_sharding
from poet.models.declaration import Tree
from poet.runs import assets, manifest
from poet.runs.buckets import mirror
from poet.runs.run import SPEC, WEIGHTS
from poet.spec import AudioTokenizerSpec, Experiment, Spec, UserError, VideoTokenizerSpec, read_json, to_dict

_LOG = logging.getLogger(__name__)


_KINDS = {
    "a video tokenizer": VideoTokenizerSpec,
    "an audio tokenizer": AudioTokenizerSpec,
    "a language model": Experiment,
}
_NAMES = {cls: name for name, cls in _KINDS.items()}


class Steps(NamedTuple):
    """Coding of one clip or sound in chunks, as a pure function.

    Attributes:
      run: (weights, chunk, what the chunk before handed on) -> (output, what this one hands on); None before the first.
      weights: what it reads.
      first, following: shapes of the first chunk and of every other.
      dtype: of chunks.
    """

    run: Callable[[Tree, jax.Array, Any], tuple[jax.Array, Any]]
    weights: Tree
    first: tuple[int, ...]
    following: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenTokenizer(abc.ABC):
    """A trained tokenizer: its network, its weights and their fingerprint.

    Attributes:
      spec: the network; `path` plays no part in the fingerprint.
      params: nested dict of float32 arrays.
      fingerprint: 16 hex digits that name its codes: of SHA-256 over the spec and every weight, or that of the
        tokenizer whose encoder it has kept (`VideoTokenizerSpec.codes_of`); a token store keeps it.
      batch: most clips or sounds per call; a multiple of a mesh's batch shards is taken.
      mesh: devices that share the batch, each with all weights; None is the default device.
    """

    SPEC: ClassVar[type[Spec]]

    spec: Any
    params: Tree
    fingerprint: str
    batch: int = 16
    mesh: Mesh | None = None

    @classmethod
    @abc.abstractmethod
    def shapes(cls, spec: Any) -> Tree:
        """`jax.ShapeDtypeStruct` of every weight of a network."""

    @classmethod
    def from_params(cls, spec: Any, params: Tree, batch: int = 16, **options: Any) -> Self:
        """A tokenizer of these weights; `options` are the attributes after `batch`."""
        spec = spec.replace(path="")
        return cls(spec=spec, params=params, fingerprint=fingerprint(spec, params), batch=batch, **options)

    @classmethod
    def load(cls, folder: str | pathlib.Path, batch: int = 16, **options: Any) -> Self:
        """Reads what `save` wrote; `folder` is searched for as `find_pretrained` says.

        `options` are the attributes after `batch`.

        Raises UserError when it is missing or its arrays are not those of its spec.
        """
        folder = find_pretrained(folder)
        spec = load_spec(cls.SPEC, folder)
        return cls.from_params(spec, load_params(folder, cls.shapes(spec)), batch, **options)

    @classmethod
    def of(cls, spec: Any, batch: int = 16, **options: Any) -> Self:
        """The tokenizer at `spec.path`, run in `spec.dtype`; `options` as `load` takes them.

        Raises UserError when the path is empty or the rest of `spec` disagrees with the `spec.json` of the weights.
        """
        if not spec.path:
            raise UserError(f"{cls.SPEC.gin_name()}.path is empty: give the folder of a trained tokenizer")
        tokenizer = cls.load(spec.path, batch, **options)
        check_spec(spec, tokenizer.spec)
        return tokenizer.in_dtype(spec.dtype)

    def in_dtype(self, dtype: str) -> Self:
        """The same weights run in another dtype; the quantizer stays float32.

        Its codes are not quite the same, so the fingerprint is another one.
        """
        if dtype == self.spec.dtype:
            return self
        spec = self.spec.replace(dtype=dtype)
        return dataclasses.replace(self, spec=spec, fingerprint=fingerprint(spec, self.params))

    def save(self, folder: str | pathlib.Path, dtype: str = "float32") -> None:
        """Writes `model.safetensors` in `dtype` and `spec.json` (made if missing)."""
        save(folder, self.spec, self.params, dtype)

    @functools.cached_property
    def decoder_fingerprint(self) -> str:
        """16 hex digits of a decoder that was trained after its encoder; '' where `fingerprint` covers both."""
        return digest(self.spec, self.params) if getattr(self.spec, "codes_of", "") else ""

    @functools.cached_property
    def weights(self) -> Tree:
        """The weights where they are used; from the host they would be sent with every call."""
        return jax.device_put(self.params, self.mesh and NamedSharding(self.mesh, PartitionSpec()))

    def placed(self, block: Any) -> Any:
        """An array of batch rows (or None), on the devices that share the batch."""
        return jax.device_put(block, self.mesh and batch_sharding(self.mesh))


def save(folder: str | pathlib.Path, spec: Spec, params: Tree, dtype: str | None = "float32") -> None:
    """Writes weights, their spec without its path, and a manifest of both into `folder`.

    `dtype` None keeps the one of each weight.  The folder is made if missing; other files in it stay.

    Raises UserError when a weight is not finite.
    """
    folder, arrays = pathlib.Path(folder), flatten(params)
    check_arrays(arrays, arrays, "the tokenizer to be written")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / manifest.NAME).unlink(missing_ok=True)
    write_arrays(folder / WEIGHTS, arrays, dtype)
    text = json.dumps(to_dict(spec.replace(path="")), indent=2)
    (folder / SPEC).write_text(text + "\n")
    manifest.write(folder, {"kind": "tokenizer"}, [WEIGHTS, SPEC])


def verify(folder: str | pathlib.Path) -> None:
    """Raises `manifest.Corrupt` where a file of a frozen network is not as its manifest lists it.

    A folder without a manifest (written before there was one) is taken as it is, with a warning.
    """
    folder = pathlib.Path(folder)
    if (folder / manifest.NAME).exists():
        manifest.check_listed(folder)
    else:
        _warn_of(folder.absolute())


@functools.cache
def _warn_of(folder: pathlib.Path) -> None:
    """Once for a folder, however often it is loaded."""
    _LOG.warning("%s has no %s: damage cannot be detected", folder, manifest.NAME)


def load_spec(cls: type, folder: str | pathlib.Path) -> Any:
    """The spec of a folder that `find_pretrained` found, after `verify`.

    Raises UserError when the folder is damaged or holds another thing.
    """
    verify(folder)
    file = pathlib.Path(folder) / SPEC
    try:
        return read_json(cls, file)
    except UserError as error:
        for name, other in _KINDS.items():
            if other is not cls and _reads_as(other, file):
                raise UserError(
                    f"{folder} holds {name}, where {_NAMES[cls]} is needed ({cls.gin_name()}.path)"
                ) from None
        raise UserError(f"{folder} holds no frozen {cls.gin_name()}: {error}") from None


def as_loaded(experiment: Experiment) -> Experiment:
    """The experiment with the video tokenizer that is loaded for it: that of the folder, whose decoder may be later."""
    spec = experiment.video_tokenizer
    if not spec.path:
        return experiment
    stored = load_spec(VideoTokenizerSpec, find_pretrained(spec.path))
    return experiment.replace(video_tokenizer=stored.replace(path=spec.path, dtype=spec.dtype))


def _reads_as(cls: type, file: pathlib.Path) -> bool:
    try:
        read_json(cls, file)
    except UserError:
        return False
    return True


def load_params(folder: str | pathlib.Path, expected: Tree) -> Tree:
    """Reads float32 weights of the names and shapes of `expected`; the folder is verified already.

    Raises UserError when arrays are missing, unknown, of another shape, not of floating numbers or not
    finite.
    """
    file = pathlib.Path(folder) / WEIGHTS
    shapes, arrays = flatten(expected), read_arrays(file)
    check_arrays(arrays, shapes, str(file))
    leaves = [np.asarray(arrays[name], np.float32) for name in shapes]
    return jax.tree.unflatten(jax.tree.structure(expected), leaves)


def check_spec(asked: Spec, stored: Spec) -> None:
    """Raises UserError when a run's spec is not that of the weights at its `path`.

    The dtype is the run's to choose; it is part of the fingerprint, since it changes codes.
    """
    given, kept = to_dict(asked), to_dict(stored)
    for field in sorted(kept.keys() - {"path", "dtype", "codes_of", *getattr(stored, "DECODER", ())}):
        if given[field] != kept[field]:
            raise UserError(
                f"{asked.gin_name()}.{field} = {given[field]} but the weights in {asked.path} were "
                f"trained with {kept[field]}; include the gin file of that tokenizer"
            )


def find_pretrained(folder: str | pathlib.Path) -> pathlib.Path:
    """Resolves a folder against the current one, then the shipped files and `data/pretrained/`; or copies a URL's."""
    candidates = assets.places(mirror.local(folder, "the folder of a frozen network"))
    for candidate in candidates:
        if (candidate / SPEC).is_file() and (candidate / WEIGHTS).is_file():
            return candidate
    places = ", ".join(str(c) for c in dict.fromkeys(candidates))
    raise UserError(f"no tokenizer weights ({WEIGHTS} and {SPEC}) in any of: {places}")


def fingerprint(spec: Spec, params: Tree) -> str:
    """16 hex digits that name the codes of a network: `digest`, or what the tokenizer had whose encoder it kept."""
    if kept := getattr(spec, "codes_of", ""):
        return kept if spec.dtype == "float32" else hashlib.sha256(f"{kept} {spec.dtype}".encode()).hexdigest()[:16]
    return digest(spec, params)


def digest(spec: Spec, params: Tree) -> str:
    """16 hex digits that change with the spec (but for `path`), a name, a shape or any weight.

    A field of `spec.ADDED_LATER` counts only when it differs from its default, so that a new field changes
    no fingerprint that a token store already keeps.
    """
    fields, defaults = to_dict(spec.replace(path="")), to_dict(type(spec)())
    for name in spec.ADDED_LATER:
        if fields[name] == defaults[name]:
            del fields[name]
    found = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for name, array in sorted(flatten(params).items()):
        found.update(f"{name}{array.shape}{array.dtype}".encode())
        found.update(np.asarray(array).tobytes())
    return found.hexdigest()[:16]
