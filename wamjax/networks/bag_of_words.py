"""A text encoder without parameters: a hashed bag of words.

It tells a handful of instructions apart, nothing more; pretrained text encoders take its place in larger policies.
"""

from __future__ import annotations

import itertools
import re
import zlib

import numpy as np


def bag_of_words(text: str, width: int = 256) -> np.ndarray:
    """Unit-length float32 vector (width,): lower-cased words and neighbouring pairs counted into hashed bins.

    An empty text gives zeros.
    """
    words = re.findall(r"[a-z0-9]+", text.lower())
    vector = np.zeros(width, np.float32)
    for term in words + [" ".join(pair) for pair in itertools.pairwise(words)]:
        vector[zlib.crc32(term.encode()) % width] += 1.0
    norm = np.linalg.norm(vector)
    return vector / norm if norm else vector
