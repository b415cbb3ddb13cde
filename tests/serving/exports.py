"""What tests of exports share: networks that can be exported, and a process in which few packages can be imported."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "sampling"))

import tiny  # noqa: E402

from poet.models import superres, transformer  # noqa: E402
from poet.sampling import masked  # noqa: E402
from poet.sampling.generate import Generator  # noqa: E402
from poet.sampling.superres import Upscaler  # noqa: E402
from poet.serving import export as exporting  # noqa: E402
from poet.serving.written import BLANK  # noqa: E402
from poet.spec import DataSpec, ExportSpec, ModelSpec, SampleSpec, SuperResolutionSpec, TextSpec  # noqa: E402
from poet.tasks.resolved import Resolved  # noqa: E402
from poet.tokenizers import text as text_lib  # noqa: E402
from poet.tokenizers.pieces import Pieces  # noqa: E402

WORDS = ["the", "player", "walks", "forward", "a", "red", "door", "dull"]
# Packages that the runtime may import, and what these import themselves.
NEEDED = ("jax", "jaxlib", "numpy", "safetensors", "tokenizers", "scipy", "ml_dtypes", "opt_einsum", "flatbuffers")
CLIENT = """
import importlib.machinery, sys
class OnlyNeeded(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        found = super().find_spec(name, path, target)
        allowed = name.partition(".")[0] in NEEDED + ("poet",)
        if found and not allowed and "site-packages" in str(found.origin or found.submodule_search_locations):
            raise ModuleNotFoundError(f"{name} is blocked")
        return found
sys.meta_path[:] = [OnlyNeeded if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
from poet.serving import runtime
runtime.main(sys.argv[1:])
own = {m for m in sys.modules if m.startswith("poet.")}
assert not [m for m in own if m.startswith(("poet.models", "poet.media", "poet.training", "poet.checkpoints"))], own
"""


class TinyText:
    """A text encoder: a table of random states, and a vocabulary of whole words."""

    name, fingerprint, controls = "tiny", "tiny-text", 0
    length, width = tiny.EXPERIMENT.text.length, tiny.TEXT_WIDTH

    def __init__(self) -> None:
        words = {word: number for number, word in enumerate(["[UNK]", *WORDS])}
        self.tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
        self.tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        rows = np.random.default_rng(3).normal(size=(len(words), self.width))
        self.params = {"rows": jnp.asarray(rows, jnp.float32)}

    def traced(self) -> Any:
        return _states, self.params

    def save_pieces(self, folder: pathlib.Path) -> str:
        self.tokenizer.save(str(folder / text_lib.PIECES_FILE))
        return text_lib.PIECES_FILE

    def __call__(self, texts: Any) -> text_lib.EncodedText:
        pieces = [encoding.ids for encoding in self.tokenizer.encode_batch(text_lib.check_texts(texts))]
        run = functools.partial(jax.jit(_states), self.params)
        return text_lib.encode_pieces(pieces, run, length=self.length, width=self.width)


def _states(params: Any, ids_BxL: jax.Array, lengths_B: jax.Array) -> jax.Array:
    within = jnp.arange(ids_BxL.shape[1]) < lengths_B[:, None]
    return params["rows"][ids_BxL] * within[..., None]


# Twice the clips of the tiny language model, by its tokenizer.
LARGER = tiny.EXPERIMENT.replace(
    clip=tiny.EXPERIMENT.clip.replace(height=32, width=32),
    text=TextSpec(length=TinyText.length, width=TinyText.width),
    model=ModelSpec(
        layers=3, width=16, heads=2, kv_heads=2, head_dim=8, mlp_width=16, dtype="float32", visual_head="factorised"
    ),
    super_resolution=SuperResolutionSpec(vertical=(1, 0, 2), horizontal=(1, 2, 0), temporal=(3, 4, 4), steps=3),
    data=DataSpec(mixture_rates={"super_resolution": 1.0}),
)


@functools.cache
def upscaler() -> Upscaler:
    """Super-resolution with random weights."""
    resolved = Resolved(LARGER)
    model, rng = superres.build_model(resolved), np.random.default_rng(1)
    made = lambda path, leaf: (
        np.ones(leaf.shape) if "norm" in jax.tree_util.keystr(path) else 0.5 * rng.normal(size=leaf.shape)
    ).astype(np.float32)
    params = jax.jit(model.compute_params)(jax.tree_util.tree_map_with_path(made, model.abstract()))
    return Upscaler(resolved, masked.Network(model, params), tiny.video_tokenizer(), TinyText())


class Letters:
    """What `poet.serving.written.describe` asks of SentencePiece, with a vocabulary of 64 pieces."""

    table = ["<pad>", "</s>", "<unk>", *(BLANK + word for word in WORDS), *(chr(97 + n % 26) for n in range(53))]

    def __getattr__(self, name: str) -> Any:
        special = {"IsUnknown": (2,), "IsControl": (0, 1), "IsByte": ()}[name]
        return lambda number: number in special

    def get_piece_size(self) -> int:
        return len(self.table)

    def id_to_piece(self, number: int) -> str:
        return self.table[number]

    def unk_id(self) -> int:
        return 2

    def decode(self, ids: list[int]) -> str:
        if ids == [2]:
            return " ? "
        return "".join(" ? " if n == 2 else self.table[n] * (n > 2) for n in ids).replace(BLANK, " ").removeprefix(" ")


def generator(sample: SampleSpec, dtype: str = "float32", **changes: Any) -> Generator:
    """The tiny run with sound, texts and written texts, of which all can be exported."""
    base = tiny.WITH_SOUND.replace(sample=sample)
    experiment = base.replace(
        model=base.model.replace(
            dtype=dtype, aligned_conditions=True, condition_encoder=6, guidance_input=sample.one_pass
        ),
        text=base.text.replace(pieces="given to the generator"),
        conditioning=base.conditioning.replace(depth="flat"),
        **changes,
    )
    pieces = Pieces(size=64, fingerprint="letters", processor=Letters())
    loaded = {"video": tiny.video_tokenizer(), "audio": tiny.audio_tokenizer(), "text": TinyText(), "pieces": pieces}
    resolved = Resolved(experiment)
    return Generator(resolved, tiny.params_of(transformer.build_model(resolved)), loaded)


def export(made: Generator, folder: pathlib.Path, *tasks: str, **spec: Any) -> pathlib.Path:
    """Writes some tasks, for this machine alone."""
    return exporting.export(made, ExportSpec(tasks=tasks, **{"platforms": ("cpu",), **spec}), folder)


def ask_apart(
    folder: pathlib.Path, scratch: pathlib.Path, *requests: dict[str, Any], more: tuple[str, ...] = ()
) -> list[dict[str, np.ndarray]]:
    """What an export makes of requests (arguments of `TaskSampler.ask`) where only `NEEDED` and `more` are."""
    files = []
    for number, request in enumerate(requests):
        arrays = {name: value for name, value in request.items() if isinstance(value, np.ndarray)}
        plain = {name: value for name, value in request.items() if name not in arrays}
        files += [str(scratch / f"{number}.{end}.npz") for end in ("request", "result")]
        np.savez(files[-2], arguments=json.dumps(plain), **arrays)
    # One device, and the generator's compiler.
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    environment = os.environ | {"XLA_FLAGS": " ".join(flags)}
    code = f"NEEDED = {NEEDED + more!r}\n{CLIENT}"
    subprocess.run([sys.executable, "-c", code, str(folder), *files], check=True, env=environment)
    return [dict(np.load(file)) for file in files[1::2]]
