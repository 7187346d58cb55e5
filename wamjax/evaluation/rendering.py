"""Fast small images from MuJoCo on a machine with or without a GPU.

MuJoCo picks its OpenGL binding when it is first imported, so it is imported only inside functions, after
`choose_gl` ran.
"""

from __future__ import annotations

import atexit
import ctypes.util
import os
import sys
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from wamjax.errors import UserError

GL_PACKAGES = "libegl1 libgl1-mesa-dri libosmesa6"
GL_HELP = (
    f"on Debian or Ubuntu run `apt-get install -y --no-install-recommends {GL_PACKAGES}`, "
    "then leave MUJOCO_GL unset or set it to egl or osmesa"
)
_MAX_GEOMS = 10_000  # in one scene
_UNSEEN_GROUP = 5  # of MuJoCo's six geom groups the last, which models leave empty


def choose_gl() -> None:
    """Settles how MuJoCo will render, before it is imported: EGL if its library is there, else OSMesa.

    A value of MUJOCO_GL set by the user is left alone. Mesa's software renderer is held to one thread,
    because the collector and the runner already run one process per core.
    """
    os.environ.setdefault("LP_NUM_THREADS", "1")
    if os.environ.get("MUJOCO_GL") or sys.platform != "linux":
        return
    if "mujoco" in sys.modules:  # too late to choose: it will open a window
        if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise UserError("mujoco was imported before MUJOCO_GL was set: start Python with MUJOCO_GL=egl")
        return
    for backend, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
        if ctypes.util.find_library(library):
            os.environ["MUJOCO_GL"] = backend
            return
    raise UserError(f"no OpenGL library for rendering (neither libEGL nor libOSMesa was found): {GL_HELP}")


def import_mujoco() -> Any:
    """The module mujoco; a missing package or OpenGL library is a UserError."""
    choose_gl()
    try:
        import mujoco
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: run `pip install 'wamjax[sim]'`") from error
    except (
        Exception
    ) as error:  # the bindings raise whatever their loader hits: ImportError, AttributeError, RuntimeError
        raise UserError(_gl_message(error)) from error
    return mujoco


def _gl_message(error: Exception) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return f"MuJoCo cannot render with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')} ({reason}): {GL_HELP}"


class Canvas:
    """An OpenGL context that draws square images of models loaded from one and the same file.

    Uploading the meshes takes longer than building an environment: environments of one task share a canvas.
    """

    def __init__(self, size: int) -> None:
        """`size`: height and width of the images in pixels. The context is created at the first image."""
        self.size = size
        self._gl: Any = None
        self._context: Any = None
        self._scene: Any = None

    def render(self, model: Any, data: Any, camera: str) -> UInt8[np.ndarray, "h w 3"]:
        """The view of a named camera, for a model and data on which mj_forward has run.

        Shadows, reflections and multisampling are off: on a CPU they cost ten times the rest of the drawing.
        """
        mujoco = import_mujoco()
        if self._context is None:
            self._open(mujoco, model)
        self._gl.make_current()
        self._update(mujoco, model, data, camera)
        image = np.empty((self.size, self.size, 3), np.uint8)
        area = mujoco.MjrRect(0, 0, self.size, self.size)
        mujoco.mjr_render(area, self._scene, self._context)
        mujoco.mjr_readPixels(image, None, area, self._context)
        return image[::-1]  # OpenGL counts rows from below

    def _update(self, mujoco: Any, model: Any, data: Any, camera: str) -> None:
        """Fills the scene with what the camera can see."""
        view = mujoco.MjvCamera()
        view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        view.fixedcamid = model.camera(camera).id
        option = mujoco.MjvOption()
        option.geomgroup[_UNSEEN_GROUP] = 0
        groups = model.geom_group.copy()
        model.geom_group[out_of_view(model, data, camera)] = _UNSEEN_GROUP
        mujoco.mjv_updateScene(model, data, option, None, view, mujoco.mjtCatBit.mjCAT_ALL, self._scene)
        model.geom_group[:] = groups
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0

    def _open(self, mujoco: Any, model: Any) -> None:
        model.vis.quality.offsamples = 0  # this and the sizes are read when the context is created
        model.vis.global_.offwidth = model.vis.global_.offheight = self.size
        try:
            self._gl = mujoco.GLContext(self.size, self.size)
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        except Exception as error:  # as in import_mujoco: the bindings have no common error class
            raise UserError(_gl_message(error)) from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=_MAX_GEOMS)
        atexit.register(self.close)  # contexts do not survive the interpreter's end quietly

    def close(self) -> None:
        """Frees the context; a later `render` opens a new one."""
        if self._context is not None:
            self._gl.make_current()  # or the resources of another canvas would be freed
            self._context.free()
            self._gl.free()
            self._context = self._gl = self._scene = None
            atexit.unregister(self.close)


def out_of_view(model: Any, data: Any, camera: str) -> Bool[np.ndarray, " geoms"]:
    """Geoms whose bounding sphere lies outside the view pyramid of a square image.

    MuJoCo sends every triangle of the robot to OpenGL; on a CPU that is most of the cost of a small image,
    and leaving these out more than halves it for a camera on the wrist without changing a pixel.
    """
    view = data.camera(camera)
    x, y, z = ((data.geom_xpos - view.xpos) @ view.xmat.reshape(3, 3)).T  # the camera looks along -z
    half = np.deg2rad(model.camera(camera).fovy[0]) / 2
    beyond = np.maximum(np.maximum(abs(x), abs(y)) * np.cos(half) + z * np.sin(half), z)
    outside: np.ndarray = (model.geom_rbound > 0) & (beyond > model.geom_rbound)  # planes have no bound
    return outside
