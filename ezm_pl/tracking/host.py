"""The host of a run as MLflow tags: hardware, versions and git state. Nothing else of the host is read."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import psutil


def gpu_names() -> list[str]:
    """Names of the NVIDIA GPUs that the driver shows; PyTorch is not imported for them.

    Empty where there is none, or `CUDA_VISIBLE_DEVICES` hides them all.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return []
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return answer.stdout.splitlines() if answer.returncode == 0 else []


def has_usable_gpu() -> bool:
    """Whether there is a GPU and a PyTorch build that can use it."""
    return "+cpu" not in importlib.metadata.version("torch") and bool(gpu_names())


def host_tags() -> dict[str, str]:
    """`host.*` (CPU model, cores this process may use, memory in GiB, GPUs) and `version.*` tags."""
    memory = psutil.virtual_memory().total / 2**30
    versions = ("ezm_pl", "torch", "lightning", "mujoco", "gymnasium")
    return {
        "host.cpu": _cpu_name(),
        "host.cores": str(len(psutil.Process().cpu_affinity()) if psutil.LINUX else os.cpu_count()),
        "host.memory_gib": f"{memory:.1f}",
        "host.gpu": ", ".join(gpu_names()) or "none",
        "version.python": platform.python_version(),
        **{f"version.{name}": importlib.metadata.version(name) for name in versions},
    }


def git_tags() -> dict[str, str]:
    """`git.commit` and `git.dirty` of the checkout this package runs from; empty outside of one."""
    root = Path(__file__).parents[2]
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return {}
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {
        "git.commit": commit,
        "git.dirty": str(bool(changes)).lower(),
        "mlflow.source.git.commit": commit,
    }


def _git(root: Path, *arguments: str) -> str | None:
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _cpu_name() -> str:
    table = Path("/proc/cpuinfo")
    if table.exists():
        for line in table.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
