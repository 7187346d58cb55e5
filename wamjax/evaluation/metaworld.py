"""Meta-World (metaworld 3.1, MuJoCo) as an `Environment`: small, fast CPU rendering and seeded instances.

metaworld imports MuJoCo, so it is imported only inside functions, after the rendering backend was chosen.
"""

from __future__ import annotations

import difflib
import sys
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from wamjax.errors import UserError
from wamjax.evaluation.environment import Environment, Observation
from wamjax.evaluation.rendering import Canvas, import_mujoco

SIMULATOR_STEPS_PER_SECOND = 80.0  # metaworld: 5 MuJoCo steps of 2.5 ms per environment step
DEMO_TASKS = ("button-press-topdown-v3", "drawer-open-v3", "door-open-v3", "window-open-v3")
INSTRUCTIONS = {  # tasks not listed use their name: "faucet-open-v3" -> "faucet open"
    "button-press-topdown-v3": "press the button from above",
    "drawer-open-v3": "open the drawer",
    "door-open-v3": "open the door",
    "window-open-v3": "open the window",
    "reach-v3": "reach the goal position",
    "push-v3": "push the puck to the goal",
}


@dataclass(frozen=True)
class MetaWorldConfig:
    """How Meta-World is driven and drawn; the defaults are those of the demonstration."""

    cameras: tuple[str, ...] = ("corner2", "gripperPOV")
    image_size: int = 64  # pixels, square
    action_repeat: int = 4  # simulator steps (80 Hz) per decision: 4 -> 20 decisions per second
    max_env_steps: int = 300  # simulator steps per episode; Meta-World itself stops at 500

    def __post_init__(self) -> None:
        if self.image_size < 16 or self.image_size % 2:
            raise UserError(f"image_size {self.image_size}: use an even number of pixels, at least 16")
        if not 1 <= self.action_repeat <= self.max_env_steps:
            raise UserError(f"action_repeat {self.action_repeat}: use 1 to {self.max_env_steps}")

    def make(self, task: str, like: Environment | None = None) -> MetaWorld:
        """One environment of `task` (a name such as "drawer-open-v3"), sharing the canvas of `like`, one of
        the same task."""
        return MetaWorld(task, self, like._canvas if isinstance(like, MetaWorld) and like.task == task else None)


def instruction(task: str) -> str:
    """The language instruction of a task."""
    return INSTRUCTIONS.get(task, task.removesuffix("-v3").replace("-", " "))


class MetaWorld:
    """One Meta-World task as an `Environment`. State: gripper x, y, z in metres and its opening, 0..1.
    Action: dx, dy, dz, grip."""

    def __init__(self, task: str, config: MetaWorldConfig, canvas: Canvas | None = None) -> None:
        """Errors: unknown task or camera, missing simulator or OpenGL library (all UserError)."""
        self._mujoco = import_mujoco()
        try:
            import metaworld
        except ModuleNotFoundError as error:
            raise UserError(f"{error.name} is not installed: run `pip install 'wamjax[sim]'`") from error
        known = metaworld.ALL_V3_ENVIRONMENTS
        if task not in known:
            near = difflib.get_close_matches(task, known, n=1)
            raise UserError(f"unknown Meta-World task {task!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        from metaworld.policies import ENV_POLICY_MAP

        self.task = task
        self.config = config
        self.cameras = config.cameras
        self.fps = SIMULATOR_STEPS_PER_SECOND / config.action_repeat
        self.decision_limit = config.max_env_steps // config.action_repeat
        self.action_low = np.full(4, -1.0, np.float32)
        self.action_high = np.full(4, 1.0, np.float32)
        self._env: Any = known[task]()
        expert: Any = ENV_POLICY_MAP[task]  # typed as the abstract base class
        self._expert = expert()
        self._canvas = canvas or Canvas(config.image_size)
        self._prepare()

    def _prepare(self) -> None:
        """Goal visible to the expert, multisampling off, and the fixed camera moved close enough for small
        images."""
        env = self._env
        env._set_task_called = True
        env._partially_observable = False
        env.max_path_length = sys.maxsize  # the limit is the caller's; metaworld's own raises
        env.__dict__.pop("sawyer_observation_space", None)  # cached for the partially observable case
        names = [env.model.camera(i).name for i in range(env.model.ncam)]
        for camera in self.cameras:
            if camera not in names:
                raise UserError(f"Meta-World has no camera {camera!r}; it has {', '.join(names)}")
        env.model.camera("corner2").pos[:] = (0.75, 0.075, 0.7)

    def reset(self, seed: int) -> None:
        """Starts the episode of `seed`; the instance is a pure function of (task, seed), whatever ran before.

        The task draws its instance by its own rules (some reject draws) from a generator seeded with `seed`;
        the drawn vector is then frozen and the environment reset again, as metaworld's benchmarks do.
        """
        env, mujoco = self._env, self._mujoco
        mujoco.mj_resetData(env.model, env.data)
        env._did_see_sim_exception = False
        env.seed(seed)
        env.seeded_rand_vec, env._freeze_rand_vec = True, False
        env.reset_model()
        env._freeze_rand_vec = True
        env.reset()
        mujoco.mj_forward(env.model, env.data)  # cameras and bodies moved in the model are drawn right only after this
        env._prev_obs = env._get_curr_obs_combined_no_goal()
        self._observation = env._get_obs()
        self._success = False

    def step(self, action: Float[np.ndarray, " a"]) -> None:
        """One decision: `action` held for `action_repeat` simulator steps."""
        if not np.all(np.isfinite(action)):
            raise UserError(f"an action of task {self.task} is not finite: {np.asarray(action).tolist()}")
        # in double precision whatever the caller's: metaworld would scale the action in its own
        action = np.clip(np.asarray(action, np.float64), self.action_low, self.action_high)
        self._success = False
        for _ in range(self.config.action_repeat):
            self._observation, _, _, _, info = self._env.step(action)
            self._success = self._success or bool(info["success"])

    def expert_action(self) -> Float[np.ndarray, " a"]:
        """The scripted policy of metaworld for the present state; it emits values up to 14, so it is
        clipped."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # metaworld warns about every value beyond the bounds
            action = self._expert.get_action(self._observation)
        return np.clip(action, self.action_low, self.action_high).astype(np.float32)

    @property
    def success(self) -> bool:
        """Whether the goal was reached at any simulator step of the last decision."""
        return self._success

    @property
    def instance(self) -> tuple[float, ...]:
        """The vector the task drew at reset: object position, and the goal's where the task randomises it;
        metres."""
        return tuple(float(x) for x in self._env._last_rand_vec)

    def observe(self) -> Observation:
        """Renders all cameras and reads the state."""
        images = [self._canvas.render(self._env.model, self._env.data, camera) for camera in self.cameras]
        # the corner cameras hang upside down
        upright = [
            im[::-1, ::-1] if camera.startswith("corner") else im
            for im, camera in zip(images, self.cameras, strict=True)
        ]
        return Observation(np.stack(upright), self._observation[:4].astype(np.float32), instruction(self.task))

    def close(self) -> None:
        """Frees the simulator and the canvas (environments that share it open it again when they need it)."""
        self._canvas.close()
        self._env.close()
