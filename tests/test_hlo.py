"""Collectives of compiled programs whose traffic is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from poet.distributed import mesh as mesh_lib
from poet.planning import hlo
from poet.spec import MeshSpec

BATCH = PartitionSpec(mesh_lib.BATCH_AXES)


def compiled(local, out_specs) -> str:
    """The text of a function of float32 [16, 8], split over eight devices."""
    mesh = mesh_lib.build(MeshSpec(fsdp=8))
    x = jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=mesh_lib.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        mapped = jax.shard_map(local, in_specs=BATCH, out_specs=out_specs, check_vma=False)
        return jax.jit(mapped).lower(x).compile().as_text()


def test_loops_multiply_and_are_told_apart():
    """Five turns around three turns around a sum of [2, 8], and one gather outside."""

    def inner(x, _):
        return jax.lax.psum(x, "fsdp") * 0.5, None

    def outer(x, _):
        return jax.lax.scan(inner, x, length=3)[0] + 1, None

    def local(x):
        x, _ = jax.lax.scan(outer, x, length=5)
        return jax.lax.all_gather(x, "fsdp", axis=0, tiled=True)

    found = hlo.collectives(compiled(local, PartitionSpec()))
    assert hlo.totals(found) == {"all-reduce": 15 * 2 * 8 * 4, "all-gather": 16 * 8 * 4}
    assert {c.kind: c.in_loop for c in found} == {"all-reduce": True, "all-gather": False}


def test_a_scatter_counts_what_it_reads():
    def local(x):
        return jax.lax.psum_scatter(jnp.tile(x, (8, 1)), "fsdp", scatter_dimension=0, tiled=True)

    found = hlo.collectives(compiled(local, BATCH))
    assert hlo.totals(found) == {"reduce-scatter": 16 * 8 * 4}


def test_asynchronous_starts_name_operands_and_results():
    text = """
ENTRY %main (p: bf16[4,8]) -> bf16[32,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  %s = (bf16[4,8]{1,0:T(8,128)(2,1)}, bf16[32,8]{1,0:T(8,128)(2,1)}) all-gather-start(%p), replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %d = bf16[32,8]{1,0} all-gather-done(%s)
}
"""  # noqa: E501
    assert hlo.totals(hlo.collectives(text)) == {"all-gather": 32 * 8 * 2}
    scatter = text.replace("(bf16[4,8]{1,0:T(8,128)(2,1)}, bf16[32,8]", "(bf16[32,8]{1,0:T(8,128)(2,1)}, bf16[4,8]")
    scatter = scatter.replace("all-gather-start", "reduce-scatter-start")
    assert hlo.totals(hlo.collectives(scatter)) == {"reduce-scatter": 32 * 8 * 2}


def test_groups_tell_the_axes_that_they_cross():
    """A sum along each axis of a mesh 2 x 4, as this compiler writes groups today."""
    mesh = mesh_lib.build(MeshSpec(data=2, fsdp=4))
    for axis, crossed in (
        ("data", (True, False, False)),
        ("fsdp", (False, True, False)),
        (("data", "fsdp"), (True, True, False)),
    ):
        x = jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=mesh_lib.batch_sharding(mesh))
        with jax.set_mesh(mesh):
            mapped = jax.shard_map(lambda x: jax.lax.psum(x, axis), in_specs=BATCH, out_specs=BATCH, check_vma=False)
            (found,) = hlo.collectives(jax.jit(mapped).lower(x).compile().as_text())
        assert tuple(found.crosses((2, 4, 1), i) for i in range(3)) == crossed


@pytest.mark.parametrize(
    "written, group",
    [
        ("replica_groups={{0,2},{1,3}}", (0, 2)),
        ("replica_groups={}, d", ()),
        ("replica_groups=[2,4]<=[8], d", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0), d", (0, 4)),
        ("replica_groups=mesh['a'=1,'b'=4,'c'=2] {'b'}", (0, 2, 4, 6)),
        ("replica_groups=mesh['a'=2,'b'=8] {'b':(2)4}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", (0, 2, 4, 6)),
        ("source_target_pairs={{0,0},{1,3},{3,1}}", (1, 3)),
    ],
)
def test_every_way_to_write_a_group(written, group):
    text = f"""
ENTRY %main (p: f32[8]) -> f32[8] {{
  ROOT %r = f32[8]{{0}} all-reduce(%p), channel_id=1, {written}, to_apply=%add
}}
"""
    assert hlo.collectives(text)[0].group == group


def test_text_of_no_program_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.collectives("nothing")
