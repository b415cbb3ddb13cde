"""The tokenizer as a Trainable: it learns, it reports, and the mesh does not change the result."""

from __future__ import annotations

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optimised
import pytest

from poet.distributed import mesh as meshes
from poet.spec import (
    ClipSpec,
    DiscriminatorSpec,
    Experiment,
    MeshSpec,
    OptimizerSpec,
    TokenizerTrainSpec,
    TrainSpec,
    UserError,
    VideoTokenizerSpec,
    VocabularySpec,
)
from poet.tokenizers.video import losses, magvit, perceptual, training
from poet.tokenizers.video.base import VideoTokenizer
from poet.tokenizers.video.losses import Objective
from poet.tokenizers.video.perceptual import Perceptual

SPEC = VideoTokenizerSpec(
    base_channels=16,
    multipliers=(1,),
    blocks=1,
    temporal_downsample=(),
    stem=(4, 4, 4),
    stem_kernel=1,
    norm_groups=4,
    bits=8,
)
FINER = SPEC.replace(
    decoder_channels=8, decoder_multipliers=(1, 1), decoder_temporal_downsample=(True,), decoder_stem=(2, 2, 2)
)


def experiment(**train: float) -> Experiment:
    return Experiment(
        clip=ClipSpec(frames=5, height=16, width=16),
        vocabulary=VocabularySpec(visual_bits=8),
        video_tokenizer=SPEC,
        optimizer=OptimizerSpec(learning_rate=5e-3, warmup_steps=10, b2=0.99, weight_decay=0.0, final_fraction=0.05),
        tokenizer_train=TokenizerTrainSpec(**{"batch": 8, "entropy_weight": 0.01, "temperature": 0.1, **train}),
        train=TrainSpec(steps=400),
    )


def moving_square(count: int, seed: int = 0) -> np.ndarray:
    """uint8 (count, 5, 16, 16, 3): a coloured square that slides over a coloured ground."""
    rng = np.random.default_rng(seed)
    video = np.empty((count, 5, 16, 16, 3), np.uint8)
    for clip in video:
        clip[:] = rng.integers(0, 256, 3)
        row, colour = rng.integers(0, 10), rng.integers(0, 256, 3)
        for t, frame in enumerate(clip):
            frame[row : row + 6, 2 * t : 2 * t + 6] = colour
    return video


@pytest.fixture(scope="module")
def initial() -> dict:
    """One fresh state for all tests: compiling the draws is what costs most here."""
    return jax.device_get(jax.jit(training.trainable(experiment()).init)(jax.random.key(0)))


def run(exp: Experiment, state: dict, video: np.ndarray, steps: int) -> tuple[dict, list[dict]]:
    history, trainable = [], training.trainable(exp)
    step = jax.jit(trainable.groups["clip"].step)
    for number in range(steps):
        rate = trainable.rate(number)
        state, metrics = step(state, {"video": video}, jax.random.key(0), rate)
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history


@pytest.fixture(scope="module")
def overfit(initial: dict) -> tuple[dict, list[dict]]:
    return run(experiment(batch=1, ema_decay=0.9), initial, moving_square(1), 400)


def test_one_clip_is_overfitted(overfit: tuple[dict, list[dict]]) -> None:
    history = overfit[1]
    assert history[-1]["loss/l2"] < history[0]["loss/l2"] / 100
    assert history[-1]["psnr_db"] > 22


def test_average_reconstructs_and_exports(overfit, tmp_path) -> None:
    state, video = overfit[0], moving_square(1)
    tokenizer = training.export_tokenizer(state["ema"], SPEC, tmp_path, {"steps": 150})
    error = np.mean((tokenizer.decode(tokenizer.encode(video)) / 255.0 - video / 255.0) ** 2)
    assert -10 * math.log10(error) > 21
    loaded = VideoTokenizer.load(tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    assert card == {"steps": 150, "fingerprint": loaded.fingerprint}
    np.testing.assert_array_equal(loaded.params["encoder"]["out"]["kernel"], state["ema"]["encoder"]["out"]["kernel"])


def test_a_kept_encoder_keeps_the_codes_of_the_tokenizer_it_came_from(initial: dict, tmp_path) -> None:
    """Steps with weight decay and all losses move the decoders alone; fingerprint and codes are the first one's."""
    VideoTokenizer.from_params(SPEC, jax.device_get(initial["params"])).save(tmp_path / "first")
    run = experiment(init_from=str(tmp_path / "first"), frozen_encoder=True, round_trip_weight=0.1)
    run = run.replace(video_tokenizer=FINER, optimizer=run.optimizer.replace(weight_decay=0.1))
    made = training.trainable(run)
    state, video = jax.jit(made.init)(jax.random.key(0)), moving_square(8)
    before = jax.device_get(state["params"])
    (group,) = made.groups.values()
    step, after = jax.jit(group.step), state
    for _ in range(2):  # The first moves only the last convolution of what was added: it starts at zero.
        after, _ = step(after, {"video": video}, jax.random.key(1), jnp.float32(1e-2))
    jax.tree.map(np.testing.assert_array_equal, before["encoder"], jax.device_get(after["ema"]["encoder"]))
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before["decoder"], after["params"]["decoder"])
    assert min(jax.tree.leaves(moved)) > 0
    first = VideoTokenizer.load(tmp_path / "first")
    spec = run.video_tokenizer
    training.export_tokenizer(after["ema"], spec, tmp_path / "second", {}, run.tokenizer_train.init_from)
    # A run that reads codes need not name the decoder.
    second = VideoTokenizer.of(SPEC.replace(path=str(tmp_path / "second")))
    assert second.fingerprint == first.fingerprint != second.decoder_fingerprint and not first.decoder_fingerprint
    assert second.in_dtype("bfloat16").fingerprint != first.fingerprint
    np.testing.assert_array_equal(first.encode(video), second.encode(video))


def test_the_round_trip_asks_for_the_codes_of_the_clip_itself(initial: dict) -> None:
    """The loss by its definition, and gradients in both networks; codes of the clip are no free target."""
    train, video = experiment(round_trip_weight=1.0).tokenizer_train, moving_square(2)
    objective = Objective(spec=SPEC, train=train)
    params = initial["params"]

    def loss(params):
        output, z, _ = magvit.reconstruct(SPEC, params, video / 255.0)
        return losses.round_trip(objective, params, output, jax.lax.stop_gradient(z))

    (value, match), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    output, z, _ = jax.jit(functools.partial(magvit.reconstruct, SPEC))(params, video / 255.0)
    picture = np.round(np.clip(output, 0, 1) * 255) / 255
    again = np.asarray(jax.jit(functools.partial(magvit.encode, SPEC))(params, picture), np.float64)
    signs = np.where(np.asarray(z) >= 0, 1, -1)
    expected = np.log1p(np.exp(-losses.ROUND_TRIP_SLOPE * signs * again)).mean()
    assert float(value) == pytest.approx(expected, rel=1e-4)
    assert float(match) == pytest.approx(((again >= 0) == (signs > 0)).all(-1).mean())
    for part in ("encoder", "decoder"):
        assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads[part])) > 0
    plain, given = Objective(spec=SPEC, train=experiment().tokenizer_train), (params, video, 0, jax.random.key(0))
    total, (metrics, _) = jax.jit(functools.partial(losses.tokenizer_loss, objective))(*given)
    without, _ = jax.jit(functools.partial(losses.tokenizer_loss, plain))(*given)
    assert float(total - without) == pytest.approx(float(metrics["loss/round_trip"]), rel=1e-3)


@pytest.mark.slow
def test_round_trips_rest_before_their_start(initial: dict) -> None:
    """Loss and gradients are those of a run without them; from the start on they are not."""
    video, params = moving_square(2), initial["params"]

    def gradients(step: int, **train: float) -> tuple:
        objective = Objective(spec=SPEC, train=experiment(**train).tokenizer_train)
        loss = jax.value_and_grad(functools.partial(losses.tokenizer_loss, objective), has_aux=True)
        found, grads = optimised.jit(loss)(params, video, jnp.int32(step), jax.random.key(0))
        return [np.asarray(found[0]), *map(np.asarray, jax.tree.leaves(grads))]

    def equal(one: list, other: list) -> bool:
        return all((a == b).all() for a, b in zip(one, other, strict=True))

    without = gradients(4)
    assert equal(without, gradients(4, round_trip_start=2))
    assert all(
        np.allclose(a, b, rtol=1e-5, atol=1e-8)
        for a, b in zip(without, gradients(4, round_trip_weight=1.0, round_trip_start=5), strict=True)
    )
    assert not np.allclose(without[0], gradients(5, round_trip_weight=1.0, round_trip_start=5)[0])


def test_total_is_the_weighted_sum_of_its_terms(initial: dict) -> None:
    train = TokenizerTrainSpec(entropy_anneal_steps=100)
    loss_fn = jax.jit(functools.partial(losses.tokenizer_loss, Objective(spec=SPEC, train=train)))
    loss, (m, _) = loss_fn(initial["params"], moving_square(2), jnp.int32(50), jax.random.key(0))
    expected = 5 * m["loss/l2"] + 0.25 * m["loss/commitment"] + 0.1 * 2 * m["loss/entropy"]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(
        m["loss/entropy"], (m["entropy_sample_bits"] - m["entropy_batch_bits"]) * math.log(2), rtol=1e-5
    )


def test_code_statistics_of_known_codes() -> None:
    stats = losses.code_statistics(jnp.array([[0, 0, 3, 3]]), bits=3)
    assert float(stats["codebook_usage"]) == 0.5
    np.testing.assert_allclose(stats["bit_balance"], 2 / 3, rtol=1e-6)


@pytest.mark.slow
def test_mesh_of_eight_devices_gives_the_single_device_result(initial: dict) -> None:
    """Data-parallel FSDP: weights sharded, batch entropy over the global batch."""
    exp, video = experiment(temperature=1.0), moving_square(8)
    alone, history = run(exp, initial, video, 3)
    mesh = meshes.build(MeshSpec(data=2, fsdp=4))
    with jax.set_mesh(mesh):
        trainable = training.trainable(exp, mesh)
        shardings = meshes.Rules().shardings(mesh, trainable.axes)
        state = jax.device_put(initial, shardings)
        batch = {"video": jax.device_put(video, meshes.batch_sharding(mesh))}
        step = jax.jit(trainable.groups["clip"].step, donate_argnums=0)
        for number, expected in enumerate(history):
            rate = trainable.rate(number)
            state, metrics = step(state, batch, jax.random.key(0), rate)
            for name in expected:
                np.testing.assert_allclose(metrics[name], expected[name], rtol=2e-3, atol=1e-4)
    moments = [m for m in jax.tree.leaves(state["opt_state"]) if m.shape == (3, 3, 3, 16, 16)]
    assert len(moments) == 2 * 8 and all(m.sharding.spec[-1] == "fsdp" for m in moments)
    for a, b in zip(jax.tree.leaves(alone["params"]), jax.tree.leaves(state["params"])):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=2e-3)


def adversarial(**train: float) -> Experiment:
    exp = experiment(adversarial_weight=0.1, gan_start=2, r1_every=2, temperature=1.0, **train)
    return exp.replace(discriminator=DiscriminatorSpec(base_channels=4, multipliers=(2,)))


@pytest.fixture(scope="module")
def judged() -> tuple[dict, list[dict], list[dict]]:
    """(initial state, states, metrics) of five adversarial steps on one device."""
    exp = adversarial()
    trainable = training.trainable(exp)
    first = state = jax.jit(trainable.init)(jax.random.key(0))
    step, states, history = jax.jit(trainable.groups["clip"].step), [], []
    for number in range(5):
        rate = trainable.rate(number)
        state, metrics = step(state, {"video": moving_square(8)}, jax.random.key(0), rate)
        states.append(state)
        history.append({name: float(value) for name, value in metrics.items()})
    return first, states, history


def test_the_discriminator_rests_before_its_start(judged) -> None:
    first, states, history = judged
    for name in ("params", "averages"):
        jax.tree.map(np.testing.assert_array_equal, states[1]["critic"][name], first["critic"][name])
    assert [m["loss/adversarial"] > 0 for m in history] == [False, False, True, True, True]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), states[2]["critic"]["params"], first["critic"]["params"])
    assert all(jax.tree.leaves(moved))
    assert states[-1]["critic"]["averages"]["real"] != 0


def test_r1_is_applied_lazily_and_as_many_times_as_strong(judged) -> None:
    history = judged[2]
    assert [m["critic/loss/r1"] > 0 for m in history] == [False, False, True, False, True]
    m = history[4]
    parts = m["critic/loss/adversarial"] + 0.001 * m["critic/loss/lecam"]
    np.testing.assert_allclose(m["critic/loss"], parts + 2 * 10 * m["critic/loss/r1"], rtol=1e-5)


@pytest.mark.slow
def test_adversarial_training_is_the_same_on_a_mesh(judged) -> None:
    first, states, history = judged
    mesh = meshes.build(MeshSpec(data=2, fsdp=4))
    with jax.set_mesh(mesh):
        trainable = training.trainable(adversarial(), mesh)
        state = jax.device_put(first, meshes.Rules().shardings(mesh, trainable.axes))
        batch = {"video": jax.device_put(moving_square(8), meshes.batch_sharding(mesh))}
        step = jax.jit(trainable.groups["clip"].step, donate_argnums=0)
        for number, expected in enumerate(history):
            rate = trainable.rate(number)
            state, metrics = step(state, batch, jax.random.key(0), rate)
            for name in expected:
                np.testing.assert_allclose(metrics[name], expected[name], rtol=2e-3, atol=1e-4, err_msg=name)
    for a, b in zip(jax.tree.leaves(states[-1]["critic"]), jax.tree.leaves(state["critic"])):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=2e-3)


@pytest.fixture
def gray_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A perceptual network that sees three times the brightness."""

    def distance(weight: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.mean((weight * jnp.mean(a - b, axis=-1)) ** 2, axis=(1, 2))

    def load(name: str, path: str) -> Perceptual:
        return Perceptual(name=name, label=name, params=jnp.float32(3.0), distance=distance)

    monkeypatch.setitem(perceptual.NETWORKS, "gray", load)


@pytest.mark.slow
def test_the_perceptual_term_joins_on_one_device_and_on_a_mesh(initial, gray_network) -> None:
    exp = experiment(perceptual="gray", perceptual_weight=0.5, temperature=1.0)
    video = moving_square(8)
    whole, [alone] = run(exp, initial, video, 1)
    output = magvit.reconstruct(SPEC, initial["params"], losses.to_float(video))[0]
    difference = np.mean(np.asarray(output) - video / 255.0, axis=-1)
    np.testing.assert_allclose(alone["loss/perceptual"], 9 * np.mean(difference**2), rtol=1e-4)
    without = run(experiment(temperature=1.0), initial, video, 1)[1][0]
    added = alone["loss"] - without["loss"]
    np.testing.assert_allclose(added, 0.5 * alone["loss/perceptual"], rtol=1e-3)
    mesh = meshes.build(MeshSpec(data=2, fsdp=4))
    with jax.set_mesh(mesh):
        trainable = training.trainable(exp, mesh)
        state = jax.device_put(initial, meshes.Rules().shardings(mesh, trainable.axes))
        batch = {"video": jax.device_put(video, meshes.batch_sharding(mesh))}
        step = jax.jit(trainable.groups["clip"].step)
        state, metrics = step(state, batch, jax.random.key(0), trainable.rate(0))
    for name in ("loss", "loss/perceptual", "grad_norm"):
        np.testing.assert_allclose(metrics[name], alone[name], rtol=1e-3)


@pytest.mark.slow
def test_microbatches_give_the_whole_batch_its_gradient(initial: dict) -> None:
    """All terms but the batch entropy are means over clips, so only that weight is off."""
    video, exp = moving_square(4), experiment(entropy_weight=0.0, batch=4)
    whole, _ = run(exp, initial, video, 1)
    parts, history = run(exp.replace(train=exp.train.replace(microbatches=2)), initial, video, 1)
    first = "opt_state"
    for a, b in zip(jax.tree.leaves(whole[first]), jax.tree.leaves(parts[first])):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)
    assert history[0]["loss"] > 0


def test_microbatches_must_divide_every_shard() -> None:
    exp = experiment(batch=6)
    with pytest.raises(UserError, match="multiple of 4"):
        training.trainable(exp.replace(train=exp.train.replace(microbatches=4)))


def test_crops_make_a_group_each_of_equal_pixels() -> None:
    exp = experiment(image_fraction=0.5, crops=((16, 16), (8, 8)), batch=2)
    shapes = training.group_shapes(exp.video_tokenizer, exp.tokenizer_train, exp.clip)
    assert shapes == {
        "clip_16x16": (2, 5, 16, 16, 3),
        "clip_8x8": (8, 5, 8, 8, 3),
        "image_16x16": (4, 1, 16, 16, 3),
        "image_8x8": (16, 1, 8, 8, 3),
    }
    assert training.group_fractions(exp.tokenizer_train, exp.clip) == dict.fromkeys(shapes, 0.25)


def test_a_discriminator_with_a_flat_head_refuses_several_shapes() -> None:
    exp = adversarial(image_fraction=0.5)
    with pytest.raises(UserError, match="DISCRIMINATOR.head = 'mean'"):
        training.trainable(exp)
    mixed = exp.replace(discriminator=exp.discriminator.replace(head="mean"))
    assert set(training.trainable(mixed).groups) == {"clip", "image"}


def test_crops_larger_than_the_clip_are_refused() -> None:
    with pytest.raises(UserError, match="larger than the clips"):
        training.trainable(experiment(crops=((32, 16),)))


def test_groups_declare_legal_batches() -> None:
    groups = training.trainable(experiment(image_fraction=0.2)).groups
    assert groups["clip"].batch["video"].shape == (8, 5, 16, 16, 3)
    assert groups["image"].batch["video"].shape == (16, 1, 16, 16, 3)
    assert groups["clip"].tokens == groups["image"].tokens == 8 * 2 * 4 * 4


def test_flops_count_convolutions_and_matmuls() -> None:
    """By hand: stem 1x1 in and out, four blocks of two 3x3x3 convolutions, and the small ends."""
    positions, c = 8 * 2 * 4 * 4, 16
    stem = 2 * (4 * 4 * 4 * 3) * c
    blocks = 8 * 27 * c * c
    ends = c * 8 + 27 * 8 * c + 8 * 2 * c
    counted = training.forward_flops(SPEC, (8, 5, 16, 16, 3))
    assert counted == 2 * positions * (stem + blocks + ends)


def test_axes_mirror_the_state() -> None:
    trainable = training.trainable(experiment())
    state = jax.eval_shape(trainable.init, jax.random.key(0))
    jax.tree.map(lambda leaf, axes: pytest.fail(f"{axes}") if len(axes) != leaf.ndim else None, state, trainable.axes)


@pytest.mark.slow
def test_remat_stores_less_and_changes_no_gradient() -> None:
    spec = SPEC.replace(blocks=4)
    shapes = jax.eval_shape(lambda: magvit.init(spec, jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: np.float32(0.1 * rng.normal(size=s.shape)), shapes)
    video, clips = moving_square(1), moving_square(4)
    gradients, sizes = [], []
    for remat in (False, True):
        objective = Objective(spec=spec, train=TokenizerTrainSpec(remat=remat))

        def loss(params, video=video, objective=objective):
            step, key = jnp.int32(0), jax.random.key(0)
            return losses.tokenizer_loss(objective, params, video, step, key)[0]

        gradients.append(jax.jit(jax.grad(loss))(params))
        # Of four clips, beside which the parameters are small.
        stored = jax.eval_shape(lambda params, clips: jax.vjp(lambda p: loss(p, video=clips), params)[1], params, clips)
        sizes.append(sum(leaf.size for leaf in jax.tree.leaves(stored)))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), *gradients)
    # What the forward pass hands to the backward pass; XLA's CPU compiler would undo the rest.
    assert sizes[1] < 0.5 * sizes[0], sizes
