"""Speed of DreamZero's network beside the published module: one process, same weights and inputs, in turns.

    ATTENTION_BACKEND=torch python tests/parity/benchmark_dreamzero.py DREAMZERO [float32|bfloat16] [call|chunk|train]

DREAMZERO is a checkout as of regenerate.py. The network is that of configs/dreamzero_bench.py. The published attention
casts to bfloat16; here it is given PyTorch's kernel in the numbers of the run. One guidance branch after the other
there, as on one GPU; both in a batch here, as the policy does. Before timing, outputs are compared.

Wall time is fair on a quiet machine only: beside other programs the two thread pools lose unequally. On a shared one,
pin the process to one core (`taskset -c 0`, with OMP_NUM_THREADS=1) and read the processor time.
"""

import dataclasses
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.parity.recipe import draw, weights
from wamjax.cli import _experiment
from wamjax.interop.dreamzero import keymap
from wamjax.interop.keymap import flatten, to_ours
from wamjax.networks.wan.dit import Precision
from wamjax.policies.dreamzero.network import Clip, DreamZeroNetwork, NetworkConfig, Past, Robot
from wamjax.training.host_memory import keep_freed_memory

CONFIG: Any = _experiment.load(Path(__file__).parents[2] / "configs/dreamzero_bench.py").policy
NETWORK: NetworkConfig = CONFIG.network
ROWS, COLUMNS, BLOCKS, RUNS = 12, 20, 4, 8
FRAME = ROWS * COLUMNS // 4
LEVELS = np.linspace(990, 110, RUNS).astype(np.float32)
GUIDANCE = 5.0
ROUNDS = 5
TASKS = ("call", "chunk", "train")


def published(folder: str) -> torch.nn.Module:
    """CausalWanModel of the same size, with random weights."""
    sys.path.insert(0, folder)
    submodule = importlib.import_module("groot.vla.model.dreamzero.modules.wan2_1_submodule")
    module = importlib.import_module("groot.vla.model.dreamzero.modules.wan_video_dit_action_casual_chunk")

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(*heads_first).transpose(1, 2)

    submodule.flash_attention = attend
    dit = NETWORK.dit
    model = module.CausalWanModel(
        **{"model_type": "i2v", "dim": dit.width, "ffn_dim": dit.mlp, "freq_dim": dit.frequencies},
        **{"text_dim": dit.text, "num_heads": dit.heads, "num_layers": dit.layers, "text_len": dit.text_length},
        **{"frame_seqlen": FRAME, "in_dim": dit.inputs, "out_dim": dit.outputs, "max_chunk_size": BLOCKS},
        **{"num_frame_per_block": 2, "action_dim": NETWORK.action, "max_state_dim": NETWORK.state},
        **{"hidden_size": NETWORK.hidden, "num_action_per_block": 24, "num_state_per_block": 1},
        **{"qk_norm": True, "cross_attn_norm": True, "concat_first_frame_latent": True},
    ).eval()
    for part in model.modules():
        if type(part).__name__ == "AttentionModule":
            part.attn_func = attend
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict({key: torch.from_numpy(value) for key, value in weights(shapes, 0).items()})
    return model


class Ours:
    """wamjax's side: compiled functions of its parameters."""

    def __init__(self, tensors: dict[str, np.ndarray], x: dict[str, np.ndarray], dtype: Any) -> None:
        module = DreamZeroNetwork(NETWORK, Precision(dtype, dtype))
        clip, robot, text, image = _ours_inputs(x, slice(0, 1))
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), clip, robot, text, image))["params"]
        params = to_ours(keymap(NETWORK), tensors, {k: v.shape for k, v in flatten(shapes).items()})
        self.params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
        self.module, self.x, self.dtype = module, x, dtype
        both = _ours_inputs(x, slice(0, 2))
        self.memory = jax.jit(self._remember)(self.params, both[2], both[3])
        self.one = [(k[:, :1], v[:, :1]) for k, v in self.memory]
        self.chunk, self.call = jax.jit(self._chunk), jax.jit(self._call)

    def _remember(self, params: Any, text: Any, image: Any) -> Any:
        return self.module.apply({"params": params}, text, image, method="remember")

    def _call(self, params: Any, memory: Any, cache: Any, level: Any, video: Any, action: Any) -> Any:
        """One denoising call with seven frames known; rows as many as the memory has."""
        b = memory[0][0].shape[1]
        latents = jnp.concatenate([video, self.x["beside"][:1, 7:]], axis=-1)
        rows = [jnp.repeat(jnp.asarray(y), b, axis=0) for y in (latents, action, self.x["state"][:1, 3:])]
        robot = Robot(rows[1], jnp.full((b, 24), level), rows[2], jnp.zeros(b, int))
        past, start = Past(cache, jnp.ones((b, 7), bool)), jnp.full(b, 7)
        arguments = (rows[0], jnp.full((b, 2), level), robot, start, memory, past)
        return self.module.apply({"params": params}, *arguments, method="denoise")

    def _chunk(self, params: Any, memory: Any, cache: Any) -> Any:
        """Commits the frames 5 and 6 beside five known ones, then eight runs of both guidance branches."""
        seen = np.concatenate([self.x["clean"], self.x["beside"]], axis=-1)[:1, 5:7]
        past = Past(cache, jnp.broadcast_to(jnp.arange(7) < 5, (2, 7)))
        arguments = (jnp.repeat(jnp.asarray(seen), 2, axis=0), jnp.full(2, 5), memory, past)
        new = self.module.apply({"params": params}, *arguments, method="commit")
        cache = {name: y.at[:, :, 5 * FRAME :].set(new[name]) for name, y in cache.items()}
        start = tuple(jnp.asarray(self.x[name][:1, -n:]) for name, n in (("noisy", 2), ("action", 24)))

        def step(state: Any, level: Any) -> Any:
            video, action = self._call(params, memory, cache, level, *state)
            video = video[1:] + GUIDANCE * (video[:1] - video[1:])
            return (state[0] - 0.1 * video, state[1] - 0.1 * action[:1]), None

        return jax.lax.scan(step, start, LEVELS)[0]

    def gradient(self, remat: tuple[str, ...] | None) -> Callable[[Any], Any]:
        """Of the training pass of one sample of four blocks."""
        config = dataclasses.replace(NETWORK, dit=dataclasses.replace(NETWORK.dit, remat=remat))
        module = DreamZeroNetwork(config, self.module.precision)
        inputs = _ours_inputs(self.x, slice(0, 1))

        def loss(params: Any) -> Any:
            video, action = module.apply({"params": params}, *inputs)
            return jnp.mean(video**2) + jnp.mean(action**2)

        return jax.jit(jax.value_and_grad(loss))


def _ours_inputs(x: dict[str, np.ndarray], rows: slice) -> tuple[Clip, Robot, Any, Any]:
    clean, noisy = (np.concatenate([x[name], x["beside"]], axis=-1)[rows] for name in ("clean", "noisy"))
    b = len(clean)
    robot = Robot(x["action"][rows], x["timestep_action"][rows], x["state"][rows], jnp.zeros(b, int))
    return Clip(clean, noisy, x["timestep"][rows]), robot, jnp.asarray(x["text"][rows]), jnp.asarray(x["image"][rows])


class Theirs:
    """The published side."""

    def __init__(self, model: torch.nn.Module, x: dict[str, np.ndarray], dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype
        self.x = {key: torch.from_numpy(value).to(dtype) for key, value in x.items()}
        for key in ("clean", "noisy", "beside"):
            self.x[key] = self.x[key].permute(0, 4, 1, 2, 3)

    def call(self, run: Any, row: int, video: Any, start: int, level: float, cache: Any, robot: dict) -> Any:
        """One cached call of one guidance branch."""
        frames = video.shape[2]
        return run(
            video,
            timestep=torch.full((1, frames), level, dtype=self.dtype),
            context=self.x["text"][row : row + 1],
            seq_len=frames * FRAME,
            kv_cache=cache,
            crossattn_cache=None,
            current_start_frame=start,
            y=self.x["beside"][:1, :, start : start + frames],
            clip_feature=self.x["image"][row : row + 1],
            **robot,
        )

    def robot(self, action: Any, level: float) -> dict:
        """The block's actions and state, as keywords."""
        levels = torch.full((1, 24), level, dtype=self.dtype)
        return {"action": action, "timestep_action": levels, "state": self.x["state"][:1, 3:]}

    def chunk(self, run: Any, caches: Any) -> Any:
        """As `Ours._chunk`."""
        seen, video, action = self.x["clean"][:1, :, 5:7], self.x["noisy"][:1, :, -2:], self.x["action"][:1, -24:]
        caches = [self.call(run, row, seen, 5, 0.0, caches[row], {})[2] for row in (0, 1)]
        for level in LEVELS.tolist():
            robot = self.robot(action, level)
            out = [self.call(run, row, video, 7, level, caches[row], robot)[:2] for row in (0, 1)]
            video = video - 0.1 * (out[1][0] + GUIDANCE * (out[0][0] - out[1][0]))
            action = action - 0.1 * out[0][1]
        return video, action

    def gradient(self, run: Any) -> Any:
        """Of the training pass; the published code recomputes its blocks, and cannot do without."""
        self.model.zero_grad()
        x = {key: value[:1] for key, value in self.x.items()}
        video, action = run(
            x["noisy"],
            timestep=x["timestep"],
            timestep_action=x["timestep_action"],
            seq_len=9 * FRAME,
            clean_x=x["clean"],
            y=x["beside"],
            context=x["text"],
            clip_feature=x["image"],
            action=x["action"],
            state=x["state"],
            embodiment_id=torch.zeros(1, dtype=torch.long),
        )
        loss = video.float().square().mean() + action.float().square().mean()
        loss.backward()
        return loss.detach()


def inputs() -> dict[str, np.ndarray]:
    """A sample of four blocks, two prompts, keys and values of seven frames."""
    size, dit, rng = (2, 9, ROWS, COLUMNS), NETWORK.dit, np.random.default_rng(0)
    level = rng.uniform(0, 1000, (2, 9)).astype(np.float32)
    level[:, 2::2] = level[:, 1::2]
    return {
        **{name: draw(name, (*size, 16), 0) for name in ("clean", "noisy")},
        **{"beside": draw("beside", (*size, 20), 0), "timestep": level},
        "timestep_action": rng.uniform(0, 1000, (2, 96)).astype(np.float32),
        "action": draw("action", (2, 96, NETWORK.action), 0),
        "state": draw("state", (2, 4, NETWORK.state), 0),
        "text": draw("text", (2, dit.text_length, dit.text), 0),
        "image": np.repeat(draw("image", (1, 257, dit.image), 0), 2, axis=0),
        "cache": draw("cache", (dit.layers, 2, 2, 7 * FRAME, dit.heads, dit.width // dit.heads), 0),
    }


def race(runs: dict[str, Callable[[], Any]]) -> dict[str, tuple[float, float]]:
    """Median seconds of each, of the clock and of the processor, measured in turns after a first call."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for round_ in range(ROUNDS + 1):
        for name, run in runs.items():
            begin = time.perf_counter(), time.process_time()
            jax.block_until_ready(run())
            if round_:
                seconds[name].append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    return {name: tuple(np.median(each, axis=0).tolist()) for name, each in seconds.items()}


def no_grad(run: Callable[[], Any]) -> Callable[[], Any]:
    """The same without gradients."""

    def quiet() -> Any:
        with torch.no_grad():
            return run()

    return quiet


def compare(what: str, ours: Any, theirs: Any) -> None:
    """Prints how far outputs are apart, root mean square over root mean square."""
    theirs = theirs.detach().float().numpy()
    ours = np.asarray(ours, np.float32)
    print(f"  {what}: outputs differ by {np.sqrt(np.mean((ours - theirs) ** 2) / np.mean(theirs**2)):.1e}", flush=True)


def contests(folder: str, name: str, tasks: list[str]) -> None:
    """Tasks in one kind of numbers, printed as rows."""
    x, model = inputs(), published(folder)
    tensors = {key: value.numpy() for key, value in model.state_dict().items()}
    ours, kind = Ours(tensors, x, jnp.dtype(name)), getattr(torch, name)
    theirs, compiled = Theirs(model.to(kind), x, kind), torch.compile(model)
    keys = {part: jnp.asarray(x["cache"][:, i], ours.dtype) for i, part in enumerate(("k", "v"))}
    single = {part: value[:, :1] for part, value in keys.items()}
    full = [[torch.from_numpy(layer[:, row : row + 1]).to(kind) for layer in x["cache"]] for row in (0, 1)]
    five = [[layer[:, :, : 5 * FRAME] for layer in one] for one in full]
    video, action = x["noisy"][:1, -2:], x["action"][:1, -24:]
    robot = theirs.robot(theirs.x["action"][:1, -24:], 500.0)

    def call(run: Any) -> Callable[[], Any]:
        return no_grad(lambda: theirs.call(run, 0, theirs.x["noisy"][:1, :, -2:], 7, 500.0, full[0], robot)[:2])

    def our_call() -> Any:
        return ours.call(ours.params, ours.one, single, 500.0, video, action)

    def our_chunk() -> Any:
        return ours.chunk(ours.params, ours.memory, keys)

    if "call" in tasks:
        compare("call", our_call()[0], call(model)()[0].permute(0, 2, 3, 4, 1))
        calls = {kind: call(run) for kind, run in _both(model, compiled)}
        row(name, "one denoising call, seven frames known", {"wamjax": our_call} | calls)
    if "chunk" in tasks:
        chunks = {kind: no_grad(lambda run=run: theirs.chunk(run, five)) for kind, run in _both(model, compiled)}
        compare("chunk", our_chunk()[0], chunks["eager"]()[0].permute(0, 2, 3, 4, 1))
        row(name, "a chunk: one commit and eight runs, two prompts", {"wamjax": our_chunk} | chunks)
    if "train" in tasks:
        trained = {"wamjax": ours.gradient(None), "wamjax, recomputing": ours.gradient(("block_in",))}
        runs = {kind: lambda run=run: run(ours.params) for kind, run in trained.items()}
        runs |= {kind: lambda run=run: theirs.gradient(run) for kind, run in _both(model, compiled)}
        compare("loss", runs["wamjax"]()[0], runs["eager"]())
        row(name, "training, forward and backward, four blocks", runs)


def _both(model: Any, compiled: Any) -> list[tuple[str, Any]]:
    return [("eager", model), ("compiled", compiled)]


def row(numbers: str, task: str, runs: dict[str, Callable[[], Any]]) -> None:
    """Races and prints."""
    found = race(runs)
    for i, clock in enumerate(("wall", "processor")):
        each = [f"{name} {value[i]:.3f} s ({value[i] / found['wamjax'][i]:.2f})" for name, value in found.items()]
        print(f"{numbers} | {task} | {clock} | {', '.join(each)}", flush=True)


if __name__ == "__main__":
    folder, *wanted = sys.argv[1:]
    threads = f"{torch.get_num_threads()} threads"
    keep_freed_memory()  # as `wamjax train` does; PyTorch gains by it too
    print(f"jax {jax.__version__}, torch {torch.__version__} ({threads}), medians of {ROUNDS} (over wamjax's)")
    tasks = [word for word in wanted if word in TASKS] or list(TASKS)
    for numbers in [word for word in wanted if word not in TASKS] or ["float32"]:
        contests(folder, numbers, tasks)
