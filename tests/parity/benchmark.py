"""Speed and half-precision error beside diffusers and transformers, in one process, on the same inputs:

    pip install -e '.[torch]'
    python tests/parity/benchmark.py            both; or: errors, speed

Speed: both sides compiled, in turns, the best of a few rounds; ratios above 1 mean that wamjax is faster. Errors: of
bfloat16 against the float32 of the same side's own code, both on weights that are bfloat16 numbers to begin with.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.parity.recipe import draw, texts, weights
from wamjax import interop
from wamjax.networks.wan.dit import Precision, WanDiT

DIT = {"num_attention_heads": 4, "attention_head_dim": 128, "text_dim": 512, "ffn_dim": 2048, "num_layers": 6}
VAES = {
    "Wan2.1 VAE": {"base_dim": 32},
    "Wan2.2 VAE": {
        **{"base_dim": 32, "decoder_base_dim": 48, "z_dim": 48, "is_residual": True, "patch_size": 2},
        **{"in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16},
        **{"latents_mean": [0.0] * 48, "latents_std": [1.0] * 48},
    },
}
UMT5 = {"vocab_size": 100, "d_model": 512, "d_kv": 64, "d_ff": 1280, "num_layers": 8, "num_heads": 8}
CLIP = {"hidden_size": 320, "intermediate_size": 1280, "num_hidden_layers": 8, "num_attention_heads": 4}


def filled(model: torch.nn.Module) -> torch.nn.Module:
    """The model with weights of the fixtures' kind, rounded to bfloat16."""
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items() if value.is_floating_point()}
    tensors = {key: torch.from_numpy(value).bfloat16().float() for key, value in weights(shapes, 0).items()}
    for key in tensors:
        if key.endswith("SelfAttention.q.weight"):  # UMT5 does not scale its logits: its queries are small
            tensors[key] = tensors[key] / 8
    if "encoder.embed_tokens.weight" in tensors:
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
    model.load_state_dict(tensors, strict=False)
    return model.eval()


def rounded_draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers that bfloat16 holds exactly."""
    return torch.from_numpy(draw(name, shape, 0)).bfloat16().float().numpy()


def both(model: torch.nn.Module) -> tuple[Any, torch.nn.Module]:
    """Ours, loaded from what the model saved, and the model in bfloat16 as its library loads it."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        half = type(model).from_pretrained(folder, torch_dtype=torch.bfloat16).eval()
        return interop.load(folder, dtype=jnp.float32), half


def rows_of_errors() -> list[tuple[str, float, float]]:
    """Component, our error, PyTorch's: root mean square over the reference's."""
    rows = []
    model = filled(diffusers.WanTransformer3DModel(**DIT))
    ours, half = both(model)
    latents, text = rounded_draw("latents", (2, 3, 16, 16, 16)), rounded_draw("text", (2, 512, 512))
    timestep = np.array([[703.0], [211.0]], np.float32)
    first, words, t = (
        torch.from_numpy(latents).permute(0, 4, 1, 2, 3),
        torch.from_numpy(text),
        torch.from_numpy(timestep),
    )
    exact, rough = (
        m(first.to(k), t[:, 0], words.to(k)).sample for m, k in ((model, torch.float32), (half, torch.bfloat16))
    )
    module = WanDiT(ours.config, Precision(jnp.bfloat16))
    found = ours.module.apply({"params": ours.params}, latents, timestep, text)
    rounded = module.apply({"params": ours.params}, latents, timestep, text)
    rows.append(("transformer", error(rounded, found), error(rough, exact)))
    for name, shape in VAES.items():
        model = filled(diffusers.AutoencoderKLWan(**shape))
        ours, half = both(model)
        clip = rounded_draw("clip", (1, 5, 64, 64, 3))
        side = 16 if "is_residual" in shape else 8
        codes = rounded_draw("codes", (1, 2, 64 // side, 64 // side, shape.get("z_dim", 16)))
        plain = type(ours.module)(type(ours.config)(**{**vars(ours.config), "mean": (), "std": ()}))
        for method, x in (("encode", clip), ("decode", codes)):
            channels_first = torch.from_numpy(x).permute(0, 4, 1, 2, 3)
            exact, rough = (read(getattr(m, method)(channels_first.to(m.dtype)), method) for m in (model, half))
            found, rounded = (
                plain.apply({"params": ours.params}, jnp.asarray(x, t), method=method)
                for t in (jnp.float32, jnp.bfloat16)
            )
            rows.append((f"{name}, {method}", error(rounded, found), error(rough, exact)))
    model = filled(transformers.UMT5EncoderModel(transformers.UMT5Config(**UMT5, feed_forward_proj="gated-gelu")))
    ours, half = both(model)
    tokens, present = texts(0)
    tensors = {"input_ids": torch.from_numpy(tokens), "attention_mask": torch.from_numpy(present).long()}
    exact, rough = (m(**tensors).last_hidden_state[0] for m in (model, half))
    found = ours.module.apply({"params": ours.params}, tokens, present)[0]
    halved = jax.tree.map(lambda x: x.astype(jnp.bfloat16), ours.params)
    rows.append(("UMT5", error(ours.module.apply({"params": halved}, tokens, present)[0], found), error(rough, exact)))
    model = filled(
        transformers.CLIPVisionModel(
            transformers.CLIPVisionConfig(**CLIP, image_size=56, patch_size=14, hidden_act="gelu")
        )
    )
    ours, half = both(model)
    images = rounded_draw("images", (2, 56, 56, 3))
    first = torch.from_numpy(images).permute(0, 3, 1, 2)
    exact, rough = (m(first.to(m.dtype), output_hidden_states=True).hidden_states[-2] for m in (model, half))
    found, rounded = (
        ours.module.apply({"params": ours.params}, jnp.asarray(images, t)) for t in (jnp.float32, jnp.bfloat16)
    )
    rows.append(("CLIP", error(rounded, found), error(rough, exact)))
    return rows


def read(output: Any, method: str) -> torch.Tensor:
    """Means of an encoding, or a decoded clip."""
    return output.latent_dist.mean if method == "encode" else output.sample


def error(rough: Any, exact: Any) -> float:
    """Root mean square of the difference, over that of the exact."""
    rough, exact = (
        x.float().numpy() if isinstance(x, torch.Tensor) else np.asarray(x, np.float32) for x in (rough, exact)
    )
    return float(np.sqrt(np.mean((rough - exact) ** 2) / np.mean(exact**2)))


def rows_of_speed(rounds: int = 7) -> list[tuple[str, float, float]]:
    """Task, our seconds, PyTorch's."""
    rows = []
    model = filled(diffusers.WanTransformer3DModel(**DIT)).requires_grad_(True)
    ours, _ = both(model)
    latents, text = draw("latents", (1, 4, 32, 32, 16), 0), draw("text", (1, 512, 512), 0)
    timestep = np.array([[703.0]], np.float32)
    inputs = (
        torch.from_numpy(latents).permute(0, 4, 1, 2, 3),
        torch.from_numpy(timestep[:, 0]),
        torch.from_numpy(text),
    )
    compiled = torch.compile(model)

    def loss(params: Any) -> jax.Array:
        return jnp.mean(ours.module.apply({"params": params}, latents, timestep, text) ** 2)

    def torch_gradient() -> None:
        model.zero_grad()
        compiled(*inputs).sample.square().mean().backward()

    forward, gradient = jax.jit(loss), jax.jit(jax.grad(loss))
    rows.append(
        ("transformer, forward", *race(lambda: forward(ours.params), no_grad(lambda: compiled(*inputs)), rounds))
    )
    rows.append(("transformer, forward and backward", *race(lambda: gradient(ours.params), torch_gradient, rounds)))
    for name, shape in VAES.items():
        model = filled(diffusers.AutoencoderKLWan(**shape))
        ours, _ = both(model)
        side = 16 if "is_residual" in shape else 8
        sizes = {"encode": (1, 9, 128, 128, 3), "decode": (1, 3, 128 // side, 128 // side, shape.get("z_dim", 16))}
        for method, size in sizes.items():
            x = draw(method, size, 0)
            run = jax.jit(lambda p, x=x, m=method, ours=ours: ours.module.apply({"params": p}, x, method=m))
            first = torch.from_numpy(x).permute(0, 4, 1, 2, 3)
            theirs = no_grad(lambda f=first, m=method, model=model: getattr(model, m)(f))
            rows.append((f"{name}, {method}", *race(lambda r=run, o=ours: r(o.params), theirs, rounds)))
    return rows


def no_grad(run: Callable[[], Any]) -> Callable[[], Any]:
    """The same without gradients."""

    def quiet() -> Any:
        with torch.no_grad():
            return run()

    return quiet


def race(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Best seconds of each, measured in turns after a first call that compiles."""
    best = [np.inf, np.inf]
    for round_ in range(rounds + 1):
        for i, run in enumerate((lambda: jax.block_until_ready(ours()), theirs)):
            start = time.perf_counter()
            run()
            if round_:
                best[i] = min(best[i], time.perf_counter() - start)
    return best[0], best[1]


if __name__ == "__main__":
    wanted = sys.argv[1:] or ["errors", "speed"]
    device = jax.devices()[0].device_kind
    print(f"jax {jax.__version__} ({device}), torch {torch.__version__}, diffusers {diffusers.__version__}\n")
    if "errors" in wanted:
        print("| component | wamjax | PyTorch | ratio |\n|---|---|---|---|")
        with torch.no_grad():
            for name, ours, theirs in rows_of_errors():
                print(f"| {name} | {ours:.2e} | {theirs:.2e} | {ours / theirs:.2f} |", flush=True)
    if "speed" in wanted:
        print("\n| task | PyTorch's time over wamjax's |\n|---|---|")
        for name, ours, theirs in rows_of_speed():
            print(f"| {name} | {theirs / ours:.2f} |", flush=True)
