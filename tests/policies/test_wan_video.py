"""Wan as a learner of video: what its loss is, in its three forms; and that it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.policies.dreamzero.tiny import CLIP, UMT5, LettersText, drawn
from wamjax.compute.flops import of_passes
from wamjax.errors import UserError
from wamjax.networks.wan.dit import WAN_DITS, WanDiTConfig
from wamjax.networks.wan.generation import Recipe
from wamjax.networks.wan.vae import WAN21_VAE, WanVAEConfig
from wamjax.policies.contract import Draws
from wamjax.policies.frozen import PatchFrames, UMT5Text, WanFrames, WordsText, networks, pretrained_shapes
from wamjax.policies.wan_video import WanVideo, WanVideoConfig

RECIPE = Recipe(steps=2, frames=5, fps=10.0, height=16, width=32)
DIT = WanDiTConfig(width=24, mlp=32, heads=2, layers=2, inputs=12, outputs=12, text=16, text_length=2)
SMALL = WanVideoConfig(DIT, "front", RECIPE, PatchFrames(patch=4, components=3), WordsText(16), drop_text=0.5)


def small(**changes) -> WanVideo:
    """Linear frames and words: nothing pretrained."""
    return WanVideo(dataclasses.replace(SMALL, **changes), height=20, width=30)


def conditioned() -> WanVideo:
    """All of Wan's parts, tiny: the first frame beside the latents, and seen by CLIP."""
    dit = dataclasses.replace(DIT, inputs=24, outputs=10, text=32, text_length=12, image=32)
    vae = WanVAEConfig(width=8, decoder_width=8, latent=10)
    text = LettersText(encoder=UMT5, length=12)
    return small(network=dit, frames=WanFrames(vae=vae), text=text, image=CLIP)


def batch(policy: WanVideo, rows: int = 3):
    rng, shapes = np.random.default_rng(0), policy.shapes
    frames = rng.integers(0, 256, (rows, 1, shapes.future + 1, shapes.height, shapes.width, 3), np.uint8)
    prompts = [np.asarray(policy.tokenize(text), np.float32) for text in ("open it", "close it", "wait")]
    return {"frames": frames, "language": np.stack(prompts[:rows])}


def ready(policy: WanVideo):
    """Parameters none of which is zero, frozen ones, an encoded batch and draws."""
    params = drawn(policy.init, 1)
    inputs = {
        "frames": (jnp.zeros((1, 1, 16, 16, 3)),),
        "text": (jnp.ones((1, 2), int), jnp.ones((1, 2), bool)),
        "image": (jnp.zeros((1, 28, 28, 3)),),
    }
    given = {name: drawn(one.init, 2, *inputs[name])["params"] for name, one in networks(policy.config).items()}
    frozen = policy.freeze(batch(policy)["frames"][0, 0], {}, given)
    encoded = jax.jit(lambda frozen, batch: policy.encode(frozen, None, batch))(frozen, batch(policy))
    return params, frozen, encoded, policy.draw(jax.random.key(3), encoded)


def chosen(draws: Draws, **changes) -> Draws:
    return dataclasses.replace(draws, chosen=draws.chosen | {k: jnp.asarray(v) for k, v in changes.items()})


def loss(policy, params, frozen, encoded, draws) -> float:
    total, weight = policy.loss(params, frozen, encoded, draws)["video"]
    assert weight == 3
    return float(total)


def test_the_loss_is_the_weighted_error_of_the_velocity_under_the_prompts_that_are_not_dropped():
    policy = small()
    params, frozen, encoded, draws = ready(policy)
    draws = chosen(draws, dropped=[False, True, False])
    x, noise, sigma = encoded["video"], draws.noise["video"], draws.sigma["video"][:, :, None, None, None]
    text = encoded["text"].at[1].set(frozen["negative"])
    noisy = (1 - sigma) * x + sigma * noise
    velocity = policy.network.apply({"params": params}, noisy, 1000 * draws.sigma["video"], text)
    error = jnp.square(velocity - (noise - x)).mean((1, 2, 3, 4)) * policy._times.weight_at(draws.sigma["video"])[:, 0]
    assert loss(policy, params, frozen, encoded, draws) == pytest.approx(float(error.sum()), rel=1e-5)
    assert frozen["negative"] == pytest.approx(policy.tokenize("")[None])


def test_a_first_frame_that_is_given_is_seen_clean_and_not_scored():
    policy = small(first_frame=0.5)
    params, frozen, encoded, draws = ready(policy)
    with_first, without = (chosen(draws, given=[value] * 3) for value in (True, False))
    other = dataclasses.replace(draws, noise={"video": draws.noise["video"].at[:, 0].set(7.0)})
    assert loss(policy, params, frozen, encoded, with_first) == pytest.approx(
        loss(policy, params, frozen, encoded, chosen(other, given=[True] * 3)), rel=1e-6
    )
    assert loss(policy, params, frozen, encoded, without) != pytest.approx(
        loss(policy, params, frozen, encoded, chosen(other, given=[False] * 3)), rel=1e-3
    )


def test_a_first_frame_beside_the_latents_is_a_mask_and_latents_and_features():
    policy = conditioned()
    frozen = {name: {} for name in ("frames", "text", "image")} | pretrained_shapes(policy.config)
    found = jax.eval_shape(lambda frozen: policy.encode(frozen, None, batch(policy)), frozen)
    sizes = {name: leaf.shape for name, leaf in found.items()}
    assert sizes == {"video": (3, 2, 2, 4, 10), "beside": (3, 2, 2, 4, 14), "text": (3, 12, 32), "image": (3, 5, 32)}
    terms = jax.eval_shape(
        lambda params, frozen, encoded: policy.loss(params, frozen, encoded, policy.draw(jax.random.key(0), encoded)),
        *(jax.eval_shape(policy.init, jax.random.key(0)), {"negative": jnp.zeros((12, 32))}, found),
    )
    assert terms["video"][0].shape == ()


def test_draws_have_the_shares_asked_for():
    policy = small(first_frame=0.25, drop_text=0.1)
    encoded = {"video": jnp.zeros((4000, 1, 1, 1, 1))}
    draws = policy.draw(jax.random.key(0), encoded)
    shares = {name: float(x.mean()) for name, x in draws.chosen.items()}
    assert shares == pytest.approx({"dropped": 0.1, "given": 0.25}, abs=0.03)
    assert float((draws.sigma["video"] > 0.5).mean()) == pytest.approx(5 / 6, abs=0.03)  # shifted towards noise


FORMS = {"text": small, "kept": lambda: small(first_frame=0.5), "beside": conditioned}
"""By where the first frame stands."""


@pytest.mark.parametrize("form", ["kept", *(pytest.param(form, marks=pytest.mark.slow) for form in ("text", "beside"))])
def test_every_form_has_gradients_everywhere_and_imagines_films(form):
    policy = FORMS[form]()
    params, frozen, encoded, draws = ready(policy)
    draws = chosen(draws, dropped=[False, True, False], given=[True, False, False])
    slope = jax.jit(jax.grad(lambda p: policy.loss(p, frozen, encoded, draws)["video"][0]))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(slope):
        assert np.abs(leaf).max() > 0, path
    now = {"frames": batch(policy)["frames"][:, :, 0], "language": batch(policy)["language"]}

    @jax.jit
    def imagine(frames):
        state, noise = policy.reset(params, frozen, now), policy.draw_act(jax.random.key(0), 3)
        return policy.imagine(params, frozen, state, {"frames": frames}, noise)

    film = np.asarray(imagine(now["frames"]))
    assert film.shape == (3, 1, 5, 16, 32, 3)
    assert (form == "text") == bool((imagine(255 - now["frames"]) == film).all())


def test_recorded_films_are_shown_whole_in_height_and_cut_in_width_where_they_are_too_wide():
    policy = WanVideo(SMALL, height=16, width=64)
    frames = np.zeros((1, 1, 5, 16, 64, 3), np.uint8)
    frames[:, :, :, :, :16] = 255  # out of the middle, which has twice the height
    assert policy.picture(jnp.asarray(frames)).max() == 0
    frames[:, :, :, :, 16:32] = 255
    shown = np.asarray(policy.picture(jnp.asarray(frames)))
    assert (shown[..., :16, :] == 255).all()
    assert (shown[..., 16:, :] == 0).all()


def test_wan_14b_at_720p_has_the_published_size_and_work():
    """compute.md: 75,600 tokens, 14,288,491,584 parameters, 6.523 PF a forward pass (projections and attention)."""
    config = WanVideoConfig(
        WAN_DITS["wan2.1-t2v-14b"], "video", Recipe(height=720, width=1280), WanFrames(WAN21_VAE), UMT5Text()
    )
    policy = WanVideo(config, 720, 1280)
    assert policy.plan.length == 75_600
    params = jax.eval_shape(policy.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 14_288_491_584
    assert of_passes(policy.passes("train")).total / 3 == pytest.approx(6.523e15, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": dataclasses.replace(RECIPE, frames=6)}, "6 frames of 16x32 cannot be learnt"),
        ({"recipe": dataclasses.replace(RECIPE, width=36)}, "multiples of 8 and 8"),
        ({"network": dataclasses.replace(DIT, outputs=10)}, "do not fit the 12 of policy.frames"),
        ({"image": CLIP}, "policy.image and policy.network.image go together"),
        ({"first_frame": 1.5}, "policy.first_frame is 1.5"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        small(**changes)


def test_it_does_not_act():
    with pytest.raises(UserError, match="does not act"):
        small().act(None, None, None, None, None)
