"""From prompts to UMT5's token numbers: cleaning, then the SentencePiece model that comes with the weights."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from wamjax.errors import UserError

PLACES = ("spiece.model", "tokenizer/spiece.model", "google/umt5-xxl/spiece.model")
"""Where published models keep the file."""


def clean(prompt: str) -> str:
    """A prompt as Wan cleans it: repaired encoding, HTML entities resolved (twice), runs of white space made one."""
    import ftfy

    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(prompt)))).strip()


class Tokenizer:
    """Cleans and tokenizes prompts.

    Args:
        path: `spiece.model`, or the folder of a model that holds it.
        length: tokens that a prompt is padded or cut to, its end token included.

    Raises:
        UserError: no such file, or not a SentencePiece model.
    """

    def __init__(self, path: Path, length: int = 512) -> None:
        import sentencepiece

        file = path if path.is_file() else next((path / p for p in PLACES if (path / p).is_file()), None)
        if file is None:
            raise UserError(
                f"{path} holds no tokenizer (spiece.model): copy that of google/umt5-xxl to {path}/tokenizer"
            )
        self.length = length
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(file))
        except (RuntimeError, OSError) as error:
            raise UserError(f"{file} is no SentencePiece model: download it again") from error

    def __call__(self, prompts: Sequence[str]) -> tuple[Int[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
        """Token numbers, 0 where padded, and which of them are present."""
        tokens = np.zeros((len(prompts), self.length), np.int32)
        present = np.zeros(tokens.shape, bool)
        for row, prompt in enumerate(prompts):
            pieces = [*self._model.encode(clean(prompt))[: self.length - 1], self._model.eos_id()]
            tokens[row, : len(pieces)] = pieces
            present[row, : len(pieces)] = True
        return tokens, present
