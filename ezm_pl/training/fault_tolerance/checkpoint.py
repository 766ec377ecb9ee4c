"""What a checkpoint file holds; how it is written, and read without running code."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ezm_pl.replay import ReplayError
from ezm_pl.replay.atomic_write import write_atomically
from ezm_pl.replay.storage import check_save
from ezm_pl.spec import Experiment, SpecError, build_experiment, differences

FORMAT = 2
"""Version of a checkpoint's contents; other versions cannot be read."""
LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
_MAY_DIFFER = (
    "name", "preset", "eval.", "trainer.", "tracking.", "env.worker", "env.max_worker_restarts",
    "replay.save", "search.compiled", "optim.compiled", "collect.max_lead", "collect.env_steps",
    "optim.max_skipped_updates", "optim.total_updates", "optim.final_updates",
)  # fmt: skip
"""Fields under these may differ between a checkpoint and the run that resumes it."""


class CheckpointError(SpecError):
    """A checkpoint that is missing, damaged, or of another experiment, in one line."""


def shard(checkpoint: Path, rank: int) -> Path:
    """The folder of a rank's replay, beside a checkpoint."""
    return checkpoint.parent / "replay" / f"rank{rank}"


def fingerprint(value: Any, crc: int = 0) -> int:
    """CRC-32 of nested dicts, lists and tensors: of structure, types, shapes and every byte."""
    if isinstance(value, dict):
        for key, item in value.items():
            crc = fingerprint(item, zlib.crc32(f"{key!r}:".encode(), crc))
        return zlib.crc32(b"}", crc)
    if isinstance(value, list | tuple):
        for item in value:
            crc = fingerprint(item, crc)
        return zlib.crc32(b"]", crc)
    if isinstance(value, Tensor):
        crc = zlib.crc32(f"{value.dtype}{tuple(value.shape)}".encode(), crc)
        data: Any = value.detach().cpu().reshape(-1).view(torch.uint8).contiguous().numpy()
        return zlib.crc32(data, crc)
    return zlib.crc32(repr(value).encode(), crc)


def write_checkpoint(contents: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint safely (see `write_atomically`), with a fingerprint of its contents.

    Raises:
        OSError: it could not be written; a file that was there is untouched.
    """
    file = io.BytesIO()
    torch.save({**contents, "fingerprint": fingerprint(contents)}, file)
    write_atomically(path, [file.getbuffer()])


def load_contents(path: Path) -> Any:
    """What a checkpoint file holds, loaded with `weights_only`.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - what a damaged file makes torch raise is not to be foreseen
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"{path}: not a readable checkpoint: {reason[0] if reason else error!r}"
        ) from None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's contents, checked against their fingerprint.

    Raises:
        CheckpointError: the file is missing, damaged or not a checkpoint of this project.
    """
    contents = load_contents(path)
    if not isinstance(contents, dict) or not isinstance(contents.get("experiment"), str):
        raise CheckpointError(f"{path}: holds no experiment, so it is not a checkpoint of this project")
    if contents.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is of another version of this project and cannot be read by this one")
    check_fingerprint(path, contents)
    return contents


def check_fingerprint(path: Path, contents: dict[str, Any]) -> None:
    """Takes the fingerprint out of a checkpoint's contents; `CheckpointError` where it is not theirs."""
    if contents.pop("fingerprint", None) != fingerprint(contents):
        raise CheckpointError(f"{path}: is damaged, its contents are not what was written")


def replay_of(contents: dict[str, Any]) -> tuple[str, int] | None:
    """The name and the number of shards of the replay that a checkpoint was saved with; None: without."""
    saved = contents.get("replay")
    return None if saved is None else (saved["save"], saved["ranks"])


def replay_beside(checkpoint: Path) -> tuple[str, int] | None:
    """`replay_of` a checkpoint or, where it was saved without, of the run's last one beside it.

    Raises:
        CheckpointError: one of them cannot be read.
    """
    saved, last = replay_of(read_checkpoint(checkpoint)), checkpoint.with_name(LAST)
    return replay_of(read_checkpoint(last)) if saved is None and last.is_file() else saved


def check_usable(path: Path, *, replay: bool = True) -> None:
    """Raises `CheckpointError` where a checkpoint, or (with `replay`) the replay of its save, is damaged."""
    saved = replay_of(read_checkpoint(path))
    if saved is None or not replay:
        return
    name, ranks = saved
    try:
        for rank in range(ranks):
            check_save(shard(path, rank), name)
    except ReplayError as error:
        raise CheckpointError(str(error)) from None


def newest_valid(path: Path, *, replay: bool = True) -> tuple[Path, str | None]:
    """The checkpoint to resume, and a note for the user (None: nothing to say).

    Args:
        path: the checkpoint that is meant. Where it is a `last.ckpt` that is damaged, the
            `previous.ckpt` beside it does.
        replay: whether the replay of its save is needed, too.

    Raises:
        CheckpointError: there is none that can be used.
    """
    problems = []
    names = [path.name, PREVIOUS] if path.name == LAST else [path.name]
    for candidate in (path.with_name(name) for name in names):
        try:
            check_usable(candidate, replay=replay)
        except CheckpointError as error:
            problems.append(str(error))
        else:
            note = f"{problems[0]}; {candidate.name}, the one before it, is used" if problems else None
            return candidate, note
    if len(problems) > 1 and not path.with_name(PREVIOUS).is_file():
        problems.pop()
    raise CheckpointError("; ".join(problems))


def checkpoint_experiment(path: Path) -> Experiment:
    """The spec that a checkpoint was trained by.

    Raises:
        CheckpointError: no checkpoint, or a spec that this version cannot read.
    """
    return experiment_of(read_checkpoint(path), path)


def experiment_of(contents: dict[str, Any], path: Path) -> Experiment:
    """The spec in the contents of the checkpoint `path`; `CheckpointError` where it cannot be read."""
    try:
        return build_experiment(yaml.safe_load(contents["experiment"]), source=str(path))
    except SpecError as error:
        raise CheckpointError("; ".join(str(error).splitlines())) from None


def checkpoint_run_id(path: Path) -> str | None:
    """Id of the MLflow run that wrote a checkpoint; None where it is unreadable or names none."""
    try:
        run_id = read_checkpoint(path).get("run_id")
    except CheckpointError:
        return None
    return run_id if isinstance(run_id, str) else None


def check_same_experiment(path: Path, experiment: Experiment) -> None:
    """Raises `CheckpointError` naming every field in which the checkpoint's experiment is another one."""
    changed = differences(checkpoint_experiment(path), experiment, ignore=_MAY_DIFFER)
    if changed:
        raise CheckpointError(f"{path}: is of another spec, so it cannot be resumed: {'; '.join(changed)}")
