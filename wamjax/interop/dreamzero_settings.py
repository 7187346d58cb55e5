"""What DreamZero's own code reads beside the weights: config.json, and conf.yaml and metadata.json in experiment_cfg.

Released checkpoints bring these files, and keep them. For a policy that was trained here they are made, in the terms of
groot/vla/configs and groot/vla/model/n1_5/sim_policy.py of github.com/dreamzero0/dreamzero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wamjax.data.embodiments import Field
from wamjax.data.normalise import Statistics
from wamjax.policies.dreamzero.policy import DreamZero

MODEL = "groot.vla.model.dreamzero"
TRANSFORM = "groot.vla.data.transform"
HEAD = f"{MODEL}.action_head.wan_flow_matching_action_tf"
VAES = {8: "WanVideoVAE", 16: "WanVideoVAE38"}
"""Upstream's autoencoders, by the pixels of a latent's side."""

NUMBERS = {"oxe_droid": 17, "xdof": 22, "gr1_unified": 24, "agibot": 26, "mecka_hands": 27, "yam": 32}
"""Robots that upstream's prompts are told apart by, whichever robot is meant."""

INSTRUCTION = "do nothing"
"""For samples without an instruction."""


def describable(policy: DreamZero) -> bool:
    """Whether upstream has the policy's networks: all three of the frozen ones are published."""
    return set(policy.pretrained) == {"frames", "text", "image"}


def model_settings(policy: DreamZero) -> dict[str, Any]:
    """config.json, from which upstream builds its modules."""
    n = policy.config.network
    return {
        "model_type": "vla",
        "architectures": ["VLA"],
        "backbone_cfg": {"_target_": f"{MODEL}.backbone.identity.IdentityBackbone"},
        "action_head_cfg": {"_target_": f"{HEAD}.WANPolicyHead", "_convert_": "object", "config": _head(policy)},
        **{"action_horizon": n.block_actions, "action_dim": n.action},
        **{"hidden_size": 0, "model_dtype": "float32", "compute_dtype": policy.config.compute},
    }


def _head(policy: DreamZero) -> dict[str, Any]:
    """The networks, their sizes, and the noise of training."""
    c, n = policy.config, policy.config.network
    resized = (
        {} if c.resized is None else dict(zip(("target_video_height", "target_video_width"), c.resized, strict=True))
    )
    text = c.text.encoder  # type: ignore[union-attr]
    return {
        "_target_": f"{HEAD}.WANPolicyHeadConfig",
        "_recursive_": False,
        **{"tiled": False, "train_architecture": "full", "skip_component_loading": True, "model_dtype": "float32"},
        **{"num_frames": 1 + 4 * n.block_frames * c.blocks, "num_frame_per_block": n.block_frames},
        **{"action_dim": n.action, "action_horizon": n.block_actions},
        **{"max_state_dim": n.state, "max_action_dim": n.action, "hidden_size": 64, "backbone_embedding_dim": 0},
        "decouple_video_action_noise": not c.coupled,
        "use_high_noise_emphasis": c.coupled and c.alpha != 1,
        **{"video_noise_beta_alpha": c.alpha, "video_noise_beta_beta": 1.0, "high_noise_beta_alpha": c.alpha},
        "decouple_inference_noise": c.sampling.final_noise > 0,
        "video_inference_final_noise": c.sampling.final_noise,
        "diffusion_model_cfg": _network(policy),
        "text_encoder_cfg": {
            "_target_": f"{MODEL}.modules.wan_video_text_encoder.WanTextEncoder",
            **{"vocab": text.vocabulary, "dim": text.width, "dim_attn": text.heads * text.head_dim},
            **{"dim_ffn": text.mlp, "num_heads": text.heads, "num_layers": text.layers, "num_buckets": text.buckets},
        },
        "image_encoder_cfg": {"_target_": f"{MODEL}.modules.wan_video_image_encoder.WanImageEncoder"},
        "vae_cfg": {
            "_target_": f"{MODEL}.modules.wan_video_vae.{VAES[c.frames.factor]}",
            "z_dim": c.frames.channels,
        },
        **resized,
    }


def _network(policy: DreamZero) -> dict[str, Any]:
    c, n, dit = policy.config, policy.config.network, policy.config.network.dit
    (rows, columns, _), (_, *patch) = policy.latent_size, dit.patch
    beside = dit.inputs > dit.outputs
    return {
        "_target_": f"{MODEL}.modules.wan_video_dit_action_casual_chunk.CausalWanModel",
        "_convert_": "object",
        **{"model_type": "i2v" if beside else "ti2v", "concat_first_frame_latent": beside},
        "frame_seqlen": (rows // patch[0]) * (columns // patch[1]),
        **{"dim": dit.width, "ffn_dim": dit.mlp, "num_heads": dit.heads, "num_layers": dit.layers},
        **{"in_dim": dit.inputs, "out_dim": dit.outputs, "freq_dim": dit.frequencies, "eps": 1e-6},
        **{"text_dim": dit.text, "text_len": dit.text_length},
        **{"max_chunk_size": c.blocks, "num_frame_per_block": n.block_frames},
        **{"num_action_per_block": n.block_actions, "num_state_per_block": 1},
        **{"action_dim": n.action, "max_state_dim": n.state, "hidden_size": n.hidden},
    }


def run_settings(policy: DreamZero) -> dict[str, Any]:
    """conf.yaml (JSON is YAML): what is done to a robot's pictures, states and actions."""
    robot = policy.embodiment
    relative = [field.key for field in robot.action if field.relative]
    return {
        "model": {"_target_": f"{MODEL}.base_vla.VLA"},
        **{"train_architecture": "full", "save_lora_only": False, "eval_bf16": policy.config.compute == "bfloat16"},
        "relative_action": bool(relative),
        "relative_action_keys": relative,
        "relative_action_per_horizon": False,
        "modality_configs": {robot.tag: _modalities(policy)},
        "transforms": {robot.tag: {"_target_": f"{TRANSFORM}.ComposedModalityTransform", "transforms": _steps(policy)}},
    }


def _keys(policy: DreamZero) -> dict[str, list[str]]:
    """Names of a robot's cameras and fields, by modality."""
    robot = policy.embodiment
    return {
        "video": [f"video.{camera}" for camera in robot.cameras],
        "state": [f"state.{field.key}" for field in robot.state],
        "action": [f"action.{field.key}" for field in robot.action],
        "language": [f"annotation.{annotation}" for annotation in robot.annotations],
    }


def _modalities(policy: DreamZero) -> dict[str, Any]:
    """Steps around the present one that each modality is read at."""
    actions = list(range(policy.config.network.block_actions))
    steps = {"video": [*actions, len(actions)], "state": [0], "action": actions, "language": [0]}
    return {
        modality: {
            "_target_": "groot.vla.data.dataset.ModalityConfig",
            "delta_indices": steps[modality],
            "eval_delta_indices": actions if modality == "action" else [0],
            "modality_keys": keys,
        }
        for modality, keys in _keys(policy).items()
    }


def _steps(policy: DreamZero) -> list[dict[str, Any]]:
    """The transforms, in the order in which they are applied."""
    keys, robot, canvas, n = _keys(policy), policy.embodiment, policy.config.canvas, policy.config.network
    jitter = {name: getattr(canvas, name) for name in ("brightness", "contrast", "saturation", "hue")}

    def step(name: str, over: str, **options: Any) -> dict[str, Any]:
        return {"_target_": f"{TRANSFORM}.{name}", "apply_to": keys[over], **options}

    return [
        step("VideoToTensor", "video"),
        step("VideoCrop", "video", scale=canvas.crop, mode="random"),
        step("VideoResize", "video", height=canvas.height, width=canvas.width, interpolation="linear"),
        step("VideoColorJitter", "video", **jitter),
        step("VideoToNumpy", "video"),
        step("StateActionToTensor", "state"),
        step("StateActionTransform", "state", normalization_modes=dict.fromkeys(keys["state"], "q99")),
        step("StateActionToTensor", "action"),
        step("StateActionTransform", "action", normalization_modes=dict.fromkeys(keys["action"], "q99")),
        {
            "_target_": f"{TRANSFORM}.ConcatTransform",
            **{f"{modality}_concat_order": keys[modality] for modality in ("video", "state", "action")},
        },
        {
            "_target_": f"{MODEL}.transform.dreamzero_cotrain.DreamTransform",
            **{"default_instruction": INSTRUCTION, "language_dropout_prob": 0.0},
            **{"max_state_dim": n.state, "max_action_dim": n.action, "max_length": n.dit.text_length},
            **{"state_horizon": 1, "action_horizon": n.block_actions, "num_views": policy.views},
            **{"embodiment_tag_mapping": NUMBERS | {robot.tag: robot.number}, "tokenizer_path": "google/umt5-xxl"},
        },
    ]


def metadata(policy: DreamZero, statistics: Statistics) -> dict[str, Any]:
    """metadata.json: a robot's cameras and fields, and the statistics that they are normalised with.

    Args:
        policy: whose robot. statistics: as of `wamjax.data.normalise.dataset_statistics`.
    """
    robot = policy.embodiment
    video = {"resolution": [policy.width, policy.height], "channels": 3, "fps": robot.fps}

    def described(field: Field) -> dict[str, Any]:
        return {"absolute": True, "rotation_type": None, "shape": [field.size], "continuous": True}

    modalities: Mapping[str, Any] = {
        "video": dict.fromkeys(robot.cameras, video),
        "state": {field.key: described(field) for field in robot.state},
        "action": {field.key: described(field) for field in robot.action},
    }
    return {robot.tag: {"statistics": statistics, "modalities": modalities, "embodiment_tag": robot.tag}}
