"""Which module and which way to act belong to the agent that a spec names."""

from __future__ import annotations

from ezm_pl.envs import TaskSizes, sizes
from ezm_pl.search import ActFn, Planner, act_greedy
from ezm_pl.spec import Experiment, searches
from ezm_pl.training.agent_module import AgentModule
from ezm_pl.training.module import EZMModule
from ezm_pl.training.ranks import Ranks
from ezm_pl.training.sac import SACModule


def new_module(experiment: Experiment, sizes: TaskSizes, ranks: Ranks | None = None) -> AgentModule:
    """The module that trains `experiment`; arguments as for `AgentModule`."""
    kind = {"ezm": EZMModule, "sac": SACModule}[experiment.agent]
    return kind(experiment, sizes, ranks)


def how_to_act(experiment: Experiment, *, search: bool) -> ActFn:
    """How a trained agent decides: EZ-M by its search, or by the policy alone; SAC by its policy's mode."""
    return evaluation_planner(experiment).act if searches(experiment, search=search) else act_greedy


def evaluation_planner(experiment: Experiment) -> Planner:
    """The search of episodes that a checkpoint plays; it is never compiled."""
    # A program takes over when the clock says so, and rounds differently: a seed has to give equal episodes.
    spec = experiment.search.model_copy(update={"compiled": False})
    size = sizes(experiment.tasks).action_size
    return Planner(spec, experiment.targets.discount, size, evaluation=True)
