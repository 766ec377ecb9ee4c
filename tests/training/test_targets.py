"""n-step returns and masks, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ezm_pl.replay import ReplayBuffer
from ezm_pl.spec.experiment import ReplaySpec, TargetSpec
from ezm_pl.training.batch import Batch
from ezm_pl.training.targets import masks, n_step_returns

# One row: U = 2, n = 2, discount 1/2, rewards 1, 2, 4, 8; bootstraps 16, 32, 64 for k = 0, 1, 2.
REWARD = [1.0, 2.0, 4.0, 8.0]
BOOTSTRAP = [16.0, 32.0, 64.0]


def returns(length: int, terminated: bool) -> list[float]:
    reward = torch.tensor([[r if k < length else 0.0 for k, r in enumerate(REWARD)]])
    found = n_step_returns(
        reward, torch.tensor([BOOTSTRAP]), torch.tensor([length]), torch.tensor([terminated]), 0.5
    )
    return found[0].tolist()


def test_full_window() -> None:
    """k=0: 1 + 2/2 + 16/4 = 6; k=1: 2 + 4/2 + 32/4 = 12; k=2: 4 + 8/2 + 64/4 = 24."""
    assert returns(4, False) == [6, 12, 24]


def test_time_limit_inside_the_window() -> None:
    """Three steps are real, so the last observation is that after step 2.
    k=0: 1 + 1 + 16/4 = 6; k=1: 2 + 4/2 + 32/4 = 12; k=2: one step left: 4 + 64/2 = 36.
    """
    assert returns(3, False) == [6, 12, 36]


def test_time_limit_right_at_the_first_step() -> None:
    """k=0: 1 + 16/2 = 9. Behind the end the value is the bootstrap itself (and masked)."""
    assert returns(1, False) == [9, 32, 64]


def test_termination_inside_the_window() -> None:
    """Ends with step 2. k=0: its n steps end before: 1 + 1 + 4 = 6. k=1: 2 + 4/2 = 4, the second step
    being the last. k=2: 4.
    """
    assert returns(3, True) == [6, 4, 4]


def test_termination_at_the_end_of_the_window() -> None:
    """Ends with step 3: k=0 and k=1 bootstrap as ever, k=2: 4 + 8/2 = 8."""
    assert returns(4, True) == [6, 12, 8]


def test_termination_in_the_first_step() -> None:
    assert returns(1, True) == [1, 0, 0]


def test_rows_do_not_mix() -> None:
    lengths, ends = [4, 3, 3, 1, 4], [False, False, True, True, True]
    reward = torch.tensor([[r if k < n else 0.0 for k, r in enumerate(REWARD)] for n in lengths])
    found = n_step_returns(
        reward, torch.tensor([BOOTSTRAP] * 5), torch.tensor(lengths), torch.tensor(ends), 0.5
    )
    assert found.tolist() == [returns(n, e) for n, e in zip(lengths, ends, strict=True)]


@pytest.mark.parametrize(
    ("length", "terminated", "reward", "value", "policy", "latent"),
    [
        (8, False, [1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1]),
        (8, True, [1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1]),
        (3, False, [1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1]),
        (3, True, [1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1]),
        (2, False, [1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0]),
        (2, True, [1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0]),
        (1, False, [1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0]),
        (1, True, [1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0]),
    ],
)
def test_masks_by_hand(
    length: int, terminated: bool, reward: list[int], value: list[int], policy: list[int], latent: list[int]
) -> None:
    """`length` steps lead to `length` further observations; past a termination all is known to be 0."""
    found = masks(torch.tensor([length]), torch.tensor([terminated]), unroll=3)
    assert found.reward.tolist() == [reward]
    assert found.value.tolist() == [value]
    assert found.policy.tolist() == [policy]
    assert found.latent.tolist() == [latent]


@pytest.mark.parametrize("end", ["terminated", "truncated"])
@pytest.mark.parametrize("steps", [3, 5, 6, 7, 9, 12])
def test_through_replay_against_the_whole_episode(steps: int, end: str) -> None:
    """Blocks of 6, U = n = 3. The reward of step t is t + 1, the value of an observation `[t]` 100 t."""
    unroll, td, discount = 3, 3, 0.5
    buffer = ReplayBuffer(
        np.zeros(1, np.int64),
        ReplaySpec(capacity=60, block_size=6),
        TargetSpec(unroll_steps=unroll, td_steps=td, discount=discount),
        observation_size=1,
        action_size=1,
    )
    for t in range(steps):
        last = t == steps - 1
        here, there = np.full((1, 1), t, np.float32), np.full((1, 1), t + 1, np.float32)
        done = [np.array([last and end == kind]) for kind in ("terminated", "truncated")]
        buffer.add(here, here, np.array([t + 1.0], np.float32), done[0], done[1], there)
    batch = Batch.from_windows(buffer.sample(64))
    bootstrap = 100 * batch.observation[:, td : td + unroll + 1, 0]
    found = n_step_returns(batch.reward, bootstrap, batch.length, batch.terminated, discount)
    mask = masks(batch.length, batch.terminated, unroll)
    first = batch.observation[:, 0, 0].long()
    assert set(first.tolist()) == set(range(steps))
    for i in range(64):
        for k in range(unroll + 1):
            start = int(first[i]) + k
            assert bool(mask.policy[i, k]) == (start < steps)
            assert bool(mask.value[i, k]) == (start < steps or end == "terminated")
            if not mask.value[i, k]:
                continue
            until = min(start + td, steps)
            expected = sum(discount ** (t - start) * (t + 1) for t in range(start, until))
            if not (end == "terminated" and until == steps):
                expected += discount ** (until - start) * 100 * until
            assert float(found[i, k]) == pytest.approx(expected if start < steps else 0.0), (start, k)
