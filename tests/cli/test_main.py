"""The command line: help on every verb, one line for a mistake, a stack trace for a bug."""

import errno
import subprocess
import sys
import types
from pathlib import Path

import pytest

import wamjax
from wamjax.cli import main as cli
from wamjax.errors import NonFiniteLoss, UserError

ROOT = Path(wamjax.__file__).parents[1]
JOINT = "configs/metaworld_joint.py"


def wamjax_command(*arguments: str) -> subprocess.CompletedProcess:
    """Runs ``wamjax`` as a user does, in a process of its own, from the repository's root."""
    command = [sys.executable, "-m", "wamjax.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def verb_that(action) -> types.ModuleType:
    """A verb module whose ``run`` is `action`."""
    module = types.ModuleType("verb", "Does a thing.\n\nIn more words.")
    module.HELP = "do a thing"
    module.add_arguments = lambda parser: cli.add_config_arguments(parser, required=False)
    module.run = action
    return module


@pytest.fixture
def one_verb(monkeypatch: pytest.MonkeyPatch):
    """Installs one verb, ``do``, with a given action."""

    def install(action) -> None:
        monkeypatch.setattr(cli, "verbs", lambda: ["do"])
        monkeypatch.setattr(cli, "verb_module", lambda name: verb_that(action))

    return install


def test_help_lists_every_verb_and_imports_nothing_heavy() -> None:
    code = "import sys; from wamjax.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'jax', 'numpy', 'flax', 'av', 'mujoco', 'grain', 'matplotlib'} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=True)
    *page, imported = done.stdout.splitlines()
    assert imported == "[]"
    for verb in cli.verbs():
        assert any(line.startswith(f"  {verb} ") for line in page), verb


def test_verbs_are_in_reading_order() -> None:
    names = cli.verbs()
    assert names == sorted(names, key=cli.ORDER.index)
    assert {"data", "train", "evaluate", "report"} <= set(names)


@pytest.mark.parametrize("verb", cli.verbs())
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture) -> None:
    module = cli.verb_module(verb)
    assert module.HELP
    assert len(module.HELP) < 90
    assert "\n" not in module.HELP
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0
    page = capsys.readouterr().out
    assert page.startswith(f"usage: wamjax {verb}")
    assert module.__doc__.strip().splitlines()[0] in page


def test_version(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"wamjax {wamjax.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["unknown verb 'trian'", "train", "wamjax --help"]),
        (["train"], ["required", "--config", "wamjax train --help"]),
        (["train", "--conf", "x"], ["required", "--config"]),
        (
            ["train", "--config", "configs/metaworld_jont.py", "--data", "d", "--out", "o"],
            ["no configuration file", "did you mean 'metaworld_joint.py'?"],
        ),
        (
            ["train", "--config", JOINT, "--set", "train.stesp=1", "--data", "d", "--out", "o"],
            ["unknown configuration key 'train.stesp'", "did you mean 'train.steps'?"],
        ),
        (
            ["train", "--config", JOINT, "--data", "no/such/data", "--out", "o"],
            ["no/such/data", "wamjax data collect"],
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: list[str], words: list[str]) -> None:
    done = wamjax_command(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("wamjax: error: ")
    for word in words:
        assert word in line


@pytest.mark.parametrize("mistake", [UserError("one\n  and two"), NonFiniteLoss("one and two")])
def test_user_errors_become_one_line(one_verb, mistake, capsys: pytest.CaptureFixture) -> None:
    def fail(args):
        raise mistake

    one_verb(fail)
    assert cli.main(["do"]) == 2
    assert capsys.readouterr().err == "wamjax: error: one and two\n"


def test_only_a_full_disk_is_a_mistake(one_verb, capsys: pytest.CaptureFixture) -> None:
    def fail(args):
        raise OSError(errno.ENOSPC if args.overrides else errno.EACCES, "trouble", "runs/x")

    one_verb(fail)
    assert cli.main(["do", "--set", "a=1"]) == 2
    assert capsys.readouterr().err.startswith("wamjax: error: the disk is full while writing runs/x: ")
    with pytest.raises(PermissionError):
        cli.main(["do"])


def test_a_bug_keeps_its_stack_trace(one_verb) -> None:
    def fail(args):
        raise RuntimeError("a bug")

    one_verb(fail)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["do"])


def test_interrupting_is_not_a_bug(one_verb, capsys: pytest.CaptureFixture) -> None:
    def fail(args):
        raise KeyboardInterrupt

    one_verb(fail)
    assert cli.main(["do"]) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_exit_code_and_arguments_reach_the_verb(one_verb) -> None:
    seen = []
    one_verb(lambda args: seen.append(args.overrides) or 7)
    assert cli.main(["do", "--set", "a=1", "--set", "b=2"]) == 7
    assert seen == [["a=1", "b=2"]]


def test_a_reader_that_leaves_early_is_not_a_bug() -> None:
    code = (
        "import sys, types; from wamjax.cli import main as cli\n"
        "verb = types.SimpleNamespace(__doc__='x', HELP='x', add_arguments=lambda p: None)\n"
        "verb.run = lambda args: [print('line ' * 100) for _ in range(5000)] and None\n"
        "cli.verbs, cli.verb_module = lambda: ['do'], lambda name: verb\n"
        "sys.exit(cli.main(['do']))"
    )
    command = f'{sys.executable} -c "$CODE" | head -n 1; exit ${{PIPESTATUS[0]}}'
    environment = {"CODE": code, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    arguments = ["bash", "-c", command]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stderr == ""
