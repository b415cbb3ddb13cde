"""Scaling: `--size=600m` becomes a consistent set of bindings of a model.

A shipped size (`gin/models/*.gin`) is taken as it is; any other number of parameters gets a shape by
rule.  The rule only picks a point on the flat optimum of depth against width (2001.08361, figure 5);
what it must get right is that the count is met and that every dim divides over devices.
"""

from __future__ import annotations

import dataclasses
import re

from poet.spec import ModelSpec, UserError

UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}
SMALLEST, LARGEST = 1e5, 1e12
# Width over depth of the shipped 300m, and how it grows towards that of the shipped 8b.
ASPECT, ASPECT_GROWTH, ASPECT_AT = 43.0, 0.35, 0.308e9
# Learning rate of the shipped 1b, which falls with the width; the 300m's is the highest.
RATE, RATE_WIDTH, HIGHEST_RATE = 6e-4, 2048, 1e-3


def bindings(parameters: float) -> list[str]:
    """`NAME.field=value` for a model with about so many parameters in its blocks.

    Tables come on top: they depend on the vocabulary.
    """
    spec = model(parameters)
    fields = {f.name: getattr(spec, f.name) for f in dataclasses.fields(ModelSpec)}
    chosen = ("layers", "width", "heads", "kv_heads", "head_dim", "mlp_width", "remat")
    rate = min(HIGHEST_RATE, RATE * RATE_WIDTH / spec.width)
    return [f"MODEL.{name}={fields[name]!r}" for name in chosen] + [f"OPTIMIZER.learning_rate={rate:.3g}"]


def parse(size: str) -> float:
    """'600m' -> 6e8; UserError for what is no size."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmb]?)", size.strip().lower())
    parameters = float(found[1]) * UNITS[found[2]] if found else 0.0
    if not SMALLEST <= parameters <= LARGEST:
        raise UserError(
            f"--size={size}: expected the parameters of the blocks, from 100k to 1000b, such as 60m, "
            "1.5b, or a shipped size: tiny, 300m, 1b, 8b"
        )
    return parameters


def model(parameters: float) -> ModelSpec:
    """The shape: depth makes up for the steps in which the width grows."""
    aspect = ASPECT * (parameters / ASPECT_AT) ** ASPECT_GROWTH
    # A block has about 12 width^2 weights, and there are width / aspect of them.
    wanted = (parameters * aspect / 12) ** (1 / 3)
    # Eight heads, so that tensor parallelism up to 8 divides them, from a size that may need it on.
    head_dim = 128 if wanted >= 1536 else 64 if wanted >= 256 else 32
    step = head_dim * (8 if parameters >= 1e8 else 2)
    width = max(step, step * round(wanted / step))
    heads = width // head_dim
    grouped = parameters >= 3e9
    spec = ModelSpec(
        width=width,
        heads=heads,
        kv_heads=heads // max(heads // 8, 1) if grouped and heads % 8 == 0 else heads,
        head_dim=head_dim,
        # A gated MLP of 8/3 widths has the weights of a plain one of 4; more where keys are few.
        mlp_width=_multiple((3.5 if grouped else 8 / 3) * width, 64 if width < 512 else 256),
        remat="none" if parameters < 5e7 else "dots" if parameters < 8e8 else "full",
    )
    return spec.replace(layers=max(1, round(parameters / block(spec))))


def block(spec: ModelSpec) -> int:
    """Weights of one block, its norms aside."""
    return spec.width * (2 * (spec.heads + spec.kv_heads) * spec.head_dim + 3 * spec.mlp_width)


def _multiple(value: float, step: int) -> int:
    return max(step, step * round(value / step))
