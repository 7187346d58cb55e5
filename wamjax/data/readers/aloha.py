"""HDF5 of ALOHA: one episode per file, `/observations/{qpos, images/<camera>}` and `/action`, 50 Hz.

Compressed pictures are ordinary JPEG, uncompressed ones RGB, as openpi's converter takes them.
Source: `examples/aloha_real/convert_aloha_data_to_lerobot.py` of Physical-Intelligence/openpi.
"""

from __future__ import annotations

from wamjax.data.episode import JSON, BadEpisode, Episode, Video
from wamjax.data.hdf5 import is_dataset, names, numbers, open_file, pictures
from wamjax.data.readers import Listed, Options, Source
from wamjax.data.storage import Place

TITLE = "HDF5 of ALOHA"
_FPS = 50.0


def recognises(place: Place) -> bool:
    """Whether the first file is one."""
    files = _files(place)
    try:
        with open_file(files[0]) as opened:
            return is_dataset(opened, "action") and is_dataset(opened, "observations/qpos")
    except (BadEpisode, IndexError):
        return False


def open_dataset(place: Place, options: Options) -> Source:
    """The episodes: `action`, `observation/qpos` (`qvel`, `effort`), and every camera. The files hold no language."""
    options.only_train(place)
    fps = options.rate(_FPS, place)
    return Listed(place.stem, _files(place), lambda file: _episode(file, fps, options))


def _files(place: Place) -> list[Place]:
    return [place] if place.is_file() else sorted(place.find("*.hdf5"), key=lambda file: (len(file.path), file.path))


def _episode(file: Place, fps: float, options: Options) -> Episode:
    with open_file(file) as opened:
        steps = {"action": numbers(opened, "action", file)}
        length = len(steps["action"])
        for name in names(opened, "observations", file):
            if is_dataset(opened["observations"], name):
                steps[f"observation/{name}"] = numbers(opened["observations"], name, file, length)
        videos: dict[str, Video] = {}
        for camera in names(opened, "observations/images", file):
            shown = pictures(opened["observations/images"], camera, file)
            if shown.frames != length:
                raise BadEpisode(
                    f"camera {camera} of {file} has {shown.frames} pictures for {length} steps: get it again"
                )
            videos[camera] = options.encode(shown, fps)
    metadata: dict[str, JSON] = {"fps": fps, "embodiment": "aloha", "source": file.name, "task": file.parent.name}
    return Episode(steps, videos, (), metadata)
