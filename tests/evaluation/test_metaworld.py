"""Meta-World behind the Environment interface: seeded instances, pictures, errors."""

import ctypes.util
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest

from wamjax.errors import UserError
from wamjax.evaluation import rendering
from wamjax.evaluation.environment import SEED_SETS, seeds_of
from wamjax.evaluation.metaworld import DEMO_TASKS, MetaWorld, MetaWorldConfig

pytestmark = pytest.mark.skipif(find_spec("metaworld") is None, reason="needs the sim extra")


@pytest.fixture(scope="module")
def drawer() -> Iterator[MetaWorld]:
    environment = MetaWorldConfig().make("drawer-open-v3")
    yield environment
    environment.close()


def advance(environment: MetaWorld, decisions: int) -> None:
    for _ in range(decisions):
        environment.step(environment.expert_action())


def test_an_episode_is_a_function_of_its_seed(drawer: MetaWorld) -> None:
    fresh = MetaWorldConfig().make("drawer-open-v3")
    assert MetaWorldConfig().make("drawer-open-v3", like=drawer)._canvas is drawer._canvas
    drawer.reset(3)
    advance(drawer, 9)
    drawer.reset(11)
    fresh.reset(11)
    for _ in range(5):
        ours, theirs = drawer.observe(), fresh.observe()
        np.testing.assert_array_equal(ours.state, theirs.state)
        np.testing.assert_array_equal(ours.frames, theirs.frames)
        advance(drawer, 3)
        advance(fresh, 3)
    assert drawer.instance == fresh.instance


@pytest.mark.parametrize("task", ["push-v3", "reach-v3"])
def test_tasks_that_reject_draws_are_reproducible_too(task: str) -> None:
    first, second = MetaWorldConfig().make(task), MetaWorldConfig().make(task)
    second.reset(1)
    advance(second, 20)
    for seed in (0, 7):
        first.reset(seed)
        second.reset(seed)
        assert first.instance == second.instance
        advance(first, 10)
        advance(second, 10)
        np.testing.assert_array_equal(first._observation, second._observation)


@pytest.mark.parametrize("task", ["drawer-open-v3", "window-open-v3"])
def test_seed_sets_share_no_instance(task: str) -> None:
    environment = MetaWorldConfig().make(task)
    space = environment._env._random_reset_space
    instances = []
    for seed_set in SEED_SETS:
        for seed in seeds_of(seed_set, 20):
            environment.reset(seed)
            instances.append(environment.instance)
            assert space.contains(np.array(environment.instance))
    assert len(set(instances)) == len(instances) == 60


def test_the_experts_of_the_demo_succeed() -> None:
    for task in DEMO_TASKS:
        environment = MetaWorldConfig().make(task)
        for seed in (20_000, 20_001):
            environment.reset(seed)
            assert not environment.success
            decisions = 0
            while not environment.success and decisions < environment.decision_limit:
                advance(environment, 1)
                decisions += 1
            assert 5 < decisions < environment.decision_limit, task


def test_the_first_frame_uses_the_moved_camera_and_the_new_instance(drawer: MetaWorld) -> None:
    import mujoco

    fresh = MetaWorldConfig().make("drawer-open-v3", like=drawer)
    fresh.reset(5)
    first = fresh.observe().frames
    np.testing.assert_allclose(fresh._env.data.camera("corner2").xpos, (0.75, 0.075, 0.7))
    np.testing.assert_allclose(fresh._env.data.body("drawer").xpos[0], fresh.instance[0])
    mujoco.mj_forward(fresh._env.model, fresh._env.data)
    np.testing.assert_array_equal(fresh.observe().frames, first)


def test_frames_are_upright(drawer: MetaWorld) -> None:
    """The gripper is painted, and moves up in the fixed camera's picture when it is told to move up."""
    model = drawer._env.model
    painted = [i for i in range(model.ngeom) if "ripper" in model.body(model.geom_bodyid[i]).name]
    painted += [i for i in range(model.ngeom) if model.body(model.geom_bodyid[i]).name == "right_hand"]
    before = model.geom_rgba.copy()
    drawer.reset(0)

    def row() -> float:
        red, green, blue = drawer.observe().frames[0].astype(int).transpose(2, 0, 1)
        rows = np.nonzero((red > 60) & (blue > 60) & (green < 20))[0]
        assert len(rows) > 3
        return float(rows.mean())

    try:
        model.geom_rgba[painted] = (1, 0, 1, 1)
        start = row()
        for _ in range(5):
            drawer.step(np.array([0, 0, 1, 0]))
        assert row() < start - 3
    finally:
        model.geom_rgba[:] = before


def test_leaving_out_unseen_geoms_changes_no_pixel(drawer: MetaWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    drawer.reset(2)
    for _ in range(6):
        quick = drawer.observe().frames
        model, data = drawer._env.model, drawer._env.data
        assert rendering.out_of_view(model, data, "gripperPOV").sum() > 10
        with monkeypatch.context() as patch:
            patch.setattr(rendering, "out_of_view", lambda model, data, camera: np.zeros(model.ngeom, bool))
            np.testing.assert_array_equal(drawer.observe().frames, quick)
        advance(drawer, 5)


def test_closing_one_canvas_leaves_the_others_alone(drawer: MetaWorld) -> None:
    other = MetaWorldConfig().make("drawer-open-v3")
    for environment in (drawer, other):
        environment.reset(4)
    before = other.observe().frames
    np.testing.assert_array_equal(drawer.observe().frames, before)
    drawer.close()
    np.testing.assert_array_equal(other.observe().frames, before)
    np.testing.assert_array_equal(drawer.observe().frames, before)
    other.close()


def test_observations_have_the_promised_form(drawer: MetaWorld) -> None:
    drawer.reset(0)
    observation = drawer.observe()
    assert observation.frames.shape == (2, 64, 64, 3)
    assert observation.frames.dtype == np.uint8
    assert observation.state.shape == (4,)
    assert observation.state.dtype == np.float32
    assert observation.instruction == "open the drawer"
    assert (drawer.fps, drawer.decision_limit) == (20.0, 75)
    assert abs(drawer.expert_action()).max() <= 1


def test_mistakes_are_explained(drawer: MetaWorld) -> None:
    with pytest.raises(UserError, match="unknown Meta-World task 'draw-open-v3'; did you mean 'drawer-open-v3'"):
        MetaWorldConfig().make("draw-open-v3")
    with pytest.raises(UserError, match=r"no camera 'wrist'; it has .*gripperPOV"):
        MetaWorldConfig(cameras=("wrist",)).make("drawer-open-v3")
    with pytest.raises(UserError, match="image_size 65: use an even number"):
        MetaWorldConfig(image_size=65)
    with pytest.raises(UserError, match="action_repeat 0: use 1 to 300"):
        MetaWorldConfig(action_repeat=0)
    drawer.reset(0)
    with pytest.raises(UserError, match="not finite"):
        drawer.step(np.array([0, np.nan, 0, 0]))


def test_a_machine_without_opengl(drawer: MetaWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(UserError, match="mujoco was imported before MUJOCO_GL was set"):
        rendering.choose_gl()
    monkeypatch.delitem(sys.modules, "mujoco")
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    with pytest.raises(UserError, match=r"apt-get install .*libosmesa6"):
        rendering.choose_gl()
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: "lib" if name == "OSMesa" else None)
    rendering.choose_gl()
    assert os.environ["MUJOCO_GL"] == "osmesa"


@pytest.mark.parametrize("backend", ["osmes", "glfw"])
def test_an_opengl_that_does_not_work_is_one_line(backend: str) -> None:
    """A misspelt backend fails when MuJoCo is imported; a window system that is not there, at the first
    picture."""
    code = (
        "from wamjax.cli import main as cli\n"
        "from wamjax.evaluation.metaworld import MetaWorldConfig\n"
        "def run(args):\n"
        "    environment = MetaWorldConfig().make('reach-v3')\n"
        "    environment.reset(0)\n"
        "    environment.observe()\n"
        "cli.parse = lambda argv: __import__('argparse').Namespace(run=run)\n"
        "raise SystemExit(cli.main([]))\n"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "PYOPENGL_PLATFORM")}
    env |= {"MUJOCO_GL": backend, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert f"wamjax: error: MuJoCo cannot render with MUJOCO_GL={backend}" in done.stderr
    assert "apt-get install" in done.stderr
