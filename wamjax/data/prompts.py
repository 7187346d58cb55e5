"""What DreamZero's text encoder reads: an instruction inside a template that describes the views.

The sentences that the released weights were trained with belong to their authors and are not part of this package:
copy them from `groot/vla/model/dreamzero/transform/dreamzero_cotrain.py` of dreamzero0/dreamzero into a file and name
it (`load`). They are known by their SHA-256 only. The sentences here are our own, for models trained with them.
"""

from __future__ import annotations

import ast
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wamjax.data.embodiments import Embodiment
from wamjax.errors import UserError

PLACEHOLDER = "{t}"
NEGATIVE = "negative"  # its key in a prompt file; the others are embodiment tags
NEGATIVE_SHA256 = "38191719adbfd23b3ea32e43dd75423a39d2455b0944b86cfbe82e43e6c0ff25"
OWN_NEGATIVE = "frozen or flickering pictures, smeared edges, objects that melt or vanish, warped arms, lettering"


@dataclass(frozen=True)
class Prompts:
    """The texts around an instruction; a checkpoint keeps them in its configuration.

    Attributes:
        template: `{t}` stands for the instruction, as often as it occurs.
        negative: what guidance leads away from.
    """

    template: str
    negative: str = OWN_NEGATIVE

    def __post_init__(self) -> None:
        if PLACEHOLDER not in self.template:
            raise UserError(f"prompts.template has no {PLACEHOLDER} for the instruction: put it where that belongs")

    def render(self, instruction: str) -> str:
        """The template with the instruction, as the original would make it (`literal`) and in lower case."""
        return self.template.replace(PLACEHOLDER, literal(instruction).lower())


def own(embodiment: Embodiment) -> Prompts:
    """Our own prompts; with released weights, `foreign` has to say about them."""
    return Prompts(embodiment.prompt)


def load(path: str | Path, embodiment: Embodiment, *, accept_different: bool = False) -> Prompts:
    """The prompts of a robot from a JSON file: {"<embodiment tag>": template with {t}, ..., "negative": text}.

    Raises:
        UserError: no such file, not of that form, or not the sentences of the released weights (unless
            `accept_different`).
    """
    path = Path(path)
    try:
        texts: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read prompts from {path} ({error.strerror}): give a JSON file") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): write {_form(embodiment)}") from error
    if not isinstance(texts, dict) or not all(isinstance(texts.get(k), str) for k in (embodiment.tag, NEGATIVE)):
        raise UserError(f"{path} lacks '{embodiment.tag}' or '{NEGATIVE}': write {_form(embodiment)}")
    prompts = Prompts(texts[embodiment.tag], texts[NEGATIVE])
    if not accept_different and (different := foreign(prompts, embodiment)):
        raise UserError(f"{path}: {different}: correct it, or accept different prompts")
    return prompts


def foreign(prompts: Prompts, embodiment: Embodiment) -> str | None:
    """What a warning says where the prompts are not those of the released weights; None where they are."""
    expected = {
        f"the template of '{embodiment.tag}'": (prompts.template, embodiment.prompt_sha256),
        "the negative prompt": (prompts.negative, NEGATIVE_SHA256),
    }
    found = [
        f"{name} has SHA-256 {sha256(text)}, not the {known} of the released weights"
        for name, (text, known) in expected.items()
        if known is not None and sha256(text) != known
    ]
    return "; ".join(found) or None


def literal(instruction: str) -> str:
    """The instruction as the original reads it: text that is a Python literal becomes its value.

    A list or a tuple gives its first element, anything else its `str`; most instructions are no literals and stay as
    they are. An empty list, at which the original fails, stays as it is, too.
    """
    try:
        value = ast.literal_eval(instruction)
        return str(value[0]) if isinstance(value, list | tuple) else str(value)
    except (ValueError, SyntaxError, TypeError, IndexError, MemoryError, RecursionError):
        return instruction


def sha256(text: str) -> str:
    """SHA-256 of the text in UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _form(embodiment: Embodiment) -> str:
    return f'{{"{embodiment.tag}": "... {PLACEHOLDER} ...", "{NEGATIVE}": "..."}}'
