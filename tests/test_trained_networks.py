"""A network that no file of poet knows is trained, described, forecast and refused where it does not belong."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "store"))
import store_fakes as fakes  # noqa: E402

from poet import cli  # noqa: E402
from poet.cli import command  # noqa: E402
from poet.cli.commands import train  # noqa: E402
from poet.models import layers, tables  # noqa: E402
from poet.models.transformer import Model  # noqa: E402
from poet.planning import describe  # noqa: E402
from poet.runs.run import Run  # noqa: E402
from poet.spec import (  # noqa: E402
    CheckpointSpec,
    DataSpec,
    Experiment,
    MeshSpec,
    ModelSpec,
    StoreSpec,
    TextSpec,
    TrainSpec,
    UserError,
    VocabularySpec,
)
from poet.spec.vocabulary import Special  # noqa: E402
from poet.tasks.registry import TASKS, Task  # noqa: E402
from poet.tasks.resolved import Resolved  # noqa: E402
from poet.tokenizers.video import base  # noqa: E402
from poet.training import losses, networks, optimizer, step  # noqa: E402
from poet.training.networks.base import Network  # noqa: E402
from poet.training.trainable import Hook, Report  # noqa: E402

# ------------------------------------------------------------------------------------ the network


class NextFrame(Model):
    """Each code from the code at its place in the latent frame before: tables of the language model, and MLPs."""

    @functools.cached_property
    def declared(self):
        return {
            "embedding": tables.declare_embedding(self.spec, self.vocabulary, self.text_width),
            "blocks": {"mlp": layers.declare_mlp(self.spec)},
            "head": tables.declare_head(self.spec, self.vocabulary),
        }

    def states(self, params, ids_BxN):
        factors = self.factors(self.vocabulary.visual)
        x_BxNxD = tables.embed(self.spec, params["embedding"], factors, ids_BxN, self.dtype)

        def body(x_BxNxD, block):
            weights = layers.gathered(self.declared["blocks"], block, self.dtype)
            return x_BxNxD + layers.mlp(weights["mlp"], x_BxNxD), None

        return self._final_norm(params, jax.lax.scan(body, x_BxNxD, params["blocks"])[0])


class NextFrameNetwork(Network):
    """What `poet.training.networks` would hold a file of."""

    def model(self, resolved):
        return NextFrame(resolved.spec.model, resolved.vocabulary, resolved.spec.text.width)

    def trainable(self, resolved, mesh):
        model, spec = self.model(resolved), resolved.spec

        def train_step(layout, tx):
            (span,) = layout.loss_spans
            (_, h, w), ids = span.segment.grid, span.segment.ids

            def loss(params, batch):
                labels_BxN = batch["tokens"][:, span.start : span.stop]
                x_BxNxD = model.states(params, labels_BxN[:, : -h * w])
                ones_BxN = jnp.ones_like(labels_BxN[:, h * w :], jnp.float32)
                sums, _ = losses.chain_sums(model, params, x_BxNxD, labels_BxN[:, h * w :], ones_BxN, ids, 0.0)
                return sums.objective / sums.count, sums

            def run(state, batch, key, rate):
                grads, sums = jax.grad(loss, has_aux=True)(state["params"], batch)
                new, told = optimizer.apply(tx, spec.optimizer, grads, state, rate, key=key)
                return {"step": state["step"] + 1, **new}, losses.means({"video": sums}) | told

            return run

        return step.assembled(resolved, mesh, model, train_step, lambda layout: 1.0)

    def hooks(self, resolved):
        return (Hook(name="norm", every=1, fn=lambda state, step: Report(scalars={"next_frame/steps": float(step)})),)


NETWORK = NextFrameNetwork(name="next_frame", title="a network of next frames")
TASK = Task(name="next_frame", token=Special.TASK_VIDEO, text=False, output=("video",), network="next_frame")

# --------------------------------------------------------------------------------------- the tests

STEPS = 2
RUN = Experiment(
    clip=fakes.CLIP,
    video_tokenizer=fakes.TOKENIZER,
    vocabulary=VocabularySpec(visual_bits=8, audio_codes=16, text_pieces=16),
    text=TextSpec(encoder="t5", length=8, width=4),
    model=ModelSpec(layers=1, width=16, heads=2, kv_heads=2, head_dim=8, mlp_width=16, dtype="float32", remat="none"),
    data=DataSpec(mixture_rates={"next_frame": 1.0}, batch=8),
    train=TrainSpec(steps=STEPS, log_every=1),
    checkpoint=CheckpointSpec(every=STEPS),
)


@pytest.fixture(scope="module", autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(networks.NETWORKS, NETWORK.name, NETWORK)
        patch.setitem(TASKS, TASK.name, TASK)
        patch.setattr(base.VideoTokenizer, "of", lambda spec, mesh=None: fakes.MeanTokenizer())
        yield


@pytest.fixture(scope="module")
def trained(registered, tmp_path_factory) -> Run:
    """Two steps of `poet train` on a store of grey clips."""
    folder = tmp_path_factory.mktemp("next_frame")
    fakes.write_tfds(folder / "clips" / "1.0.0", {"train": [fakes.flat_video(20 * n) for n in range(8)]})
    store = StoreSpec(source=str(folder / "clips" / "1.0.0"), path=str(folder / "store"), splits=("train",), batch=4)
    fakes.tokenize(store, text=fakes.LetterEncoder(name="t5"))
    run = RUN.replace(data=RUN.data.replace(store=store.path))
    assert train.train(Resolved(run), Run(folder / "run")) == 0
    return Run.open(folder / "run")


def test_it_is_trained_and_what_its_hook_says_is_logged(trained):
    lines = [json.loads(line) for line in trained.metrics.read_text().splitlines()]
    assert trained.checkpoint.step == STEPS
    losses_found = [line["loss"] for line in lines if "loss" in line]
    assert len(losses_found) == STEPS and all(0 < loss < np.log(256) for loss in losses_found)
    assert any("next_frame/steps" in key for line in lines for key in line)


def test_poet_describe_shows_its_parameters_and_compiles_its_step(capsys, monkeypatch, tmp_path):
    described = Resolved(RUN.replace(mesh=MeshSpec()))
    page = "\n".join(describe.lines(described, 8))
    assert "Parameters of a network of next frames" in page and "blocks.mlp.gate" in page
    assert "attention" not in page
    describe.write_placement(described, str(tmp_path / "placement.svg"), 8)
    assert "blocks.mlp.gate" in (tmp_path / "placement.svg").read_text()
    monkeypatch.setattr(command, "resolve", lambda args: described)
    assert cli.main(["describe", "--topology=cpu-8", "--json"]) == 0
    programs = [json.loads(line)["program"] for line in capsys.readouterr().out.splitlines()[1:]]
    assert programs == ["train video"]  # It says nothing of decoding.


def test_other_commands_refuse_it_and_name_what_they_take(trained, capsys):
    assert cli.main(["generate", f"--checkpoint={trained.folder}", "--prompt=x", f"--out={trained.folder}/out"]) == 2
    said = capsys.readouterr().err
    assert "is a network of next frames: no command samples from it, and this command a language model" in said
    assert "DATA.mixture_rates = {'unconditional': 1.0}" in said
    with pytest.raises(UserError, match="this command a super-resolution network"):
        networks.expect(trained.checkpoint, "super_resolution")


def test_tasks_of_two_networks_and_unknown_networks_are_refused(monkeypatch):
    mixed = RUN.replace(data=RUN.data.replace(mixture_rates={"next_frame": 1.0, "unconditional": 1.0}))
    with pytest.raises(UserError, match="2 networks .next_frame: next_frame; language_model: uncond.*run of its own"):
        networks.of(Resolved(mixed))
    monkeypatch.setitem(TASKS, TASK.name, dataclasses.replace(TASK, network="next_frames"))
    with pytest.raises(UserError, match="unknown network 'next_frames'.*did you mean next_frame"):
        networks.of(Resolved(RUN))


@pytest.mark.parametrize("name", sorted(networks.NETWORKS))
def test_every_network_has_tasks_and_commands_that_there_are(name):
    network = networks.get(name)
    assert any(task.network == name for task in TASKS.values())
    assert network.commands and set(network.commands) <= set(cli.COMMANDS)
