"""Low-rank adapters: what they change, what is trained, and that they stay with their base."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.training.test_training import ROOT, SMALL, arguments, assert_identical, state_of
from wamjax import config as configuration
from wamjax.cli import _experiment
from wamjax.cli.main import main
from wamjax.data.store import EpisodeStore
from wamjax.errors import UserError
from wamjax.networks.stream_transformer import PARTITIONS
from wamjax.networks.wan.dit import WAN_DITS, WanDiT
from wamjax.nn.stack import Expert, Stack, StackConfig
from wamjax.nn.tokens import Group, TokenIds, TokenPlan
from wamjax.nn.weights import LowRank
from wamjax.policies.contract import SampleShapes
from wamjax.policies.small_wam import SmallWAM
from wamjax.sharding.mesh import MeshConfig, make_mesh, shardings
from wamjax.training.checkpoint import Checkpoints
from wamjax.training.loop import TrainConfig, train
from wamjax.training.lora import Adapted, LoRAConfig, adapt, join, merge, merged, split
from wamjax.training.optimizer import OptimizerConfig, make_optimizer, schedule
from wamjax.training.paths import leaves
from wamjax.training.step import init_state, make_step

STACK = Stack(StackConfig(3, heads=2, head_dim=4, experts=(Expert(8, 16), Expert(12, 20)), remat=("block_in",)))
PLAN = TokenPlan.from_rule((Group("video", 4), Group("action", 2, expert=1)), lambda q, k: True)
LORA = LoRAConfig(rank=2, alpha=3.0, full=(r"time_\d/.*", "expert_1/mlp_in/kernel"))


@pytest.fixture(scope="module")
def example(randomise):
    random = np.random.default_rng(0)
    tokens = {0: random.standard_normal((2, 4, 8)), 1: random.standard_normal((2, 2, 12))}
    tokens = {e: jnp.asarray(x, jnp.float32) for e, x in tokens.items()}
    inputs = (
        tokens,
        jnp.asarray(random.uniform(size=(2, 3)), jnp.float32),
        TokenIds.of(PLAN, 2, {"video": 1, "action": 2}),
    )
    shapes = jax.eval_shape(lambda key: STACK.init(key, *inputs, PLAN)["params"], jax.random.key(0))
    return jax.tree.map(jnp.asarray, randomise(shapes)), inputs


@jax.jit
def outputs(params, inputs):
    return STACK.apply({"params": params}, *inputs, PLAN)[0]


def moved(trainable, randomise):
    """Adapters that change something."""
    return jax.tree.map(jnp.asarray, randomise(trainable, seed=1, scale=0.1))


def test_new_adapters_change_nothing_to_the_bit(example):
    params, inputs = example
    trainable, base = split(params, LORA, jax.random.key(0))
    joined = join(trainable, base, LORA)
    assert_identical(outputs(joined, inputs), outputs(params, inputs))
    assert_identical(merge(joined), params)


def test_merged_parameters_do_what_the_pairs_do(example, randomise):
    params, inputs = example
    trainable, base = split(params, LORA, jax.random.key(0))
    joined = join(moved(trainable, randomise), base, LORA)
    apart, together = outputs(joined, inputs), outputs(merge(joined), inputs)
    assert jax.tree.structure(merge(joined)) == jax.tree.structure(params)
    for expert, before in outputs(params, inputs).items():
        assert np.abs(apart[expert] - before).max() > 1e-2
        np.testing.assert_allclose(apart[expert], together[expert], rtol=0, atol=1e-6 * np.abs(before).max())


def test_what_is_trained_is_what_the_patterns_say(example):
    params, _ = example
    trainable, base = (leaves(tree) for tree in split(params, LORA, jax.random.key(0)))
    full = {path for path in trainable if not path.endswith(("/a", "/b"))}
    assert full == {p for p in leaves(params) if "time_" in p} | {"blocks/expert_1/mlp_in/kernel"}
    kernels = {f"blocks/expert_{e}/{m}/kernel" for e in (0, 1) for m in ("qkv", "attn_out", "mlp_in", "mlp_out")}
    assert {p[:-2] for p in set(trainable) - full} == kernels - full
    assert set(base) == set(leaves(params)) - full
    a, b = (trainable[f"blocks/expert_0/mlp_out/kernel/{name}"] for name in "ab")
    assert (a.shape, b.shape) == ((3, 16, 2), (3, 2, 8))
    assert 0.8 * 16**-0.5 < np.abs(a).max() <= 16**-0.5
    assert not b.any()
    fewer = split(params, dataclasses.replace(LORA, targets=("mlp_out/kernel",)), jax.random.key(0))[0]
    assert_identical(
        fewer["blocks"]["expert_0"]["mlp_out"],
        split(params, LORA, jax.random.key(0))[0]["blocks"]["expert_0"]["mlp_out"],
    )


def test_gradients_reach_every_trained_weight_and_no_merged_kernel_is_made(example, randomise):
    params, inputs = example
    config = dataclasses.replace(LORA, full=())
    trainable, base = split(params, config, jax.random.key(0))

    def loss(trainable, base):
        moved = STACK.apply({"params": join(trainable, base, config)}, *inputs, PLAN)[0]
        return sum(jnp.sum(x**2) for x in moved.values())

    grads = jax.jit(jax.grad(loss))(moved(trainable, randomise), base)
    assert jax.tree.structure(grads) == jax.tree.structure(trainable)
    assert all(np.abs(grad).max() > 0 for grad in jax.tree.leaves(grads))
    made = _made(jax.make_jaxpr(jax.grad(loss))(trainable, base).jaxpr)
    kernels = {path: leaf.shape for path, leaf in leaves(base).items() if path.startswith("blocks/") and leaf.ndim == 3}
    assert len(kernels) == 8
    assert not made & (set(kernels.values()) | {shape[1:] for shape in kernels.values()})
    everything = _made(jax.make_jaxpr(jax.grad(lambda p: loss({}, p)))(params).jaxpr)
    assert everything >= {shape[1:] for shape in kernels.values()}  # the search does see gradients of kernels


def _made(jaxpr) -> set[tuple[int, ...]]:
    """Shapes of all that products and sums in a program make."""
    shapes = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "add", "add_any", "mul", "transpose"):
            shapes |= {variable.aval.shape for variable in equation.outvars}
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            shapes |= _made(inner) if hasattr(inner, "eqns") else set()
    return shapes


@pytest.mark.parametrize(("name", "millions"), [("wan2.1-i2v-14b", 19.17), ("wan2.2-ti2v-5b", 10.08)])
def test_adapters_of_dreamzero_s_networks_have_the_published_size(name, millions):
    """Both look at an image, whose keys and values get no adapters (specification of DreamZero, measured upstream)."""
    config = dataclasses.replace(WAN_DITS[name], image=1280)
    latents = jnp.zeros((1, 1, 2, 2, config.inputs))
    inputs = latents, jnp.zeros((1, 1)), jnp.zeros((1, 1, config.text)), jnp.zeros((1, 257, config.image))

    def init(key):
        return split(WanDiT(config).init(key, *inputs)["params"], LoRAConfig(), key)

    trainable, base = jax.eval_shape(init, jax.random.key(0))
    assert round(sum(leaf.size for leaf in leaves(trainable).values()) / 1e6, 2) == millions
    assert len(leaves(trainable)) == 2 * 10
    assert not any("_img" in path for path in leaves(trainable))
    assert "blocks/expert_0/cross_attn/k_img/kernel" in leaves(base)


def test_mistakes_are_named(example):
    params, _ = example
    with pytest.raises(UserError, match="no parameter matches 'blocks/nothing/kernel'"):
        split(params, LoRAConfig(targets=("blocks/nothing/kernel",)), jax.random.key(0))
    with pytest.raises(UserError, match="is no matrix"):
        split({"a": {"bias": np.zeros(3)}}, LoRAConfig(targets=("bias",)), jax.random.key(0))
    with pytest.raises(UserError, match=r"train.lora.rank is 0"):
        LoRAConfig(rank=0)
    trainable, base = split(params, LORA, jax.random.key(0))
    other = jax.tree.map(lambda x: x[..., :-1], base)
    with pytest.raises(UserError, match="do not fit a base of"):
        join(trainable, other, LORA)


class Quadratic:
    """A policy with one kernel whose loss is the size of what it makes of the batch."""

    def init(self, key):
        return {"kernel": jax.random.normal(key, (4, 3)), "bias": jnp.zeros(3)}

    def encode(self, frozen, key, batch):
        return {"x": batch["x"] + frozen["shift"]}

    def draw(self, key, encoded):
        return None

    def loss(self, params, frozen, encoded, draws):
        kernel = params["kernel"]
        kernel = kernel.base + kernel.scale * kernel.a @ kernel.b if isinstance(kernel, LowRank) else kernel
        y = encoded["x"] @ kernel + params["bias"]
        return {"size": (jnp.sum(y**2), jnp.float32(y.size))}


SIMPLE = LoRAConfig(rank=1, targets=("kernel",), full=("bias",))


def test_adapters_refuse_another_base():
    params = Quadratic().init(jax.random.key(0))
    one, other = (adapt(Quadratic(), {**params, "kernel": k * params["kernel"]}, {}, SIMPLE, seed=0) for k in (1, 2))
    policy, trainable, frozen = one
    assert isinstance(policy, Adapted)
    assert list(trainable) == list(frozen["base"]) == [policy.base]
    assert_identical(merged(trainable, frozen, SIMPLE), (params, {}))
    for act in (merged, lambda t, f, c: policy.loss(t, f, {"x": jnp.zeros((1, 4))}, None)):
        with pytest.raises(UserError, match=f"belong to {policy.base}, not to {other[0].base}"):
            act(trainable, other[2], SIMPLE)


def test_without_adapters_nothing_is_wrapped():
    policy, params, frozen = Quadratic(), {"kernel": 1}, {"shift": 0}
    assert adapt(policy, params, frozen, None, seed=0) == (policy, params, frozen)
    assert merged(params, frozen, None) == (params, frozen)


@functools.cache
def mesh():
    return make_mesh(MeshConfig(data=1), jax.devices()[:1])


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_step_changes_adapters_only_and_averages_only_if_asked(ema):
    params = Quadratic().init(jax.random.key(1))
    policy, trainable, frozen = adapt(Quadratic(), params, {"shift": jnp.ones(4)}, SIMPLE, seed=0)
    optimizer = make_optimizer(OptimizerConfig(warmup_steps=0), 10)
    before = jax.tree.map(np.asarray, trainable[policy.base])
    state = init_state(policy, optimizer, ema, 0, mesh(), (), trainable)
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim) == 2 * (4 + 3 + 3)
    step = make_step(policy, optimizer, ema, 0, mesh(), state)
    for _ in range(2):
        state, metrics = step(state, frozen, {"x": jnp.ones((2, 4))})
    after = state.params[policy.base]
    assert all(np.abs(after[k]["b"] if k == "kernel" else after[k]).min() > 0 for k in ("kernel", "bias"))
    assert np.abs(after["kernel"]["a"] - before["kernel"]["a"]).max() > 0
    assert float(metrics["grad_norm"]) > 0
    if ema:
        assert jax.tree.structure(state.averaged) == jax.tree.structure(state.params)
        assert np.abs(state.averaged[policy.base]["bias"] - after["bias"]).max() > 0
    else:
        assert state.averaged is state.params


ADAPTERS = ("train.lora={'rank': 2, 'full': ['read_action/.*', 'embed_state/.*']}", "train.optimizer.ema=0.0")


@pytest.fixture(scope="module")
def undisturbed(dataset, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("lora") / "undisturbed"
    assert main(arguments(dataset, run, "train.steps=6", *ADAPTERS)) == 0
    return run


@pytest.mark.slow
def test_a_run_with_adapters_that_was_interrupted_goes_on_to_the_same_bits(dataset, undisturbed, tmp_path, monkeypatch):
    import wamjax.training.loop as loop

    original, calls = loop.to_devices, []

    def failing(batch, mesh):
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("power cut")
        return original(batch, mesh)

    monkeypatch.setattr(loop, "to_devices", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        main(arguments(dataset, tmp_path / "run", "train.steps=6", *ADAPTERS))
    monkeypatch.undo()
    assert main(arguments(dataset, tmp_path / "run", "train.steps=6", *ADAPTERS)) == 0
    assert_identical(state_of(tmp_path / "run"), state_of(undisturbed))


def test_a_checkpoint_with_adapters_merges_into_the_policy_s_own_parameters(undisturbed):
    """Every kernel with adapters moved, what is trained in full moved, and the rest is the start to the bit."""
    checkpoints = Checkpoints(undisturbed)
    experiment = configuration.build(_experiment.Experiment, checkpoints.meta(6)["config"])
    policy = SmallWAM(experiment.policy, SampleShapes(**checkpoints.meta(6)["shapes"]))
    params, frozen = merged(*checkpoints.params(6), experiment.train.lora)
    start = jax.jit(policy.init)(jax.random.key(0))
    assert set(frozen) == {"codec", "state", "action"}
    assert jax.tree.structure(params) == jax.tree.structure(start)
    changed = {path for path, leaf in leaves(params).items() if np.any(leaf != leaves(start)[path])}
    assert {path for path in changed if "stack/" in path} == {
        p for p in leaves(start) if "blocks" in p and "kernel" in p
    }
    assert {path.split("/")[0] for path in changed} == {"stack", "read_action", "embed_state"}


def test_a_run_refuses_to_go_on_over_another_base(undisturbed):
    checkpoints = Checkpoints(undisturbed)
    experiment = configuration.build(_experiment.Experiment, checkpoints.meta(6)["config"])
    policy = SmallWAM(experiment.policy, SampleShapes(**checkpoints.meta(6)["shapes"]))
    frozen = checkpoints.params(6)[1]["policy"]
    options = {"mesh": mesh(), "rules": (), "batches": None, "validation": None, "run": undisturbed, "meta": {}}
    other = jax.tree.map(lambda x: x + 1, jax.jit(policy.init)(jax.random.key(0)))
    with pytest.raises(
        UserError, match=r"belongs to another policy, base or configuration: base_[0-9a-f]{16}/.* expected"
    ):
        train(policy, frozen, experiment.train, initial=lambda: other, **options)


def test_a_base_is_spread_over_the_mesh_like_the_parameters_it_was(undisturbed):
    places = shardings({"frozen": Checkpoints(undisturbed).params(6)[1]}, PARTITIONS, mesh())
    specs = {path: place.spec for path, place in leaves(places).items()}
    (kernel,) = (path for path in specs if path.endswith("expert_0/mlp_out/kernel"))
    assert kernel.startswith("frozen/base/")
    assert specs[kernel] == jax.P(None, "tensor", "fsdp")


def test_an_imported_start_is_trained_from(dataset, tmp_path):
    """With a rate of zero, a run ends with what it was given."""
    experiment = _experiment.load(ROOT / "configs/metaworld_joint.py", (*SMALL, "train.steps=2"))
    store, system = EpisodeStore(dataset), _experiment.system(experiment)
    policy = system.policy(experiment, system.shapes(experiment, store))
    frozen = system.frozen(experiment, store, policy, system.statistics(experiment, store, policy), mesh())
    initial = jax.tree.map(lambda x: x + 1, jax.jit(policy.init)(jax.random.key(7)))
    given = jax.tree.map(np.asarray, initial)
    still = dataclasses.replace(experiment.train, optimizer=OptimizerConfig(learning_rate=0.0, ema=0.0))
    loader = system.loader(experiment, store, policy)
    options = {"mesh": mesh(), "rules": (), "batches": loader, "validation": None, "run": tmp_path, "meta": {}}
    train(policy, frozen, still, initial=lambda: initial, **options)
    assert_identical(Checkpoints(tmp_path).params(2)[0], given)

    def again() -> None:
        raise AssertionError("a run that goes on asked for what it began with")

    train(policy, frozen, dataclasses.replace(still, steps=3), initial=again, **options)
    assert_identical(Checkpoints(tmp_path).params(3)[0], given)


def test_the_cosine_falls_from_a_warm_up_that_is_a_share_of_the_run():
    config = OptimizerConfig(
        learning_rate=2.0, warmup_steps=0, warmup_fraction=0.05, decay_fraction=0.95, decay="cosine", final_fraction=0.0
    )
    rate = schedule(config, 200)
    expected = [0.0, 1.0, 2.0, 2 * (1 + np.cos(np.pi / 4)) / 2, 1.0, 0.0]
    np.testing.assert_allclose([float(rate(s)) for s in (0, 5, 10, 10 + 190 / 4, 105, 200)], expected, atol=1e-6)
    with pytest.raises(UserError, match="'cosin': use one of linear, cosine"):
        OptimizerConfig(decay="cosin")


def test_the_parameters_that_decay_are_those_of_the_patterns():
    params = {"q": {"kernel": {"a": 1.0, "b": 1.0}, "bias": 1.0}, "norm_q": {"scale": 1.0}, "modulation": 1.0}
    params = jax.tree.map(lambda x: np.full((2, 2), x, np.float32), params)

    def decayed(config):
        optimizer = make_optimizer(config, 10)
        updates, _ = optimizer.update(jax.tree.map(np.zeros_like, params), optimizer.init(params), params)
        return {path for path, leaf in leaves(optax.apply_updates(params, updates)).items() if np.all(leaf < 1)}

    config = OptimizerConfig(warmup_steps=0, weight_decay=0.5)
    assert decayed(config) == {"q/kernel/a", "q/kernel/b"}
    config = dataclasses.replace(config, decayed=("modulation", "norm_[qk]/scale"))
    assert decayed(config) == {"modulation", "norm_q/scale"}


def test_a_training_run_without_adapters_keeps_its_configuration():
    assert TrainConfig().lora is None
    built = configuration.build(TrainConfig, {"lora": {"rank": 8, "full": ["x"]}})
    assert built.lora == LoRAConfig(rank=8, full=("x",))
