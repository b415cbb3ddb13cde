"""`poet train`: trains the network of the mixture's tasks on the token store DATA.store."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from poet.cli import command
from poet.runs.run import Run
from poet.spec import UserError

if TYPE_CHECKING:
    from poet.tasks.resolved import Resolved


def _run(args: argparse.Namespace) -> int:
    resolved = command.resolve(args)
    command.start_processes(args)
    return train(resolved, Run.to_train(args.workdir))


def train(resolved: Resolved, run: Run) -> int:
    """Trains what the mixture asks for and returns the exit code.

    Raises:
      UserError: settings, stores or networks that do not fit each other; see also `poet.training.loop.train`.
    """
    import jax

    from poet.data.checks import check, networks_of
    from poet.data.loader import batches
    from poet.distributed import mesh as mesh_lib
    from poet.distributed import processes
    from poet.models.kernels import choose_kernel
    from poet.runs import origins
    from poet.training import loop, networks
    from poet.training.schedule import PhasedSchedule, check_all_trained

    spec = resolved.spec
    if not spec.data.store:
        raise UserError("DATA.store is empty: pass --gin.DATA.store=FOLDER (see poet tokenize)")
    network = networks.of(resolved)
    _ = resolved.layouts  # Tasks that the run has no network for are named before networks are loaded.
    loading = resolved.used_networks.items()
    fingerprints = {name: resolved.load(stream).fingerprint for name, stream in loading}
    made_with = networks_of(resolved, check(resolved, fingerprints=fingerprints))
    origins.check_text(spec.text, made_with, what=f"the token store {spec.data.store}")
    origins.check_start(spec, made_with)
    order = PhasedSchedule(resolved.phases, spec.data.seed)
    check_all_trained(resolved, order)
    mesh = mesh_lib.build(spec.mesh)
    with jax.set_mesh(mesh):
        choose_kernel(spec.model.attention, spec.model.dtype)  # Or no work dir is touched.
        outcome = loop.train(
            network.trainable(resolved, mesh),
            batches(resolved, share=processes.batch_share(mesh)),
            order,
            run=run,
            mesh=mesh,
            experiment=spec,
            hooks=network.hooks(resolved),
            made_with=made_with,
        )
    return outcome.exit_code


COMMAND = command.Command(
    summary="Train a network, such as the language model, on a token store.",
    run=_run,
    arguments=command.workdir_arguments,
    settings=command.FILES,
    example="--gin_file=gin/experiments/quickstart.gin --gin.DATA.store=CODES --workdir=runs/mine",
    place=70,
)
