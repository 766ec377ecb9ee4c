"""The experiment spec: every size, weight and budget of a run, checked before anything slow starts.

Defaults are the published values (EZ-M, arXiv 2603.01452); presets in `presets.py` scale them down.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from ezm_pl.spec.agents import AgentName, SACSpec
from ezm_pl.spec.collect import CollectSpec
from ezm_pl.spec.descriptions import Descriptions, check_encoder, described
from ezm_pl.spec.errors import nearest
from ezm_pl.spec.extension import load_extension
from ezm_pl.spec.fields import (
    MOST_EPISODES,
    EpisodeProtocol,
    Fraction,
    Listed,
    Name,
    Networks,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Real,
    Size,
    Strict,
)
from ezm_pl.spec.seeds import MAX_SEED
from ezm_pl.spec.tasks import HUMANOID_BENCH, resolve_tasks
from ezm_pl.spec.tracking import TrackingSpec
from ezm_pl.spec.trainer import TrainerSpec

Sentence = Annotated[str, Field(min_length=1, max_length=500)]


class EnvSpec(Strict):
    """Where and how the tasks run."""

    backend: Literal["auto", "builtin", "humanoid_bench"] = "auto"
    protocol: EpisodeProtocol = Field("ezm", description="humanoidbench: a fall ends a training episode")
    num_envs: Size = Field(16, description="environments per task in the collector")
    action_repeat: Size = Field(1, description="control steps an action is held for")
    workers: Literal["auto", "async", "threads", "sync"] = Field("auto", description="who steps physics")
    worker_timeout: Annotated[PositiveFloat, Field(le=1e6)] = Field(
        300.0, description="seconds after which a worker process that does not answer is replaced (async)"
    )
    max_worker_restarts: NonNegativeInt = Field(
        20,
        description="most worker processes replaced in a session, by self-play and evaluation each (async)",
    )
    short_episode_steps: PositiveInt | None = Field(
        500, description="episode length in control steps early in training (ezm protocol); null: always full"
    )
    short_episode_share: Fraction = Field(0.4, description="share of training with short episodes")


class TaskMeta(Strict):
    """What a spec says of one task."""

    random_score: Real | None = Field(None, description="return that counts as a normalised score of 0")
    success_score: Real | None = Field(None, description="return that counts as a normalised score of 1")
    quirks: bool = Field(True, description="false: a HumanoidBench task without the benchmark's obvious bugs")
    descriptions: Listed[Sentence] = Field(
        (), description="the task in words (docs/language.md); none: the built-in sentences"
    )
    held_out_descriptions: Listed[Sentence] = Field((), description="kept out of training, for evaluation")

    @model_validator(mode="after")
    def _both_bounds(self) -> TaskMeta:
        if (self.random_score is None) != (self.success_score is None):
            raise ValueError("random_score and success_score go together")
        if self.random_score is not None and self.random_score == self.success_score:
            raise ValueError("random_score and success_score must differ")
        if self.held_out_descriptions and not self.descriptions:
            raise ValueError("held_out_descriptions needs descriptions")
        return self


class ModelSpec(Strict):
    """Sizes of the world model (docs/algorithm.md, "World model"): by default the published ones."""

    latent_size: Size = 512
    task_conditioning: Literal["id", "text"] = Field(
        "id", description="text: task embeddings are projections of sentences (docs/language.md)"
    )
    task_embedding_size: Size = 128
    task_embedding_in: Networks = ("representation", "dynamics", "reward", "value_policy")
    action_embedding_size: Size = 64
    blocks: Size = Field(3, description="residual blocks per network")
    head_size: Size = Field(512, description="hidden width of reward, value and policy heads")
    value_heads: Annotated[Size, Field(ge=2)] = 5
    projector_size: Size = 1024
    projection_size: Size = 512
    atoms: Annotated[Size, Field(ge=3)] = Field(51, description="atoms of the categorical scalars")
    support: PositiveFloat = Field(299.0, description="largest scalar the categorical support holds")
    value_floor: Real | None = Field(0.0, description="clip searched values from below; null: no clip")
    min_log_std: Real = -10.0
    max_log_std: Real = 2.0
    initial_log_std: Real | None = Field(None, description="log std before training; null: the middle")
    max_mean: PositiveFloat | None = Field(None, description="soft bound of the pre-tanh mean; null: none")
    head_norm: Literal["batch", "layer"] = Field(
        "batch", description="normalisation inside the heads; layer: the same in training and in search"
    )

    @model_validator(mode="after")
    def _log_std_order(self) -> ModelSpec:
        if self.min_log_std >= self.max_log_std:
            raise ValueError(f"min_log_std {self.min_log_std} must be below max_log_std {self.max_log_std}")
        initial = self.initial_log_std
        if initial is not None and not self.min_log_std < initial < self.max_log_std:
            raise ValueError(
                f"initial_log_std {initial} must lie between min_log_std {self.min_log_std} "
                f"and max_log_std {self.max_log_std}"
            )
        return self


class SearchSpec(Strict):
    """Gumbel search over sampled actions (docs/algorithm.md, "Search")."""

    num_simulations: Size = 32
    num_root_actions: Annotated[Size, Field(ge=2)] = 16
    num_interior_actions: Size = Field(2, description="sampled actions of an interior node")
    policy_share: Fraction = Field(0.25, description="share of root candidates drawn from the policy itself")
    exploration_std_scale: PositiveFloat = Field(3.0, description="std scale of the other candidates")
    correct_proposal: bool = Field(
        False, description="weigh improved-policy targets by policy over proposal density"
    )
    mode_candidate: bool = Field(False, description="the policy's mode is the first root candidate")
    evaluation_std: PositiveFloat = Field(1.0, description="std scale of all candidates in evaluation")
    c_visit: NonNegativeFloat = 50.0
    c_scale: NonNegativeFloat = 0.1
    range_floor: PositiveFloat = 0.01
    gumbel_scale: NonNegativeFloat = Field(0.0, description="Gumbel noise at the root; published: off")
    wave: Size | None = Field(
        None,
        description="most leaves per root that one network call expands; null: a whole round; 1: sequential",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of networks inside the search")
    compiled: bool = Field(
        True,
        description="on a CPU: searches run as a C++ program, once they have run long enough to earn it",
    )
    choice: Literal["best", "random", "policy"] = Field(
        "best",
        description="random: act on and learn from a random candidate (the check that can fail); "
        "policy: act by the policy alone, by its draws in self-play and its mode in evaluation",
    )
    proposal: str | None = Field(
        None, description="<module>:<class> that draws the candidates; null: the policy, some of it wider"
    )

    @field_validator("proposal")
    @classmethod
    def _proposal_loads(cls, proposal: str | None) -> str | None:
        if proposal is not None and not hasattr(load_extension(proposal), "from_spec"):
            raise ValueError(f"{proposal!r} has no from_spec(spec, action_size)")
        return proposal

    @model_validator(mode="after")
    def _own_proposals_have_no_std(self) -> Self:
        if self.proposal is not None and self.evaluation_std != 1:
            raise ValueError("evaluation_std scales the built-in proposal only; with `proposal` it must be 1")
        return self


class ReplaySpec(Strict):
    """Independent prioritised buffers, one per task.

    `observation_dtype: float16` is for replay that does not fit into memory; a resumed run cannot change it.
    Observations come back rounded to 11 binary digits (by at most 5e-4 of a value) and clipped to +-65,504.
    """

    capacity: PositiveInt = Field(1_000_000, description="transitions per task")
    observation_dtype: Literal["float32", "float16"] = Field(
        "float32", description="as stored; float16: half the memory, rounded by up to 5e-4 of a value"
    )
    block_size: Size = Field(100, description="steps stored together")
    shared: bool = Field(False, description="one priority table over all tasks (the ablation)")
    priority_exponent: NonNegativeFloat = 1.0
    importance_exponent: NonNegativeFloat = 1.0
    min_importance: Fraction = 0.1
    save: bool = Field(True, description="write the buffers beside the checkpoint")


class TargetSpec(Strict):
    """Unrolls, returns and reanalysis."""

    unroll_steps: Size = 5
    td_steps: Size = 5
    discount: Annotated[Real, Field(gt=0, lt=1)] = 0.99
    policy: Literal["best", "improved"] = Field("best", description="improved: all candidates, weighted")
    max_action: Annotated[Real, Field(gt=0, lt=1)] = Field(0.999, description="targets are clipped to this")
    expansion_steps: NonNegativeInt = Field(0, description="decisions that value targets imagine; 0: none")
    search_value_after: NonNegativeInt = Field(50_000, description="updates before search or imagined values")
    search_value_age: NonNegativeInt = Field(
        200_000, description="newest transitions per task that never use it"
    )
    search_every: PositiveInt = Field(
        1,
        description="reanalysis searches every n-th position of a window; all get new value targets",
    )
    reanalyse: bool = Field(
        True,
        description="false: no position is searched again; the policy learns the actions that were taken",
    )
    return_scaling: bool = Field(False, description="divide each task's rewards by the scale of its returns")

    @property
    def policy_positions(self) -> slice:
        """Which of a window's `U + 1` positions have a policy target."""
        return slice(None, None, self.search_every) if self.reanalyse else slice(self.unroll_steps)


class LossSpec(Strict):
    """Weights of the loss terms: what sweeps search over."""

    reward: NonNegativeFloat = 1.0
    value: NonNegativeFloat = 0.25
    policy: NonNegativeFloat = 1.0
    entropy: NonNegativeFloat = 5e-3
    temporal: NonNegativeFloat = 5.0
    path: NonNegativeFloat = 0.25
    observation: NonNegativeFloat = Field(0.0, description="decode observations from imagined latents")
    pathwise: NonNegativeFloat = Field(0.0, description="the policy climbs the model's own Q")
    extra: dict[str, NonNegativeFloat] = Field(
        {}, description="weights of terms of one's own, by <module>:<function>"
    )

    @field_validator("extra")
    @classmethod
    def _extra_loads(cls, extra: dict[str, float]) -> dict[str, float]:
        names = [*(name for name in cls.model_fields if name != "extra"), "total"]
        for term in extra:
            load_extension(term)
            names.append(term.rpartition(":")[2])
            if names.count(names[-1]) > 1:
                raise ValueError(f"{term!r}: there is another term {names[-1]!r}")
        return extra

    def of(self, term: str) -> float:
        """The weight of a term."""
        return float(getattr(self, term))


class OptimSpec(Strict):
    """Optimiser, batch and budget."""

    batch_size: Size = Field(512, description="windows per update, over all tasks and ranks")
    learning_rate: PositiveFloat = 1e-4
    weight_decay: NonNegativeFloat = 2e-5
    max_grad_norm: PositiveFloat = 5.0
    total_updates: PositiveInt = 600_000
    final_updates: NonNegativeInt = Field(20_000, description="updates after collection has ended")
    refresh_every: PositiveInt = Field(5, description="updates between refreshes of actor and target")
    averaging: Annotated[Real, Field(ge=0, lt=1)] = Field(
        0.0, description="per-update decay of the average of the weights that acts, evaluates and bootstraps"
    )
    decay_share: Fraction = Field(
        0.0, description="share of the updates, at the end, over which the learning rate falls to a tenth"
    )
    compiled: bool = Field(True, description="on a CPU: losses run as a C++ program, as `search.compiled`")
    max_skipped_updates: PositiveInt = Field(
        100, description="training fails after so many skipped (not finite) updates in a row"
    )


class EvalSpec(Strict):
    """Evaluation episodes, run as validation; both protocols' returns come from one rollout."""

    every: PositiveInt = Field(20_000, description="updates between evaluations")
    episodes: Annotated[Size, Field(le=MOST_EPISODES)] = Field(4, description="episodes per task")
    at_start: bool = True
    video: bool = Field(True, description="film 8 s of an episode per task at the end, where rendering works")


class Experiment(Strict):
    """One run: which tasks, which agent, which budget.

    Raises:
        pydantic.ValidationError: unknown keys, wrong types or ranges, unknown or repeated tasks,
            and combinations that cannot work (batch below the number of tasks, unroll over a block).
    """

    name: Name
    preset: Literal["paper", "laptop", "smoke"] = "paper"
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    agent: AgentName = Field("ezm", description="ezm, or the model-free baseline sac (docs/baseline.md)")
    tasks: Listed[str]
    tasks_meta: dict[str, TaskMeta] = Field({}, description="per task: its score's bounds, its quirks")
    env: EnvSpec = EnvSpec()
    model: ModelSpec = ModelSpec()
    search: SearchSpec = SearchSpec()
    replay: ReplaySpec = ReplaySpec()
    targets: TargetSpec = TargetSpec()
    loss: LossSpec = LossSpec()
    sac: SACSpec = SACSpec()
    optim: OptimSpec = OptimSpec()
    collect: CollectSpec = CollectSpec()
    eval: EvalSpec = EvalSpec()
    trainer: TrainerSpec = TrainerSpec()
    tracking: TrackingSpec = TrackingSpec()

    @field_validator("tasks", mode="before")
    @classmethod
    def _tasks(cls, tasks: object) -> tuple[str, ...]:
        if not isinstance(tasks, str) and not (
            isinstance(tasks, list | tuple) and all(isinstance(t, str) for t in tasks)
        ):
            raise ValueError(f"a suite such as 'hb-medium' or a list of task names expected, got {tasks!r}")
        return resolve_tasks(tasks)

    @model_validator(mode="after")
    def _fits_together(self) -> Experiment:
        for task, meta in self.tasks_meta.items():
            if task not in self.tasks:
                raise ValueError(f"tasks_meta: {task!r} is not one of the tasks{nearest(task, self.tasks)}")
            original = self.env.backend == "humanoid_bench"
            if not meta.quirks and (original or task not in HUMANOID_BENCH):
                raise ValueError(f"tasks_meta: {task!r} has no quirks that could be left out; set none")
        if self.model.task_conditioning == "text":
            described(self.tasks, self._own_descriptions)
        tasks = len(self.tasks)
        if self.optim.batch_size < tasks:
            raise ValueError(f"optim.batch_size {self.optim.batch_size} is smaller than the {tasks} tasks")
        unroll, td, block = self.windows.unroll_steps, self.windows.td_steps, self.replay.block_size
        if unroll + td > block:
            steps = f"targets.unroll_steps {unroll} + targets.td_steps {td} are"
            if self.agent == "sac":
                steps = f"sac.td_steps {td} + 1 are"
            raise ValueError(f"{steps} more than a block holds (replay.block_size {block})")
        if self.replay.capacity < self.env.num_envs * self.replay.block_size:
            raise ValueError(
                f"replay.capacity {self.replay.capacity} cannot hold one block of each environment "
                f"(env.num_envs {self.env.num_envs} x replay.block_size {self.replay.block_size})"
            )
        share, envs = self.collect.hold_share, self.env.num_envs
        if share and not round(share * envs):
            raise ValueError(f"collect.hold_share {share} of env.num_envs {envs} rounds to no environment")
        if self.collect.random_steps >= self.collect.env_steps:
            raise ValueError(
                f"collect.random_steps {self.collect.random_steps} must be below "
                f"collect.env_steps {self.collect.env_steps}"
            )
        return self

    @property
    def windows(self) -> TargetSpec:
        """The windows that replay gives: `targets`, with the agent's own `unroll_steps` and `td_steps`."""
        if self.agent == "ezm":
            return self.targets
        return self.targets.model_copy(update={"unroll_steps": 1, "td_steps": self.sac.td_steps})

    @property
    def _own_descriptions(self) -> dict[str, Descriptions]:
        return {
            task: Descriptions(meta.descriptions, meta.held_out_descriptions)
            for task, meta in self.tasks_meta.items()
            if meta.descriptions
        }

    @property
    def descriptions(self) -> dict[str, Descriptions]:
        """The sentences that describe each task, in order; empty where the agent knows tasks by their ids."""
        if self.agent != "ezm" or self.model.task_conditioning == "id":
            return {}
        return described(self.tasks, self._own_descriptions)

    def check_packages(self) -> None:
        """Raises `SpecError` where a package is missing that a new run needs."""
        if self.descriptions:
            check_encoder("model.task_conditioning: text")

    @property
    def score_bounds(self) -> dict[str, tuple[float, float]]:
        """Of the tasks whose scores this spec says itself: the returns that count as 0 and as 1."""
        return {
            task: (meta.random_score, meta.success_score)
            for task, meta in self.tasks_meta.items()
            if meta.random_score is not None and meta.success_score is not None
        }

    @property
    def without_quirks(self) -> tuple[str, ...]:
        """The tasks that go without the benchmark's obvious bugs."""
        return tuple(task for task, meta in self.tasks_meta.items() if not meta.quirks)

    @property
    def max_steps(self) -> int:
        """Updates of the whole run: `optim.total_updates + optim.final_updates`."""
        return self.optim.total_updates + self.optim.final_updates
