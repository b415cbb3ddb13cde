"""Super-resolution in token space: masked codes of a clip at twice the height and width (models/superres.md)."""

from __future__ import annotations

from collections.abc import Sequence

from jax.sharding import AbstractMesh, Mesh

from poet.models.transformer import Model
from poet.planning.programs import Program
from poet.tasks.registry import SUPER_RESOLUTION
from poet.tasks.resolved import Resolved
from poet.training.networks.base import Network
from poet.training.trainable import Hook, Trainable


class SuperResolution(Network):
    """See `poet.models.superres`, `poet.training.masked`, `poet.evaluation.superres` and `poet.planning.passes`."""

    def model(self, resolved: Resolved) -> Model:
        from poet.models import superres

        return superres.build_model(resolved)

    def trainable(self, resolved: Resolved, mesh: Mesh | AbstractMesh) -> Trainable:
        from poet.training import masked

        return masked.super_resolution(resolved, mesh)

    def hooks(self, resolved: Resolved) -> Sequence[Hook]:
        from poet.evaluation import superres

        return superres.validation_hook(resolved), superres.sample_hook(resolved)

    def decoding(self, resolved: Resolved, group: str, mesh: Mesh) -> Program:
        from poet.planning import passes

        return passes.program(resolved, group, mesh)


NETWORK = SuperResolution(
    name=SUPER_RESOLUTION, title="a super-resolution network", commands=("upscale", "upscale-eval", "export")
)
