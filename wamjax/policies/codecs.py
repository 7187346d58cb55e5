"""Action and state codecs with weights of their own per embodiment (as in GR00T and DreamZero).

After groot/vla/model/n1_5/modules/action_encoder.py. Weights lead with the category (embodiment) axis; released
DreamZero weights have one category.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from wamjax.nn.layers import sinusoid


class CategoryLinear(nn.Module):
    """A linear map per category.

    Attributes:
        categories: how many.
        features: output width.
    """

    categories: int
    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], category: Int[Array, " b"]) -> Float[Array, "b n e"]:
        kernel = self.param("kernel", nn.initializers.normal(0.02), (self.categories, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.categories, self.features))
        # Every category's map is applied to the few tokens there are: picking weights would copy them per sample.
        every = jnp.einsum("bni,kio->bkno", x, kernel.astype(x.dtype)) + bias.astype(x.dtype)[:, None]
        return jnp.take_along_axis(every, category[:, None, None, None], axis=1)[:, 0]


class CategoryMLP(nn.Module):
    """Two category linears with a ReLU between them."""

    categories: int
    hidden: int
    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], category: Int[Array, " b"]) -> Float[Array, "b n e"]:
        x = jax.nn.relu(CategoryLinear(self.categories, self.hidden, name="layer1")(x, category))
        return CategoryLinear(self.categories, self.features, name="layer2")(x, category)


class ActionEncoder(nn.Module):
    """Noisy actions and their noise levels to tokens of width `features`."""

    categories: int
    features: int

    @nn.compact
    def __call__(
        self, actions: Float[Array, "b n a"], timestep: Float[Array, "b n"], category: Int[Array, " b"]
    ) -> Float[Array, "b n e"]:
        """Encodes.

        Args:
            actions: noisy actions.
            timestep: noise level of each, times 1000.
            category: of each sample.
        """
        layers = [CategoryLinear(self.categories, self.features, name=f"layer{i}") for i in (1, 2, 3)]
        cosine, sine = jnp.split(sinusoid(timestep, self.features), 2, axis=-1)
        level = jnp.concatenate([sine, cosine], axis=-1).astype(actions.dtype)
        x = jnp.concatenate([layers[0](actions, category), level], axis=-1)
        return layers[2](jax.nn.silu(layers[1](x, category)), category)
