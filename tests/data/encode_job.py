"""Encodes a dataset with arithmetic in place of networks: what the tests start, kill and start again.

python encode_job.py DATA OUT [process processes]
"""

import logging
import sys
import time
from pathlib import Path

import numpy as np

from wamjax.data.encode import Encoder, Job, begin, encode_prompts, encode_samples, finish
from wamjax.data.latents import Leaf
from wamjax.data.pipeline import ClipConfig, ClipReader
from wamjax.data.samples import Batch
from wamjax.data.store import EpisodeStore

CLIP = ClipConfig(cameras=("corner2",), frame_offsets=(0, 2), action_horizon=2)
LEAVES = {
    "mean": Leaf((2, 3), "float32", "bfloat16"),
    "state": Leaf((4,), "float32", "float32"),
    "text": Leaf((6, 2), "float32", "float32", prompt=True),
}


def tokenize(text: str) -> np.ndarray:
    """Letters as numbers, zeros behind them."""
    return np.pad(np.frombuffer(text.encode()[:6], np.uint8), (0, max(0, 6 - len(text.encode())))).astype(np.float32)


def samples(batch: Batch) -> Batch:
    """Mean colours, and the state."""
    if not batch:
        return {}
    time.sleep(0.01)
    return {"mean": batch["frames"].mean((1, 3, 4)).astype("bfloat16"), "state": batch["state"]}


def prompts(tokens: np.ndarray) -> Batch:
    """Every letter twice."""
    return {"text": np.stack([tokens, tokens], axis=-1)}


def encoder() -> Encoder:
    """Of batches of three."""
    return Encoder(samples, prompts, LEAVES, batch=3, identity="letters")


def job(data: str, out: str, stride: int = 1) -> Job:
    """Two splits, in shards of five."""
    readers = {
        split: ClipReader(EpisodeStore(data, split), CLIP, tokenize, 1 << 20) for split in EpisodeStore(data).splits
    }
    made_of = {"dataset": EpisodeStore(data).fingerprint, "stride": stride}
    return Job(Path(out), readers, stride, shard=5, made_of=made_of, dataset=data)


def run(data: str, out: str, stride: int = 1, process: int = 0, processes: int = 1) -> None:
    """The whole job, or one process's part of it, of which the last one finishes."""
    what, how = job(data, out, stride), encoder()
    begin(what)
    encode_samples(what, how, process, processes)
    if process == processes - 1:
        encode_prompts(what, how)
        finish(what, how)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    run(*sys.argv[1:3])
