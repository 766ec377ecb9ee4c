"""Observations stored as float16: what comes back, what it costs in memory, and saves of either type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from replay_helpers import TERMINATED, TRUNCATED, CountingRows, check_window, make_buffer

from ezm_pl.replay import ReplayBuffer, ReplayError, ReplayStore
from ezm_pl.spec.experiment import ReplaySpec, TargetSpec


def of_one_value(value: float, dtype: str = "float16") -> float:
    """An observation that went through a buffer."""
    buffer = make_buffer([0], observation_dtype=dtype)
    observation = np.full((1, 3), value, np.float32)
    nothing, no = np.zeros((1, 3), np.float32), np.array([False])
    buffer.add(observation, nothing, np.zeros(1, np.float32), no, np.array([True]), observation)
    seen = buffer.sample(1).observation
    assert seen.dtype == np.float32
    assert np.array_equal(seen[0], np.broadcast_to(seen[0, 0, 0], (5, 3)), equal_nan=True)
    return float(seen[0, 0, 0])


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1 / 3, 60.01, -4097.3, 6.2e-5, 65504.0])
def test_values_come_back_to_three_digits(value: float) -> None:
    assert abs(of_one_value(value) - value) <= 2**-11 * abs(value)
    assert of_one_value(value, "float32") == np.float32(value)


def test_the_smallest_values_lose_more_than_others() -> None:
    """Between multiples of 2^-24 there is nothing: 1e-5 comes back within 2^-25, 1e-9 as zero."""
    assert 0 < abs(of_one_value(1e-5) - 1e-5) <= 2**-25
    assert of_one_value(1e-9) == 0


@pytest.mark.parametrize(
    ("value", "expected"), [(1e6, 65504), (-65519.9, -65504), (65520, 65504), (np.inf, 65504)]
)
@pytest.mark.filterwarnings("error")
def test_values_out_of_range_are_clipped(value: float, expected: float) -> None:
    assert of_one_value(value) == expected


def test_what_is_not_a_number_stays_so() -> None:
    """So that whoever learns from it hears of it, as with float32."""
    assert np.isnan(of_one_value(np.nan))


def random_play(dtype: str) -> tuple[ReplayBuffer, CountingRows]:
    """Sixty steps of random episodes; all numbers are small integers, which float16 holds exactly."""
    random = np.random.default_rng(0)
    buffer = make_buffer([0, 0, 1], observation_dtype=dtype)
    rows = CountingRows(buffer, 3)
    for _ in range(60):
        rows.play({int(i): (TERMINATED, TRUNCATED)[i % 2] for i in np.flatnonzero(random.random(3) < 0.1)})
    return buffer, rows


def test_windows_are_those_of_float32() -> None:
    """Borders, tails and repeated last observations, too; the same positions are drawn."""
    (half, rows), (full, _) = random_play("float16"), random_play("float32")
    for _ in range(20):
        windows, others = half.sample(16), full.sample(16)
        for name in windows.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(windows, name), getattr(others, name), err_msg=name)
        for i in range(16):
            check_window(windows, i, rows, 2, 2)


def test_observations_take_half_the_memory() -> None:
    sizes = {"observation_size": 308, "action_size": 61, "capacity": 6000, "block_size": 100}
    half, full = (
        make_buffer([0, 1], **sizes, unroll_steps=5, td_steps=5, observation_dtype=dtype)
        for dtype in ("float16", "float32")
    )
    assert half.blocks.observation.nbytes * 2 == full.blocks.observation.nbytes
    shape = {name: sizes.pop(name) for name in ("observation_size", "action_size")}
    estimates = [
        ReplayBuffer.estimate_bytes(
            ReplaySpec(**sizes, observation_dtype=dtype),
            TargetSpec(),
            **shape,
            tasks=2,
            envs_per_task=1,
            steps=6000,
        )
        for dtype in ("float16", "float32")
    ]
    for buffer, estimate in zip((half, full), estimates, strict=True):
        assert 0.9 * buffer.nbytes <= estimate <= 1.1 * buffer.nbytes
    assert estimates[1] - estimates[0] == pytest.approx(half.blocks.observation.nbytes, rel=0.01)


def test_saves_are_as_small_and_come_back_bit_by_bit(tmp_path: Path) -> None:
    buffer, _ = random_play("float16")
    buffer.blocks.observation += np.float16(0.1)
    store = ReplayStore(buffer, tmp_path)
    store.write(store.begin("1"))
    loaded = make_buffer([0, 0, 1], observation_dtype="float16")
    other = ReplayStore(loaded, tmp_path)
    assert other.load("1") == []
    assert loaded.blocks.observation.dtype == np.float16
    for task, block in np.argwhere(buffer.blocks.steps > 0):
        steps = buffer.blocks.steps[task, block]
        mine, theirs = (x.blocks.observation[task, block, :steps] for x in (buffer, loaded))
        assert mine.tobytes() == theirs.tobytes()
    full = ReplayStore(make_buffer([0, 0, 1]), tmp_path)
    assert full.block_type.itemsize - other.block_type.itemsize == 2 * 3 * 10, "ten steps of three numbers"


@pytest.mark.parametrize(("saved", "wanted"), [("float32", "float16"), ("float16", "float32")])
def test_a_save_of_the_other_type_is_refused_in_one_line(tmp_path: Path, saved: str, wanted: str) -> None:
    store = ReplayStore(random_play(saved)[0], tmp_path)
    store.write(store.begin("1"))
    other = make_buffer([0, 0, 1], observation_dtype=wanted)
    with pytest.raises(ReplayError) as caught:
        ReplayStore(other, tmp_path).load("1")
    assert str(caught.value) == (
        f"{tmp_path / '1.json'}: observation_dtype is {saved}, this experiment needs {wanted}"
    )
    assert len(other) == 0
