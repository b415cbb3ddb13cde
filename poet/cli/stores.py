"""Token stores written by commands: the networks that encode, and the writing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poet.store.runners import Runner
    from poet.streams import Encoders
    from poet.tasks.resolved import Resolved


def load_encoders(resolved: Resolved) -> Encoders:
    """The frozen networks that a token store is made with, on the devices of this process."""
    import jax

    from poet import streams
    from poet.distributed import mesh as mesh_lib
    from poet.runs import networks

    spec = resolved.spec
    mesh = mesh_lib.build(spec.mesh, jax.local_devices())
    loading = {stream.network: stream for stream in resolved.stored_streams}
    loading[networks.TEXT] = streams.get("text")
    return streams.Encoders(
        networks={name: resolved.load(stream, mesh) for name, stream in loading.items()},
        conditioning=spec.conditioning,
        vocabulary=spec.vocabulary,
    )


def write(resolved: Resolved, encoders: Encoders, runner: Runner | None, log: Callable[[str], Any]) -> Any:
    """Writes the store STORE.path from STORE.source, see `poet.store.writer.tokenize`."""
    from poet.store.writer import tokenize

    spec = resolved.spec
    return tokenize(
        spec.store,
        spec.clip,
        encoders,
        [stream.name for stream in resolved.stored_streams],
        ingest=spec.ingest,
        runner=runner,
        log=log,
    )
