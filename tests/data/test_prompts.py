"""Prompts: the instruction in its template, and templates known by their SHA-256 only."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from wamjax import config
from wamjax.data import prompts
from wamjax.data.embodiments import load, names
from wamjax.data.prompts import Prompts, foreign, literal, sha256
from wamjax.errors import UserError

PUBLISHED = {
    "droid": "201917bc10205e96ba0cd86a560c098d64290a6e8f2daf875929a2aa64552a66",
    "agibot": "d7ee36ff0a056c8d4008d36bc0b7f85226d9772df11d59ea3028edc56f9205fa",
    "yam": "ec1049668612783b48dda6e8a40073c90b5a01abf001a777b01245ecd926eae4",
}


def test_the_published_hashes() -> None:
    assert {name: load(name).prompt_sha256 for name in PUBLISHED} == PUBLISHED
    assert prompts.NEGATIVE_SHA256 == "38191719adbfd23b3ea32e43dd75423a39d2455b0944b86cfbe82e43e6c0ff25"


def test_the_instruction_appears_in_lower_case_wherever_the_template_wants_it() -> None:
    template = Prompts("Do {t} The robot does {t}")
    assert template.render("Pick UP the Cup") == "Do pick up the cup The robot does pick up the cup"
    assert template.render("") == "Do  The robot does "
    for name in names():
        robot = load(name)
        assert prompts.own(robot).render("Turn {t} Left").count("turn {t} left") == robot.prompt.count("{t}")
    assert all(load(name).prompt.count("{t}") == 2 for name in PUBLISHED)


LITERALS = [
    ("pick up the cup", "pick up the cup"),
    ("['Open It', 'close it']", "Open It"),
    ("('open it',)", "open it"),
    ("'quoted'", "quoted"),
    ("[['a', 'b'], 'c']", "['a', 'b']"),
    ("7", "7"),
    ("0x10", "16"),
    ("1e3", "1000.0"),
    ("None", "None"),
    ("True", "True"),
    ("  'indented'", "indented"),
    ("{'a': 1}", "{'a': 1}"),
    ("['unfinished", "['unfinished"),
    ("robot", "robot"),
    ("1 + 1", "1 + 1"),
    ("[]", "[]"),
    ("", ""),
    ("a\0b", "a\0b"),
]


@pytest.mark.parametrize(("text", "expected"), LITERALS)
def test_literals(text: str, expected: str) -> None:
    assert literal(text) == expected


@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_any_instruction_can_be_rendered() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        text = "".join(rng.choice("[](){}'\",:1e. \\aé\n\0-+~") for _ in range(rng.randrange(12)))
        assert isinstance(Prompts("{t}").render(text), str)
    assert Prompts("{t}").render("(" * 5000) == "(" * 5000


def written(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_a_file_with_the_released_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"oxe_droid": "stand-in {t} and {t}", "yam": "another {t}", "negative": "stand-in"}
    robot = replace(load("droid"), prompt_sha256=sha256(texts["oxe_droid"]))
    monkeypatch.setattr(prompts, "NEGATIVE_SHA256", sha256("stand-in"))
    found = prompts.load(written(tmp_path / "p.json", texts), robot)
    assert found == Prompts("stand-in {t} and {t}", "stand-in")
    assert foreign(found, robot) is None
    assert config.build(Prompts, json.loads(json.dumps(config.to_dict(found)))) == found


def test_other_sentences_are_named_with_both_hashes(tmp_path: Path) -> None:
    robot = load("droid")
    path = written(tmp_path / "p.json", {"oxe_droid": "mine {t}", "negative": "bad"})
    with pytest.raises(UserError) as error:
        prompts.load(path, robot)
    message = str(error.value)
    assert "\n" not in message
    for part in (sha256("mine {t}"), PUBLISHED["droid"], sha256("bad"), prompts.NEGATIVE_SHA256, str(path)):
        assert part in message
    assert prompts.load(path, robot, accept_different=True) == Prompts("mine {t}", "bad")


def test_our_own_sentences_say_that_they_are_not_the_released_ones() -> None:
    for name in PUBLISHED:
        message = foreign(prompts.own(load(name)), load(name))
        assert message is not None
        assert PUBLISHED[name] in message
        assert "\n" not in message
    unreleased = replace(load("yam"), prompt_sha256=None)
    assert "template" not in (foreign(prompts.own(unreleased), unreleased) or "")


BAD_FILES = [
    "",
    "{",
    "[1, 2]",
    "null",
    '{"negative": "x"}',
    '{"oxe_droid": "x {t}"}',
    '{"oxe_droid": 3, "negative": "x"}',
    '{"oxe_droid": "no place", "negative": "x"}',
    "[" * 100_000,
    "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
]


@pytest.mark.parametrize("content", BAD_FILES)
def test_bad_files(content: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        prompts.load(written(tmp_path / "p.json", content), load("droid"))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_missing_and_binary_files(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00{")
    for path in (tmp_path / "none.json", tmp_path, tmp_path / "binary"):
        with pytest.raises(UserError) as error:
            prompts.load(path, load("droid"))
        assert "\n" not in str(error.value)
