"""A frozen video tokenizer: uint8 clips to integer grids and back, with a fingerprint.

Shape legend: B batch, T H W pixels, t h w latents.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Callable

import jax
import jax.numpy as jnp
import numpy as np

from poet import assets
from poet.specs import UserError, VideoTokenizerSpec, from_dict, to_dict
from poet.tokenizers import lfq, magvit
from poet.tokenizers.layers import Tree
from poet.weights import write_arrays

WEIGHTS, SPEC = "model.safetensors", "spec.json"

# Fields that weights were fingerprinted without before they existed.
FIELDS_ADDED_LATER = ("temporal_kernel",)


@functools.partial(jax.jit, static_argnums=0)
def _encode(spec: VideoTokenizerSpec, params: Tree, video_BxTxHxWx3: jax.Array) -> jax.Array:
    z = magvit.encode(spec, params, video_BxTxHxWx3.astype(jnp.float32) / 255.0)
    return lfq.quantize(z)[1]


@functools.partial(jax.jit, static_argnums=0)
def _decode(spec: VideoTokenizerSpec, params: Tree, ids_Bxtxhxw: jax.Array) -> jax.Array:
    pixels = magvit.decode(spec, params, lfq.ids_to_bits(ids_Bxtxhxw, spec.bits))
    return jnp.round(jnp.clip(pixels, 0.0, 1.0) * 255.0).astype(jnp.uint8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoTokenizer:
    """Encodes and decodes in sub-batches of at most `batch` clips, so that few shapes compile.

    Attributes:
      spec: the network; `path` plays no part in the fingerprint.
      params: nested dict of float32 arrays, as `magvit.declare`.
      fingerprint: 16 hex digits of SHA-256 over the spec and every weight; a token store keeps it.
    """

    spec: VideoTokenizerSpec
    params: Tree
    fingerprint: str
    batch: int = 16

    @classmethod
    def from_params(
        cls, spec: VideoTokenizerSpec, params: Tree, batch: int = 16
    ) -> VideoTokenizer:
        spec = spec.replace(path="")
        return cls(spec=spec, params=params, fingerprint=fingerprint(spec, params), batch=batch)

    @property
    def codes(self) -> int:
        """Size of the codebook."""
        return 2**self.spec.bits

    def encode(self, video_BxTxHxWx3: np.ndarray) -> np.ndarray:
        """uint8 clips (B, T, H, W, 3) -> int32 ids (B, t, h, w) in 0..codes-1.

        Raises UserError on another dtype or rank, or a size the network cannot take.
        """
        video = np.asarray(video_BxTxHxWx3)
        if video.dtype != np.uint8 or video.ndim != 5 or video.shape[-1] != magvit.RGB:
            raise UserError(
                f"a batch of clips has dtype {video.dtype} and shape {video.shape}: expected "
                "uint8 (batch, frames, height, width, 3); pixels are 0..255, not 0..1"
            )
        self.spec.grid(*video.shape[1:4])
        return self._in_batches(functools.partial(_encode, self.spec, self.params), video)

    def decode(self, ids_Bxtxhxw: np.ndarray) -> np.ndarray:
        """Integer ids (B, t, h, w) -> uint8 clips (B, T, H, W, 3).

        Raises UserError on another rank, on ids that are not integers or outside the codebook.
        """
        ids = np.asarray(ids_Bxtxhxw)
        if not np.issubdtype(ids.dtype, np.integer) or ids.ndim != 4:
            raise UserError(
                f"codes have dtype {ids.dtype} and shape {ids.shape}: expected integers "
                "(batch, t, h, w)"
            )
        if ids.size and (ids.min() < 0 or ids.max() >= self.codes):
            raise UserError(
                f"codes lie in {ids.min()}..{ids.max()}: this tokenizer knows 0..{self.codes - 1}; "
                "subtract the vocabulary offset of the visual range first"
            )
        ids = ids.astype(np.int32)
        return self._in_batches(functools.partial(_decode, self.spec, self.params), ids)

    def _in_batches(self, run: Callable[[np.ndarray], jax.Array], items: np.ndarray) -> np.ndarray:
        """Pads the last sub-batch; a short input runs at the next power of two."""
        count = len(items)
        size = min(self.batch, 1 << max(count - 1, 0).bit_length())
        padded = np.concatenate([items, np.repeat(items[-1:], -count % size, axis=0)])
        pending = [run(padded[i : i + size]) for i in range(0, max(len(padded), 1), size)]
        return np.concatenate([np.asarray(p) for p in pending])[:count]

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes `model.safetensors` and `spec.json` (made if missing)."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_arrays(folder / WEIGHTS, _flatten(self.params))
        text = json.dumps(to_dict(self.spec.replace(path="")), indent=2)
        (folder / SPEC).write_text(text + "\n")

    @classmethod
    def load(cls, folder: str | pathlib.Path, batch: int = 16) -> VideoTokenizer:
        """Reads what `save` wrote; `folder` is searched for as `find_pretrained` says.

        Raises UserError when it is missing or its arrays are not those of its spec.
        """
        from safetensors.numpy import load_file

        folder = find_pretrained(folder)
        spec = from_dict(VideoTokenizerSpec, json.loads((folder / SPEC).read_text()))
        expected = _flatten(jax.eval_shape(lambda: magvit.init(spec, jax.random.key(0))))
        arrays = load_file(folder / WEIGHTS)
        wrong = sorted(
            name
            for name in expected.keys() | arrays.keys()
            if name not in arrays
            or name not in expected
            or arrays[name].shape != expected[name].shape
        )
        if wrong:
            raise UserError(
                f"{folder / WEIGHTS} does not hold the network of {folder / SPEC}: "
                f"{len(wrong)} arrays missing, unknown or of another shape, first {wrong[0]!r}"
            )
        return cls.from_params(spec, _unflatten(arrays), batch)


def load_video_tokenizer(spec: VideoTokenizerSpec, batch: int = 16) -> VideoTokenizer:
    """The frozen tokenizer at `spec.path`; the rest of `spec` must agree with its `spec.json`."""
    if not spec.path:
        raise UserError("VIDEO_TOKENIZER.path is empty: give the folder of a trained tokenizer")
    tokenizer = VideoTokenizer.load(spec.path, batch)
    asked, stored = to_dict(spec), to_dict(tokenizer.spec)
    for field in sorted(stored.keys() - {"path", "dtype"}):
        if asked[field] != stored[field]:
            raise UserError(
                f"VIDEO_TOKENIZER.{field} = {asked[field]} but the weights in {spec.path} were "
                f"trained with {stored[field]}; include the gin file of that tokenizer"
            )
    return tokenizer


def find_pretrained(folder: str | pathlib.Path) -> pathlib.Path:
    """Resolves a folder against the current one, then the shipped files and `data/pretrained/`."""
    bases = (pathlib.Path.cwd(), assets.root(), assets.root() / "data" / "pretrained")
    candidates = [base / folder for base in bases]
    for candidate in candidates:
        if (candidate / SPEC).is_file() and (candidate / WEIGHTS).is_file():
            return candidate
    places = ", ".join(str(c) for c in dict.fromkeys(candidates))
    raise UserError(f"no tokenizer weights ({WEIGHTS} and {SPEC}) in any of: {places}")


def fingerprint(spec: VideoTokenizerSpec, params: Tree) -> str:
    """16 hex digits that change with the spec (but for `path`), a name, a shape or any weight.

    A field added later counts only when it differs from its default, so that a new field changes
    no fingerprint that a token store already keeps.
    """
    fields, defaults = to_dict(spec.replace(path="")), to_dict(VideoTokenizerSpec())
    for name in FIELDS_ADDED_LATER:
        if fields[name] == defaults[name]:
            del fields[name]
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for name, array in sorted(_flatten(params).items()):
        digest.update(f"{name}{array.shape}{array.dtype}".encode())
        digest.update(np.asarray(array).tobytes())
    return digest.hexdigest()[:16]


def _flatten(params: Tree, prefix: str = "") -> dict[str, np.ndarray]:
    flat: dict[str, np.ndarray] = {}
    for name, value in params.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _unflatten(flat: dict[str, np.ndarray]) -> Tree:
    tree: dict = {}
    for name, value in flat.items():
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree
