"""The prefix language model, which does every task that names no other network."""

from __future__ import annotations

from collections.abc import Sequence

from jax.sharding import AbstractMesh, Mesh

from poet.models.transformer import Model
from poet.planning.programs import Program
from poet.tasks.registry import LANGUAGE_MODEL
from poet.tasks.resolved import Resolved
from poet.training.networks.base import Network
from poet.training.trainable import Hook, Trainable


class LanguageModel(Network):
    """See `poet.models.transformer`, `poet.training.step`, `poet.evaluation.hooks` and `poet.planning.decoding`."""

    def model(self, resolved: Resolved) -> Model:
        from poet.models import transformer

        return transformer.build_model(resolved)

    def trainable(self, resolved: Resolved, mesh: Mesh | AbstractMesh) -> Trainable:
        from poet.training import step

        return step.language_model(resolved, mesh)

    def hooks(self, resolved: Resolved) -> Sequence[Hook]:
        from poet.evaluation import hooks

        return hooks.validation_hook(resolved), hooks.sample_hook(resolved)

    def decoding(self, resolved: Resolved, group: str, mesh: Mesh) -> Program:
        from poet.planning import decoding

        return decoding.program(resolved, group, mesh)


NETWORK = LanguageModel(name=LANGUAGE_MODEL, title="a language model", commands=("generate", "eval", "export"))
