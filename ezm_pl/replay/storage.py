"""Replay buffers on disk, saved incrementally.

A rank's folder holds, for each save, a manifest, the state (counters, priorities) and the blocks that were
open then; and *segments*: blocks that were complete when they were written. A block is written to a segment
once. A segment is deleted when the ring has evicted all of its blocks; the blocks of one that has become
small are written again with the next save.

    000001500-3fa1b2c4.json            the manifest, written last: what a save consists of, with checksums
    000001500-3fa1b2c4.state           fixed arrays of fixed types, one after the other
    000001500-3fa1b2c4.open            blocks that were still being filled
    000001500-3fa1b2c4-0.blocks, ...   segments, shared by all later saves

Nothing in these files is executed or unpickled: arrays of types that the buffer's own sizes give, and JSON.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ezm_pl.replay.atomic_write import checksum, sync_folder, write_atomically
from ezm_pl.replay.blocks import Blocks
from ezm_pl.replay.buffer import ReplayBuffer, ReplayError
from ezm_pl.replay.snapshot import Snapshot

SEGMENT_BYTES = 16 << 20
SMALL = SEGMENT_BYTES // 4
"""A segment with fewer live bytes than this is written again."""
_LOCKED_BYTES = 1 << 21
"""Copied while the buffer's lock is held: under a millisecond."""
_FORMAT = 2


@dataclass
class Plan:
    """A save that has been begun: the buffer's state then, and what it was called.

    Attributes:
        name: of the save, unique in its folder.
        snapshot: counters and priorities; its blocks are copied while they are written.
    """

    name: str
    snapshot: Snapshot


class ReplayStore:
    """The saves of one buffer in one folder.

    Args:
        buffer: to save and to load.
        folder: of this rank.
    """

    def __init__(self, buffer: ReplayBuffer, folder: Path) -> None:
        self.buffer, self.folder = buffer, folder
        self._files: list[dict[str, Any]] = []
        # Which segment a block was last written to, and the transition id of its first step then.
        shape = (buffer.tasks, buffer.blocks.num_blocks)
        self._segment = np.full(shape, -1, np.int64)
        self._written = np.full(shape, -1, np.int64)

    @property
    def block_type(self) -> np.dtype:
        """A block on disk."""
        fields: list[tuple[str, Any, tuple[int, ...]]] = [("task", "<i8", ()), ("block", "<i8", ())]
        for name in Blocks.STEP_FIELDS:
            array = getattr(self.buffer.blocks, name)
            fields.append((name, array.dtype.newbyteorder("<"), array.shape[2:]))
        return np.dtype(fields)

    def begin(self, name: str) -> Plan:
        """Takes the state of this instant; adding and sampling wait for as long as priorities are copied."""
        return Plan(name, self.buffer.snapshot())

    def write(self, plan: Plan) -> None:
        """Writes a save: what has changed since the last one, and its manifest at the end.

        While it runs, adding and sampling go on. Blocks that the ring overwrites in the meantime are the
        oldest there are, and are left out.

        Raises:
            OSError: something could not be written; the saves before it are untouched.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        snapshot, used = plan.snapshot, plan.snapshot.steps.shape[1]
        segment, written = self._segment[:, :used].copy(), self._written[:, :used].copy()
        # As they are now: writing takes out of the snapshot what has been overwritten in the meantime.
        stored, closed, first = snapshot.steps > 0, snapshot.complete != 0, snapshot.first_id.copy()
        segment[~(closed & (written == first))] = -1
        files = list(self._files)
        live = np.bincount(segment[segment >= 0], minlength=len(files)) * self.block_type.itemsize
        segment[np.isin(segment, np.flatnonzero(live < SMALL))] = -1

        changed = np.argwhere(closed & (segment < 0))
        # In the order of their ages: what is overwritten together lies together.
        changed = changed[np.argsort(first[tuple(changed.T)], kind="stable")]
        blocks_per_file = max(1, SEGMENT_BYTES // self.block_type.itemsize)
        for start in range(0, len(changed), blocks_per_file):
            some = changed[start : start + blocks_per_file]
            path = self.folder / f"{plan.name}-{start // blocks_per_file}.blocks"
            size, crc = write_atomically(path, self._records(some, snapshot))
            segment[tuple(some.T)] = len(files)
            written[tuple(some.T)] = first[tuple(some.T)]
            files.append({"file": path.name, "size": size, "crc": crc})

        opened = np.argwhere(stored & ~closed)
        at_once = self.folder / f"{plan.name}.open"
        open_sum = write_atomically(at_once, self._records(opened, snapshot))
        state = self.folder / f"{plan.name}.state"
        state_sum = write_atomically(state, [getattr(snapshot, field) for field, _, _ in self._fields(used)])

        kept = np.unique(segment[segment >= 0])
        self._write_manifest(
            plan.name,
            {
                "format": _FORMAT,
                "sizes": self._sizes(),
                "used": used,
                "random": snapshot.random,
                "state": {"file": state.name, "size": state_sum.size, "crc": state_sum.crc},
                "open": {"file": at_once.name, "size": open_sum.size, "crc": open_sum.crc},
                "segments": [files[i] for i in kept],
            },
        )
        self._files = [files[i] for i in kept]
        self._segment[:, :used] = np.where(segment >= 0, np.searchsorted(kept, segment), -1)
        self._written[:, :used] = written

    def _records(self, which: NDArray[np.int64], snapshot: Snapshot) -> Iterator[NDArray]:
        """Records of blocks `[K, 2]` (task, block), some at a time; the snapshot loses those overwritten."""
        step = max(1, _LOCKED_BYTES // self.block_type.itemsize)
        for start in range(0, len(which), step):
            task, block = which[start : start + step].T
            records = np.zeros(len(task), self.block_type)
            records["task"], records["block"] = task, block
            there = self.buffer.copy_blocks(task, block, snapshot.first_id[task, block], records)
            snapshot.drop(task[~there], block[~there])
            records["transition_id"][~there] = -1
            yield records

    def _write_manifest(self, name: str, body: dict[str, Any]) -> None:
        sync_folder(self.folder)
        text = json.dumps(body, indent=1).encode()
        write_atomically(self.folder / f"{name}.json", [b"%08x\n" % zlib.crc32(text), text])
        sync_folder(self.folder)

    def load(self, name: str) -> list[str]:
        """Restores the buffer from a save. Episodes that were open then count as truncated.

        Returns:
            What was left out, one line each: blocks of files that are damaged.

        Raises:
            ReplayError: the save is not there, damaged, or of other sizes; the buffer is as it was.
        """
        manifest = read_manifest(self.folder, name)
        sizes = manifest["sizes"]
        for what, size in self._sizes().items():
            if sizes.get(what) != size:
                raise ReplayError(
                    f"{self.folder / name}.json: {what} is {sizes.get(what)}, this experiment needs {size}"
                )
        snapshot = self._read_state(manifest)
        generator = np.random.default_rng()
        generator.bit_generator.state = manifest["random"]
        found = np.zeros(snapshot.steps.shape, bool)
        segment = np.full(found.shape, -1, np.int64)
        first = np.where(snapshot.steps > 0, snapshot.first_id, -2)  # -2: of no record
        notes = []
        for number, entry in enumerate([manifest["open"], *manifest["segments"]]):
            path = self.folder / entry["file"]
            if problem := _problem(path, entry):
                notes.append(problem)
                continue
            records = np.fromfile(path, self.block_type)
            task, block = records["task"], records["block"]
            there = records["transition_id"][:, 0] == first[task, block]  # the others were evicted since
            self.buffer.fill_blocks(task[there], block[there], records[there])
            found[task[there], block[there]] = True
            segment[task[there], block[there]] = number - 1
        missing = (snapshot.steps > 0) & ~found
        if missing.any():
            lost = np.count_nonzero(snapshot.priority[missing])
            notes = [
                f"{'; '.join(notes) or self.folder / name}: {lost:,} transitions of the replay are left out"
            ]
            task, block = np.nonzero(missing)
            snapshot.drop(task, block)
        self.buffer.restore(snapshot)
        self.buffer.generator = generator
        self._files = list(manifest["segments"])
        for mine, read in ((self._segment, segment), (self._written, np.where(found, snapshot.first_id, -1))):
            mine[:] = -1
            mine[:, : manifest["used"]] = read
        return notes

    def keep(self, names: Collection[str]) -> None:
        """Deletes every save but these, and the segments that none of these needs."""
        wanted: set[str] = set()
        for name in names:
            if (self.folder / f"{name}.json").is_file():
                wanted |= {f"{name}.json", *files_of(read_manifest(self.folder, name))}
        for path in list(self.folder.glob("*")):
            if path.name not in wanted:
                path.unlink(missing_ok=True)

    def _sizes(self) -> dict[str, int | str]:
        blocks = self.buffer.blocks
        return {
            "tasks": blocks.tasks,
            "blocks": blocks.num_blocks,
            "block_size": blocks.block_size,
            "overlap": blocks.overlap,
            "observation_size": blocks.observation.shape[3],
            "action_size": blocks.action.shape[3],
            "observation_dtype": blocks.observation.dtype.name,
        }

    def _fields(self, used: int) -> list[tuple[str, str, tuple[int, ...]]]:
        """Name, type and shape of everything in a state file, in order."""
        tasks = self.buffer.tasks
        return [
            ("steps", "<i8", (tasks, used)),
            ("first_id", "<i8", (tasks, used)),
            ("complete", "|u1", (tasks, used)),
            ("priority", "<f8", (tasks, used, self.buffer.blocks.block_size)),
            ("next_block", "<i8", (tasks,)),
            ("added", "<i8", (tasks,)),
            ("return_squares", "<f8", (tasks,)),
            ("return_count", "<f8", (tasks,)),
        ]

    def _read_state(self, manifest: dict[str, Any]) -> Snapshot:
        entry, used = manifest["state"], manifest["used"]
        path = self.folder / entry["file"]
        if problem := _problem(path, entry):
            raise ReplayError(problem)
        with path.open("rb") as file:
            arrays: dict[str, Any] = {
                name: np.fromfile(file, kind, int(np.prod(shape))).reshape(shape)
                for name, kind, shape in self._fields(used)
            }
        return Snapshot(**arrays, random=manifest["random"])


def read_manifest(folder: Path, name: str) -> dict[str, Any]:
    """What a save consists of.

    Raises:
        ReplayError: it is not there, damaged, or of another format.
    """
    path = folder / f"{name}.json"
    try:
        crc, _, text = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise ReplayError(f"{path}: cannot be read: {error.strerror or error}") from None
    if crc != b"%08x" % zlib.crc32(text):
        raise ReplayError(f"{path}: is damaged (its checksum differs)")
    body = json.loads(text)
    if body["format"] != _FORMAT:
        raise ReplayError(f"{path}: replay of format {body['format']}; this version reads format {_FORMAT}")
    return body


def check_save(folder: Path, name: str) -> None:
    """Raises `ReplayError` where a save's state or open blocks are damaged; its segments are not read."""
    manifest = read_manifest(folder, name)
    for entry in (manifest["state"], manifest["open"]):
        problem = _problem(folder / entry["file"], entry)
        if problem:
            raise ReplayError(problem)


def files_of(manifest: dict[str, Any]) -> list[str]:
    """Names of the files a save consists of, but for the manifest itself."""
    return [entry["file"] for entry in (manifest["state"], manifest["open"], *manifest["segments"])]


def _problem(path: Path, entry: dict[str, Any]) -> str | None:
    """What is wrong with a file, as one line; None where it is as it was written."""
    try:
        found = checksum(path)
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror or error}"
    if found.size != entry["size"]:
        return f"{path}: is damaged ({found.size} bytes of {entry['size']})"
    return None if found.crc == entry["crc"] else f"{path}: is damaged (its checksum differs)"
