"""Presets: sizes and budgets that belong together. A spec's own keys are laid over its preset's."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # The published values are the defaults of the models themselves.
    "paper": {},
    # Small enough to learn on two CPU cores. One 20 ms action changes a value by less than the value
    # head's own error, so actions are held longer and the horizon is shorter (docs/algorithm.md,
    # "Small budgets").
    "laptop": {
        "env": {"num_envs": 4, "action_repeat": 4, "short_episode_steps": None},
        "model": {
            "latent_size": 128,
            "task_embedding_size": 16,
            "action_embedding_size": 32,
            "blocks": 2,
            "head_size": 128,
            "projector_size": 128,
            "projection_size": 128,
            "support": 149.0,
            "min_log_std": -2.5,
            "max_log_std": 0.0,
            "initial_log_std": -0.7,
            "max_mean": 1.5,
        },
        "search": {
            "num_simulations": 16,
            "num_root_actions": 8,
            "policy_share": 0.5,
            "exploration_std_scale": 2.0,
        },
        "replay": {"capacity": 100_000},
        "targets": {
            "discount": 0.97,
            "policy": "improved",
            "max_action": 0.98,
            "search_value_after": 2_000,
            "search_value_age": 20_000,
            "search_every": 5,
        },
        "optim": {
            "batch_size": 96,
            "learning_rate": 5e-4,
            "total_updates": 20_000,
            "final_updates": 0,
        },
        "collect": {"env_steps": 80_000, "random_steps": 2_000},
        "eval": {"every": 2_500, "episodes": 2},
        "trainer": {"checkpoint_every": 1_000},
    },
    # Seconds: proves that everything runs, learns nothing.
    "smoke": {
        "env": {"num_envs": 2, "action_repeat": 4, "short_episode_steps": None},
        "model": {
            "latent_size": 32,
            "task_embedding_size": 8,
            "action_embedding_size": 8,
            "blocks": 1,
            "head_size": 32,
            "projector_size": 32,
            "projection_size": 32,
            "support": 149.0,
        },
        "search": {"num_simulations": 8, "num_root_actions": 4},
        "replay": {"capacity": 5_000, "block_size": 50},
        "targets": {"discount": 0.97, "policy": "improved", "max_action": 0.98},
        "optim": {"batch_size": 32, "learning_rate": 5e-4, "total_updates": 40, "final_updates": 0},
        "collect": {"env_steps": 800, "random_steps": 400, "max_lead": 1.0},
        "eval": {"every": 20, "episodes": 1, "at_start": False, "video": False},
        "trainer": {"checkpoint_every": 20, "log_every": 5},
    },
}


def choose_preset(*, gpu: bool) -> tuple[str, str]:
    """What `preset: auto` means on this machine, and why, in words.

    Args:
        gpu: whether the machine has a CUDA device (asked by the caller: specs do not import torch).
    """
    if gpu:
        return "paper", "a GPU is present"
    return "laptop", "no GPU is present"


def nested(path: str, value: Any) -> dict[str, Any]:
    """`{"a": {"b": value}}` of the path `a.b`; the names of loss terms and of tasks keep their dots."""
    parts = path.split(".", 2 if path.startswith("loss.extra.") else -1)
    if path.startswith("tasks_meta."):
        section, named = path.split(".", 1)
        parts = [section, named] if isinstance(value, dict) else [section, *named.rsplit(".", 1)]
    for part in reversed(parts):
        value = {part: value}
    return value


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, key by key down nested dicts; neither is changed."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
