"""A transformer over named streams: embed each stream, run the joint stack, read some streams out again.

The small policies are made of it. A table of `Stream`s says everything; there is no branch on a stream's name.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from wamjax.nn.layers import Linear, rms_norm
from wamjax.nn.stack import Cache, Stack, StackConfig
from wamjax.nn.tokens import Group, TokenIds, TokenPlan

PARTITIONS: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"stack/blocks/.*(qkv|mlp_in)/kernel", (None, "fsdp", "tensor")),
    (r"stack/blocks/.*(attn_out|mlp_out)/kernel", (None, "tensor", "fsdp")),
    (r"stack/time_\d+/.*/kernel", ("fsdp", "tensor")),
    (r"(embed|read)_.*/kernel", ()),
    (r".*", ()),
)
"""Parameter path (regular expression, first match wins) to the mesh axes of its dimensions."""


@dataclasses.dataclass(frozen=True)
class Stream:
    """One stream of tokens.

    Attributes:
        name: its name in plans, inputs and outputs.
        length: tokens per sample.
        channels: channels per token.
        expert: the expert that processes it.
        outputs: channels of the prediction that the network reads out for it; 0 where it is only read.
    """

    name: str
    length: int
    channels: int
    expert: int = 0
    outputs: int = 0

    def group(self) -> Group:
        """The stream's group in a token plan."""
        return Group(self.name, self.length, self.expert)


class StreamTransformer(nn.Module):
    """Embeds streams, runs the stack, reads out the streams that have outputs.

    Attributes:
        streams: all streams the network knows, in sequence order.
        stack: shape of the joint stack.
    """

    streams: tuple[Stream, ...]
    stack: StackConfig

    @nn.compact
    def __call__(
        self,
        inputs: dict[str, Float[Array, "b n c"]],
        sigma: Float[Array, "b m"],
        ids: TokenIds,
        plan: TokenPlan,
        cache: Cache | None = None,
    ) -> tuple[dict[str, Float[Array, "b n c"]], Cache]:
        """Runs the network over the streams given, which are the plan's last groups.

        Args:
            inputs: raw tokens of each stream.
            sigma: per sample, the table of noise times indexed by `ids.time`.
            ids, plan: of the whole sequence, cached tokens included.
            cache: keys and values of the plan's first groups.

        Returns:
            What was read out of the inputs that have outputs (b, n, outputs), and the inputs' keys and values.
        """
        present = [stream for stream in self.streams if stream.name in inputs]
        embedded = {stream.name: self._embed(stream, inputs[stream.name]) for stream in present}
        tokens = {
            expert: jnp.concatenate([embedded[s.name] for s in present if s.expert == expert], axis=1)
            for expert in sorted({s.expert for s in present})
        }
        tokens, cache = Stack(self.stack, name="stack")(tokens, sigma, ids, plan, cache)
        outputs, start = {}, dict.fromkeys(tokens, 0)
        for stream in present:
            first = start[stream.expert]
            start[stream.expert] = first + stream.length
            if stream.outputs:
                outputs[stream.name] = self._read(stream, tokens[stream.expert][:, first : first + stream.length])
        return outputs, cache

    def products(self, plan: TokenPlan, queries: int) -> float:
        """Multiply-adds with weights of one sample's pass over the plan's last `queries` tokens."""
        stack, streams = self.stack, {stream.name: stream for stream in self.streams}
        inner, total, position = stack.heads * stack.head_dim, 0.0, 0
        for group in plan.groups:
            computed = group.length if position >= plan.length - queries else 0
            position += group.length
            stream, expert = streams[group.stream], stack.experts[group.expert]
            block = 4 * inner * expert.width + 2 * expert.width * expert.mlp
            total += computed * (stack.layers * block + (stream.channels + stream.outputs) * expert.width)
        return total

    def _embed(self, stream: Stream, x: Array) -> Array:
        width = self.stack.experts[stream.expert].width
        position = self.param(f"position_{stream.name}", nn.initializers.normal(0.02), (stream.length, width))
        return Linear(width, name=f"embed_{stream.name}")(x) + position.astype(x.dtype)

    def _read(self, stream: Stream, x: Array) -> Array:
        return Linear(stream.outputs, kernel_init=nn.initializers.zeros, name=f"read_{stream.name}")(rms_norm(x))
