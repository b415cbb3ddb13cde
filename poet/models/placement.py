"""How every parameter lies on a mesh, as a picture (SVG): a row a tensor, a block a dim."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import AbstractMesh

from poet.distributed import mesh as mesh_lib
from poet.models.layers import COMPUTE_RULES
from poet.models.transformer import Model

WIDTH, ROW, BAR, MARGIN = 1160, 30, 20, 12
NAME, DIMS, NUMBERS = 230, 630, 290  # Columns: names, dims, bytes.
COLOURS = {"fsdp": "#2f7ebc", "tensor": "#d9822b", "": "#c8d0d8"}


def svg(model: Model, mesh: AbstractMesh) -> str:
    """SVG of the parameters of a model on a mesh.

    Blue dims are cut over `fsdp` and `sequence` at rest and gathered for use, orange ones are cut over
    `tensor` at rest and in use, grey ones are whole; ticks show the cuts.
    """
    rows = list(_rows(model, mesh))
    height = 62 + ROW * len(rows) + MARGIN
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    legend = "".join(
        f'<rect x="{MARGIN + x}" y="26" width="14" height="14" fill="{COLOURS[axis]}"/>'
        f'<text x="{MARGIN + x + 20}" y="38">{text}</text>'
        for x, axis, text in (
            (0, "fsdp", "cut over fsdp and sequence, gathered for use"),
            (310, "tensor", "cut over tensor, always"),
            (500, "", "whole on every device"),
        )
    )
    head = (
        f'<text x="{MARGIN}" y="18">{axes}: shapes of whole tensors; to the right MiB of one device: the '
        "tensor at rest, and what is in use at a time, in the compute dtype (of blocks one layer)</text>"
    )
    body = "".join(_row(row, 58 + ROW * i) for i, row in enumerate(rows))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="12" fill="#333">'
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>{head}{legend}{body}</svg>\n'
    )


def _rows(model: Model, mesh: AbstractMesh) -> Iterator[tuple[str, list[tuple[str, int, str, int]], str]]:
    """(name, dims as (logical axis, size, mesh axes, ways), bytes) of every tensor."""
    shapes, rules = model.abstract(), mesh_lib.Rules()
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    all_axes = jax.tree.leaves(model.axes(), is_leaf=mesh_lib.is_axes)
    for (path, leaf), axes in zip(leaves, all_axes, strict=True):
        spec = rules.spec(axes)
        dims = [
            (name or "", size, _axes(mesh, entry), mesh_lib.ways_of(mesh, entry))
            for name, size, entry in zip(axes, leaf.shape, spec, strict=True)
        ]
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        rest = _mebibytes(rules, mesh, axes, leaf.shape, leaf.dtype)
        layers = leaf.shape[0] if axes[0] == "layers" else 1
        used = _mebibytes(COMPUTE_RULES, mesh, axes, leaf.shape, model.dtype) / layers
        in_use = "looked up in place" if name.startswith("embedding.tables") else f"{used:,.2f} in use"
        yield name, dims, f"{rest:,.2f} at rest, {in_use}"


def _axes(mesh: AbstractMesh, entry: str | tuple[str, ...] | None) -> str:
    """The mesh axes that cut a dim, or would if they had several devices: `fsdp and sequence`."""
    names = (entry,) if isinstance(entry, str) else entry or ()
    return " and ".join(mesh_lib.several(entry, mesh) or names[:1])


def _mebibytes(rules: mesh_lib.Rules, mesh: AbstractMesh, axes: Any, shape: Any, dtype: Any) -> float:
    return mesh_lib.local_bytes(rules.shardings(mesh, axes), shape, dtype) / 2**20


def _row(row: tuple[str, list[tuple[str, int, str, int]], str], top: int) -> str:
    """Dims are as wide as their logarithm says, so that small ones can be read."""
    name, dims, numbers = row
    weights = [4 + math.log2(size) for _, size, _, _ in dims]
    scale = min((DIMS - 2 * len(dims)) / sum(weights), 12.0)
    x, parts = float(MARGIN + NAME), []
    for dim, weight in zip(dims, weights):
        parts.append(_block(dim, x, top, weight * scale))
        x += weight * scale + 2
    return (
        f'<text x="{MARGIN}" y="{top + 14}" font-size="11">{html.escape(name)}</text>{"".join(parts)}'
        f'<text x="{WIDTH - MARGIN}" y="{top + 14}" text-anchor="end" font-size="11">{numbers}</text>'
    )


def _block(dim: tuple[str, int, str, int], x: float, top: int, width: float) -> str:
    logical, size, axis, ways = dim
    colour = "tensor" if axis == "tensor" else "fsdp" if axis else ""
    cuts = "".join(
        f'<line x1="{x + width * i / ways:.1f}" y1="{top}" x2="{x + width * i / ways:.1f}" '
        f'y2="{top + BAR}" stroke="#fff" stroke-opacity="0.5"/>'
        for i in range(1, ways)
    )
    label = f"{logical} {size}".strip() if width > 75 else str(size)
    about = f"{logical or 'dim'} {size}" + (f", {ways} parts of {size // ways} over {axis}" if ways > 1 else "")
    return (
        f"<g><title>{html.escape(about)}</title>"
        f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="{BAR}" fill="{COLOURS[colour]}"/>{cuts}'
        f'<text x="{x + width / 2:.1f}" y="{top + 14}" text-anchor="middle" font-size="11" '
        f'fill="{"#fff" if colour else "#333"}">{label}</text></g>'
    )
