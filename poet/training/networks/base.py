"""The interface of a network that a run trains from a token store."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jax.sharding import AbstractMesh, Mesh

from poet.models.transformer import Model
from poet.planning.programs import Program
from poet.tasks.resolved import Resolved
from poet.training.trainable import Hook, Trainable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """One network.  Its methods import the network's own modules when they are called.

    Attributes:
      name: the value of `poet.tasks.registry.Task.network` in its tasks.
      title: its name in sentences, with an article.
      commands: those of `poet` that take its checkpoints, named when another command refuses one.
    """

    name: str
    title: str
    commands: tuple[str, ...] = ()

    def model(self, resolved: Resolved) -> Model:
        """The model of a run; UserError for settings that do not fit it."""
        raise NotImplementedError

    def trainable(self, resolved: Resolved, mesh: Mesh | AbstractMesh) -> Trainable:
        """The trainable of a run on a mesh, with a step for each group.

        Raises UserError, before any device work, if a parameter or a batch does not divide over the mesh.
        """
        raise NotImplementedError

    def hooks(self, resolved: Resolved) -> Sequence[Hook]:
        """Validation and samples during training, under `jax.set_mesh`; UserError for a store that lacks their data."""
        del resolved
        return ()

    def decoding(self, resolved: Resolved, group: str, mesh: Mesh) -> Program | None:
        """The program that samples a batch of a group's layout, for forecasts; None: decoding is not forecast."""
        del resolved, group, mesh
        return None
