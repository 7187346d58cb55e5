"""Tiny datasets in the layouts of other projects, written as their own programs write them, and what they hold."""

import csv
import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from wamjax.data.video import decode, encode

T, H, W = 5, 16, 24


@dataclass
class Expected:
    """What the first episode must give."""

    steps: dict[str, np.ndarray] = field(default_factory=dict)
    frames: dict[str, np.ndarray] = field(default_factory=dict)
    language: tuple[str, ...] = ()
    metadata: dict[str, object] = field(default_factory=dict)
    episodes: int = 1


def pictures(seed: int, count: int = T) -> np.ndarray:
    """Pictures whose sides, colours and order can be told apart."""
    y, x = np.mgrid[:H, :W]
    shown = np.stack([np.stack([x * 8, y * 6, 200 - 30 * t + 0 * x], -1) for t in range(count)]) + 9 * seed
    shown[:, 2:5, 3:6] = (255, 0, 10)
    return shown.clip(0, 255).astype(np.uint8)


def rows(seed: int, size: int, count: int = T) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, size))


def jpegs(frames: np.ndarray, comment: bytes = b"") -> list[bytes]:
    files = []
    for frame in frames:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=95, **({"comment": comment} if comment else {}))
        files.append(file.getvalue())
    return files


def unpacked(files: list[bytes]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])


def libero(folder: Path, *, recorded: bool = True) -> Expected:
    """As recorded (what follows an action beside it), or regenerated (what comes before it, no attributes)."""
    with h5py.File(folder / "KITCHEN_SCENE2_open_the_drawer_demo.hdf5", "w") as file:
        data = file.create_group("data")
        if recorded:
            data.attrs["problem_info"] = json.dumps({"language_instruction": ["open the drawer"]})
            data.attrs["macros_image_convention"] = "opengl"
        for number in (10, 2):
            demo = data.create_group(f"demo_{number}")
            demo["actions"], demo["robot_states"] = rows(number, 7), rows(number + 1, 9)
            demo["states"] = rows(0, 40)
            demo["rewards"] = demo["dones"] = np.eye(T, dtype=np.uint8)[-1]
            demo["obs/joint_states"], demo["obs/ee_states"] = rows(number + 2, 7), rows(number + 3, 6)
            demo["obs/agentview_rgb"] = pictures(number)[:, ::-1]
            demo["obs/eye_in_hand_rgb"] = pictures(number + 1)[:, ::-1]
    now, seen = (slice(1, T), slice(0, T - 1)) if recorded else (slice(0, T), slice(0, T))
    return Expected(
        steps={
            "action": rows(2, 7)[now],
            "observation/joint_position": rows(4, 7)[seen],
            "observation/ee_states": rows(5, 6)[seen],
            "observation/robot_states": rows(3, 9)[seen],
            "reward": np.eye(T, dtype=np.uint8)[-1][now],
        },
        frames={"agentview": pictures(2)[seen], "eye_in_hand": pictures(3)[seen]},
        language=("open the drawer",),
        metadata={"fps": 20.0, "success": True},
        episodes=2,
    )


def robomimic(folder: Path) -> Expected:
    with h5py.File(folder / "image.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift"})
        demo = data.create_group("demo_0")
        demo["actions"], demo["rewards"] = rows(0, 7), np.zeros(T)
        demo["obs/robot0_eef_pos"], demo["obs/agentview_image"] = rows(1, 3), pictures(0)
        demo["next_obs/robot0_eef_pos"] = rows(2, 3)
    return Expected(
        steps={"action": rows(0, 7), "observation/robot0_eef_pos": rows(1, 3), "reward": np.zeros(T)},
        frames={"agentview": pictures(0)},
        metadata={"fps": 20.0, "task": "Lift", "success": False},
    )


def aloha(folder: Path, *, compressed: bool = True) -> Expected:
    frames = pictures(1)
    with h5py.File(folder / "episode_0.hdf5", "w") as file:
        file["action"], file["observations/qpos"], file["observations/qvel"] = rows(0, 14), rows(1, 14), rows(2, 14)
        if compressed:
            files = jpegs(frames)
            padded = np.zeros((T, max(map(len, files))), np.uint8)
            for row, data in zip(padded, files, strict=True):
                row[: len(data)] = np.frombuffer(data, np.uint8)
            file["observations/images/cam_high"] = padded
            frames = unpacked(files)
        else:
            file["observations/images/cam_high"] = frames
    steps = {"action": rows(0, 14), "observation/qpos": rows(1, 14), "observation/qvel": rows(2, 14)}
    return Expected(steps, {"cam_high": frames}, metadata={"fps": 50.0, "embodiment": "aloha"})


def robotwin_legacy(folder: Path) -> Expected:
    """Its JPEG files are made of RGB taken for BGR, as OpenCV does."""
    (folder / "data").mkdir()
    (folder / "instructions").mkdir()
    files = jpegs(pictures(1)[..., ::-1])
    with h5py.File(folder / "data/episode0.hdf5", "w") as file:
        file["joint_action/vector"], file["joint_action/left_gripper"] = rows(0, 14), rows(1, 1)[:, 0]
        file["endpose/left_endpose"] = rows(2, 7)
        file["observation/head_camera/rgb"] = np.array(files, dtype=f"S{max(map(len, files))}")
        file["observation/head_camera/intrinsic_cv"] = np.zeros((T, 3, 3))
    (folder / "instructions/episode0.json").write_text(json.dumps({"seen": ["beat it", "hit it"], "unseen": ["x"]}))
    return Expected(
        steps={
            "action": rows(0, 14)[1:],
            "observation/vector": rows(0, 14)[:-1],
            "observation/left_gripper": rows(1, 1)[:-1, 0],
            "observation/endpose/left_endpose": rows(2, 7)[:-1],
        },
        frames={"head_camera": unpacked(files)[:-1, ..., ::-1]},
        language=("beat it", "hit it"),
        metadata={"fps": 15.0},
    )


def robotwin_v1(folder: Path, *, marked: bool = False) -> Expected:
    """The newer layout, with pictures as before, or written rightly and marked as such."""
    right = pictures(1)
    files = jpegs(right, b"XPL-RGB1") if marked else jpegs(right[..., ::-1])
    with h5py.File(folder / "episode_0000000.hdf5", "w") as file:
        file.attrs["source_format"] = "robotwin"
        file["data_format_version"] = "v1.0"
        file["instructions"] = json.dumps(["lift the pot"])
        file["additional_info/frequency"] = 30
        file["state/left_arm_joint_states"] = rows(0, 6)
        file["action/left_arm_joint_states"] = rows(0, 6)[1:]
        file["vision/cam_head/colors"] = np.array(files, dtype=f"S{max(map(len, files))}")
    shown = unpacked(files) if marked else unpacked(files)[..., ::-1]
    return Expected(
        steps={
            "action_dict/left_arm_joint_states": rows(0, 6)[1:],
            "observation/left_arm_joint_states": rows(0, 6)[:-1],
        },
        frames={"cam_head": shown[:-1]},
        language=("lift the pot",),
        metadata={"fps": 30.0},
    )


def droid_raw(folder: Path) -> Expected:
    episode = folder / "success/2023-07-07/Fri_1"
    (episode / "recordings/MP4").mkdir(parents=True)
    serials = {"20": 1, "10": 0, "30": 1}
    with h5py.File(episode / "trajectory.h5", "w") as file:
        state, action = file.create_group("observation/robot_state"), file.create_group("action")
        state["cartesian_position"], state["joint_positions"] = rows(0, 6), rows(1, 7)
        state["gripper_position"] = rows(2, 1)[:, 0]
        for seed, part in enumerate(("cartesian", "gripper", "joint")):
            for kind in ("position", "velocity"):
                values = rows(10 + seed, {"cartesian": 6, "gripper": 1, "joint": 7}[part])
                action[f"{part}_{kind}"] = values[:, 0] if part == "gripper" else values
        for serial, kind in serials.items():
            file[f"observation/camera_type/{serial}"] = np.full(T, kind)
    videos = {serial: encode(pictures(int(serial), T - (serial == "30")), 15) for serial in serials}
    for serial, video in videos.items():
        (episode / f"recordings/MP4/{serial}.mp4").write_bytes(video.data)
    (episode / "metadata_LAB+1+2023.json").write_text(json.dumps({"uuid": "LAB+1+2023", "lab": "LAB"}))
    texts = {f"language_instruction{i + 1}": text for i, text in enumerate(("stack", "", "do"))}
    (folder / "aggregated-annotations-030724.json").write_text(json.dumps({"LAB+1+2023": texts}))
    n = T - 1  # one camera stopped early
    return Expected(
        steps={
            "observation/cartesian_position": rows(0, 6)[:n],
            "observation/joint_position": rows(1, 7)[:n],
            "observation/gripper_position": rows(2, 1)[:n],
            "action_dict/joint_velocity": rows(12, 7)[:n],
            "action_dict/gripper_position": rows(11, 1)[:n],
        },
        frames={
            name: decode(videos[serial])[:n]
            for name, serial in (
                ("wrist_image_left", "10"),
                ("exterior_image_1_left", "20"),
                ("exterior_image_2_left", "30"),
            )
        },
        language=("stack", "do"),
        metadata={"fps": 15.0, "success": True, "recorded_steps": T, "lab": "LAB", "embodiment": "droid"},
    )


def roboarena(folder: Path) -> Expected:
    session = folder / "evaluation_sessions/1234-5678"
    rollout = session / "A_pi0"
    rollout.mkdir(parents=True)
    fields = {"cartesian_position": 6, "joint_position": 7, "gripper_position": 1, "action": 8}
    steps = [{name: rows(t, size)[0] for name, size in fields.items()} for t in range(T)]
    np.savez_compressed(rollout / "1_npz_file.npz", data=np.array(steps, dtype=object))
    (folder / "global_metadata.yaml").write_text("pi0: {open_source: true, action_space: joint_velocity}\n")
    (session / "metadata.yaml").write_text(
        "language_instruction: put it away\npreference: A\n"
        "policies: {A: {policy_name: pi0, binary_success: 1, partial_success: 0.75}, B: null}\n"
    )
    videos = {side: encode(pictures(i, T + 1), 10) for i, side in enumerate(("left", "right", "wrist"))}
    for side, video in videos.items():
        (rollout / f"1_video_{side}.mp4").write_bytes(video.data)
    names = {"left": "exterior_image_1_left", "right": "exterior_image_2_left", "wrist": "wrist_image_left"}
    return Expected(
        steps={
            "observation/joint_position": np.stack([step["joint_position"] for step in steps]),
            "observation/gripper_position": np.stack([step["gripper_position"] for step in steps]),
            "action": np.stack([step["action"] for step in steps]),
        },
        frames={names[side]: decode(video)[:T] for side, video in videos.items()},
        language=("put it away",),
        metadata={
            "fps": 15.0,
            "success": True,
            "partial_success": 0.75,
            "policy": "pi0",
            "action_space": "joint_velocity",
        },
    )


def calvin(folder: Path, *, annotated: bool = True) -> Expected:
    (train := folder / "training").mkdir()
    sizes = {"actions": 7, "rel_actions": 7, "robot_obs": 15, "scene_obs": 24}
    for t in range(T):
        arrays = {name: rows(t, size)[0] for name, size in sizes.items()}
        shown = {"rgb_static": pictures(0)[t], "rgb_gripper": pictures(1)[t], "depth_static": np.zeros((4, 4))}
        np.savez_compressed(train / f"episode_{t + 3:07d}.npz", **arrays, **shown)
    np.save(train / "ep_start_end_ids.npy", np.array([[3, 2 + T]]))
    first = 1 if annotated else 0
    if annotated:
        (train / "lang_annotations").mkdir()
        table = {
            "language": {"ann": ["push"], "task": ["p"], "emb": np.zeros((1, 1, 4))},
            "info": {"indx": [(4, 2 + T)]},
        }
        np.save(train / "lang_annotations/auto_lang_ann.npy", np.array(table), allow_pickle=True)
    stacked = {name: np.stack([rows(t, size)[0] for t in range(first, T)]) for name, size in sizes.items()}
    return Expected(
        steps={
            "action": stacked["rel_actions"],
            "action_dict/absolute": stacked["actions"],
            "observation/robot_obs": stacked["robot_obs"],
            "observation/scene_obs": stacked["scene_obs"],
        },
        frames={"rgb_static": pictures(0)[first:], "rgb_gripper": pictures(1)[first:]},
        language=("push",) if annotated else (),
        metadata={"fps": 30.0},
    )


def captions(folder: Path, *, table: str = "") -> Expected:
    video = encode(pictures(0), 12.5)
    (folder / "clips").mkdir()
    (folder / "clips/one.mp4").write_bytes(video.data)
    row = {"file_name": "clips/one.mp4", "caption": "a cat  walks"}
    if table == "jsonl":
        (folder / "list.jsonl").write_text(json.dumps(row | {"caption": ["a cat walks", "cat"]}) + "\n")
    elif table == "csv":
        with (folder / "list.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, row)
            writer.writeheader()
            writer.writerow(row)
    elif table == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({k: [v] for k, v in row.items()}), folder / "list.parquet")
    else:
        (folder / "two.mp4").write_bytes(video.data)
        (folder / "clips/one.txt").write_text("a cat walks\n")
    language = ("a cat walks", "cat") if table == "jsonl" else ("a cat walks",)
    return Expected({}, {"video": decode(video)}, language, {"fps": 12.5}, episodes=1 if table else 2)


BUILDERS: dict[str, tuple[str, Callable[[Path], Expected]]] = {
    "libero": ("robomimic", libero),
    "libero_regenerated": ("robomimic", lambda folder: libero(folder, recorded=False)),
    "robomimic": ("robomimic", robomimic),
    "aloha": ("aloha", aloha),
    "aloha_raw": ("aloha", lambda folder: aloha(folder, compressed=False)),
    "robotwin_legacy": ("robotwin", robotwin_legacy),
    "robotwin_v1": ("robotwin", robotwin_v1),
    "robotwin_v1_marked": ("robotwin", lambda folder: robotwin_v1(folder, marked=True)),
    "droid_raw": ("droid_raw", droid_raw),
    "roboarena": ("roboarena", roboarena),
    "calvin": ("calvin", calvin),
    "calvin_whole": ("calvin", lambda folder: calvin(folder, annotated=False)),
    "captions": ("captions", captions),
    "captions_jsonl": ("captions", lambda folder: captions(folder, table="jsonl")),
    "captions_csv": ("captions", lambda folder: captions(folder, table="csv")),
    "captions_parquet": ("captions", lambda folder: captions(folder, table="parquet")),
}
"""Case -> its format, and what writes it into an empty folder."""


def hostile_pickle() -> bytes:
    """A pickle that runs a command when it is loaded carelessly."""

    class Evil:
        def __reduce__(self) -> tuple:
            return __import__("os").system, ("touch /tmp/wamjax-was-here",)

    return pickle.dumps(Evil())
