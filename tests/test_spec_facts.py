"""What a spec sets and nothing reads."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from ezm_pl.spec.agents import UNREAD
from ezm_pl.spec.facts import unread_settings
from ezm_pl.spec.io import build_experiment, dump_experiment, flatten

GOOD: dict[str, Any] = {"name": "trial", "preset": "smoke", "tasks": ["h1-stand", "h1-walk"]}


def test_what_an_agent_does_not_read_is_named_in_one_line() -> None:
    """A preset's own values are nobody's wish, so they are not named."""
    both = {**GOOD, "loss": {"policy": 0.5}, "sac": {"td_steps": 3}, "targets": {"discount": 0.9}}
    ezm, sac = (build_experiment({**both, "agent": agent}) for agent in ("ezm", "sac"))
    assert unread_settings(ezm) == ["note: agent ezm does not read sac.td_steps"]
    assert unread_settings(sac) == ["note: agent sac does not read loss.policy"]
    assert unread_settings(build_experiment({**GOOD, "agent": "sac"})) == []
    assert build_experiment(yaml.safe_load(dump_experiment(sac))) == sac, "as a checkpoint keeps it"


UNREAD_TOGETHER: list[tuple[dict[str, Any], str]] = [
    (
        {"targets": {"reanalyse": False, "search_every": 3, "policy": "improved", "search_value_after": 7}},
        "targets.policy, targets.search_every are not read: targets.reanalyse is false; "
        "targets.search_value_after is not read: targets.reanalyse is false",
    ),
    (
        {"targets": {"policy": "best"}, "search": {"correct_proposal": True}},
        "search.correct_proposal is not read: targets.policy is best",
    ),
    (
        {"targets": {"expansion_steps": 3, "search_value_after": 5, "search_value_age": 9}},
        "targets.search_value_age is not read: targets.expansion_steps is set",
    ),
    (
        {"targets": {"expansion_steps": 3, "search_value_after": 10**6}, "optim": {"total_updates": 50}},
        "targets.expansion_steps is not read: the run ends before targets.search_value_after",
    ),
    (
        {"search": {"choice": "policy", "c_visit": 5.0}, "targets": {"reanalyse": False}},
        "search.c_visit is not read: search.choice is policy and targets.reanalyse is false",
    ),
    ({"collect": {"hold_steps": 3}}, "collect.hold_steps is not read: collect.hold_share is 0"),
    (
        {"agent": "sac", "env": {"protocol": "humanoidbench", "short_episode_share": 0.1}},
        "env.short_episode_share is not read: env.protocol is not ezm",
    ),
    (
        {"env": {"short_episode_steps": None, "short_episode_share": 0.1}},
        "env.short_episode_share is not read: env.short_episode_steps is null",
    ),
    (
        {"search": {"choice": "policy", "evaluation_std": 0.5}},
        "search.evaluation_std is not read: search.choice is policy",
    ),
    (
        {"model": {"task_embedding_in": [], "task_embedding_size": 3}},
        "model.task_embedding_size is not read: model.task_embedding_in is empty",
    ),
    (
        {"tasks_meta": {"h1-walk": {"descriptions": ["walk"]}}},
        "tasks_meta descriptions are not read: model.task_conditioning is id",
    ),
]


@pytest.mark.parametrize(("settings", "said"), UNREAD_TOGETHER, ids=lambda value: str(value)[:40])
def test_settings_that_others_leave_unread_are_named_with_the_reason(
    settings: dict[str, Any], said: str
) -> None:
    notes = unread_settings(
        build_experiment({"name": "x", "preset": "paper", "tasks": ["h1-walk"], **settings})
    )
    assert "; ".join(note.removeprefix("note: ") for note in notes) == said


def test_the_fields_that_an_agent_does_not_read_exist() -> None:
    fields = list(flatten(build_experiment(GOOD).model_dump(mode="json")))
    for prefixes in UNREAD.values():
        for prefix in prefixes:
            assert any(field.startswith(prefix) for field in fields), prefix
