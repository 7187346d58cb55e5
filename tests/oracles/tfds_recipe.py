"""A small dataset of DROID's schema (1.0.1) written by TensorFlow Datasets, beside what it returns; run by tfds.sh.

The schema is that of `droid/droid.py` of kpertsch/droid_dataset_builder, with the three instructions, the metadata and
the camera poses that the release has in addition. The frozen samples of tests/data/samples are copies of its output.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

LENGTHS = (4, 3, 5)
SIZE = (16, 24)
IMAGES = ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")
OBSERVATION = {"cartesian_position": 6, "gripper_position": 1, "joint_position": 7}
ACTION = {
    "cartesian_position": 6,
    "cartesian_velocity": 6,
    "gripper_position": 1,
    "gripper_velocity": 1,
    "joint_position": 7,
    "joint_velocity": 7,
}
TEXTS = ("language_instruction", "language_instruction_2", "language_instruction_3")
POSES = ("extrinsics_wrist_cam", "extrinsics_exterior_cam_1", "extrinsics_exterior_cam_2")


def tensors(sizes: dict[str, int]) -> dict:
    return {name: tfds.features.Tensor(shape=(size,), dtype=np.float64) for name, size in sizes.items()}


FEATURES = tfds.features.FeaturesDict(
    {
        "steps": tfds.features.Dataset(
            {
                "observation": {
                    **{n: tfds.features.Image(shape=(*SIZE, 3), encoding_format="jpeg") for n in IMAGES},
                    **tensors(OBSERVATION),
                },
                "action_dict": tensors(ACTION),
                "action": tfds.features.Tensor(shape=(7,), dtype=np.float64),
                "discount": tfds.features.Scalar(dtype=np.float32),
                "reward": tfds.features.Scalar(dtype=np.float32),
                **{name: tfds.features.Scalar(dtype=np.bool_) for name in ("is_first", "is_last", "is_terminal")},
                **{name: tfds.features.Text() for name in TEXTS},
            }
        ),
        "episode_metadata": {
            "file_path": tfds.features.Text(),
            "recording_folderpath": tfds.features.Text(),
            "building": tfds.features.Text(),
        },
        **{name: tfds.features.Tensor(shape=(6,), dtype=np.float64) for name in POSES},
    }
)


def step(episode: int, number: int) -> dict:
    rng = np.random.default_rng((episode, number))
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    pictures = {}
    for view, name in enumerate(IMAGES):
        shown = np.stack([x * 10, y * 15, 40 * view + 12 * number + 0 * x], -1)
        shown[4:12, 2 + 4 * number : 8 + 4 * number] = rng.integers(0, 256, 3)
        pictures[name] = shown.clip(0, 255).astype(np.uint8)
    last = number == LENGTHS[episode] - 1
    return {
        "observation": {**pictures, **{n: rng.normal(size=size) for n, size in OBSERVATION.items()}},
        "action_dict": {name: rng.normal(size=size) for name, size in ACTION.items()},
        "action": rng.normal(size=7),
        "discount": 1.0,
        "reward": float(last),
        "is_first": number == 0,
        "is_last": last,
        "is_terminal": last,
        TEXTS[0]: f"do task {episode}",
        TEXTS[1]: f"task {episode}, please" if episode else "",
        TEXTS[2]: "",
    }


class R2d2Faceblur(tfds.core.GeneratorBasedBuilder):
    """As the release, its files have another name than its folder."""

    VERSION = tfds.core.Version("1.0.1")
    pkg_dir_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=FEATURES)

    def _split_generators(self, manager: object) -> dict:
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for episode, length in enumerate(LENGTHS):
            folder = f"/data/lab/{'failure' if episode == 1 else 'success'}/{episode}"
            yield (
                str(episode),
                {
                    "steps": [step(episode, number) for number in range(length)],
                    "episode_metadata": {
                        "file_path": f"{folder}/trajectory.h5",
                        "recording_folderpath": f"{folder}/recordings/MP4",
                        "building": "hall",
                    },
                    **{name: np.arange(6.0) + episode for name in POSES},
                },
            )


def exact(jpeg: bytes) -> np.ndarray:
    return tf.io.decode_jpeg(jpeg, dct_method="INTEGER_ACCURATE").numpy()


def returned(builder: tfds.core.DatasetBuilder) -> dict[str, np.ndarray]:
    """Every value and picture that TFDS returns, by episode and feature.

    TFDS decodes JPEG with libjpeg-turbo's fast, inexact transform (kept for one camera as `fast`); here TensorFlow is
    asked for the exact one, which is libjpeg-turbo's own default.
    """
    arrays = {}
    raw = tfds.decode.SkipDecoding()
    skip = {"steps": {"observation": dict.fromkeys(IMAGES, raw)}}
    fast = tfds.as_numpy(next(iter(builder.as_dataset("train", shuffle_files=False))))
    arrays["fast"] = np.stack([row["observation"][IMAGES[2]] for row in fast["steps"]])
    for number, example in enumerate(builder.as_dataset("train", shuffle_files=False, decoders=skip)):
        example = tfds.as_numpy(example)
        rows = list(example["steps"])
        for name in rows[0]:
            if isinstance(rows[0][name], dict):
                for key in rows[0][name]:
                    values = [exact(row[name][key]) if key in IMAGES else row[name][key] for row in rows]
                    arrays[f"{number}/{name}/{key}"] = np.stack(values)
            else:
                arrays[f"{number}/{name}"] = np.stack([np.asarray(row[name]) for row in rows])
        for name in example["episode_metadata"]:
            arrays[f"{number}/episode_metadata/{name}"] = np.asarray(example["episode_metadata"][name])
        for name in POSES:
            arrays[f"{number}/{name}"] = np.asarray(example[name])
    return arrays


def main(base: Path) -> None:
    for file_format in ("tfrecord", "array_record"):
        target = base / file_format
        shutil.rmtree(target, ignore_errors=True)
        builder = R2d2Faceblur(data_dir=target, file_format=file_format)
        builder.download_and_prepare()
        if file_format == "tfrecord":
            np.savez_compressed(base / "tfds.npz", **returned(builder))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
