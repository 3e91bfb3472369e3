"""Small training parameters for tests."""

from typing import Any

from zimage.training.params import MachineParams, TrainParams

MACHINE = MachineParams(checkpointing="none", offloaded_blocks=0, cuda_graphs=False)

PARAMS: dict[str, Any] = {
    "steps": 6,
    "batch_size": 2,
    "micro_batch_size": 2,
    "targets": ["attention", "feed_forward"],
    "adapter": "lora",
    "rank": 4,
    "lokr": {"factor": 8, "full_matrix": False, "alpha": 4.0},
    "dropout": 0.0,
    "precision": "float32",
    "optimiser": {
        "name": "adamw",
        "learning_rate": 1e-2,
        "lora_plus_ratio": 1.0,
        "betas": [0.9, 0.99],
        "weight_decay": 0.0,
        "clip_norm": 1.0,
        "ema_decay": 0.9,
    },
    "schedule": {"type": "cosine", "warmup_steps": 2, "final_fraction": 0.1},
    "timestep_sampling": {"distribution": "logit_normal", "mean": 0.0, "std": 1.0, "shift": 1.0, "stratified": True},
    "loss_weight": "constant",
    "face_weight": 3.0,
    "caption_dropout": 0.2,
    "latents": "sample",
    "prior_preservation": None,
    "training_adapter": None,
    "init_lora": None,
    "memory": {"base_quantization": "none", "compile": False},
    "checkpoint_every": 2,
    "resume": "exact",
    "samples": None,
    "stop": None,
    "save_dtype": "float32",
    "divergence_factor": 100.0,
    "seed": 0,
}


def recipe(**changes: Any) -> TrainParams:
    """Return parameters of a run of six steps, with changes; a mapping changes only the keys it names."""
    merged = {
        key: {**PARAMS[key], **changes[key]}
        if isinstance(PARAMS[key], dict) and isinstance(changes.get(key), dict)
        else changes.get(key, PARAMS[key])
        for key in PARAMS
    }
    return TrainParams.model_validate(merged)
