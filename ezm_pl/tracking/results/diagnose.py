"""`ezm diagnose`: a table per task of what holds learning back, and all of it as JSON."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ezm_pl.spec import write_json, writing
from ezm_pl.spec.files import finite
from ezm_pl.tracking.console import cell, say
from ezm_pl.tracking.runs.run_lookup import usable_checkpoint

if TYPE_CHECKING:
    from ezm_pl.training.diagnostics import TaskDiagnosis
    from ezm_pl.training.diagnostics.predictions import Predictions


def diagnose_run(
    reference: str,
    *,
    states: int,
    actions: int,
    rollouts: int,
    seed: int,
    output: Path | None,
    figure: Path | None,
    console: Console,
) -> None:
    """Diagnoses the checkpoint behind `reference` and prints a table per task.

    Args:
        reference: `last`, a run id, a run folder or a checkpoint.
        states, actions, rollouts, seed: see `Diagnostics`.
        output: a JSON file for all numbers; None: no file.
        figure: a file for the figure; None: none.
        console: where to print.

    Raises:
        SpecError: no such run, a checkpoint that cannot be read, episodes that are too short to judge, a file
            that cannot be written.
    """
    checkpoint = usable_checkpoint(reference, console)
    from ezm_pl.training.diagnostics import Diagnostics

    diagnostics = Diagnostics(checkpoint, states=states, actions=actions, rollouts=rollouts, seed=seed)
    networks = diagnostics.networks
    say(console, f"{checkpoint}: {networks.updates:,} updates, {networks.env_steps:,} env steps per task")
    if diagnostics.buffer is None:
        console.print("no replay beside the checkpoint: what needs one is left out", style="yellow")
    found = []
    for diagnosis in diagnostics.tasks():
        console.print(diagnosis_table(diagnosis))
        found.append(diagnosis)
    if output is not None:
        document = {
            "checkpoint": str(checkpoint),
            "updates": networks.updates,
            "env_steps": networks.env_steps,
            "seed": seed,
            "tasks": [finite(dataclasses.asdict(diagnosis)) for diagnosis in found],
        }
        write_json(output, document)
        say(console, f"wrote {output}")
    if figure is not None:  # after the numbers: they stay where the figure cannot be written
        from ezm_pl.tracking.results.diagnosis_figure import diagnosis_figure

        title = f"{networks.experiment.name}, {networks.updates:,} updates"
        with writing(figure):
            diagnosis_figure(found, diagnostics.embeddings(), figure, title=title)
        say(console, f"wrote {figure}")


def diagnosis_table(found: TaskDiagnosis) -> Table:
    """One task's numbers, each with what it should be."""
    kind = "upright states" if found.upright_states else "states"
    table = Table(
        title=f"{escape(found.task)}: {found.states} {kind} x {found.actions} actions x "
        f"{found.rollouts} rollouts"
    )
    table.add_column("what")
    table.add_column("found", justify="right", no_wrap=True)
    table.add_column("how to read it")
    for rows in _rows(found):
        for what, value, meaning in rows:
            table.add_row(what, value, meaning)
        table.add_section()
    return table


def _rows(found: TaskDiagnosis) -> list[list[tuple[str, str, str]]]:
    """Rows by section: what, its number, how to read it."""
    std = found.std_of_bound
    return [
        [
            (
                "action's effect after 1 decision",
                _number(found.effect_1),
                "1: the model sees all of it, 0: nothing",
            ),
            ("action's effect after 5 decisions", _number(found.effect_5), "only the first action differs"),
            (
                "size of the effect, 1 and 5 decisions",
                f"{_number(found.effect_size_1)}, {_number(found.effect_size_5)}",
                "predicted over real; 1 is right",
            ),
            (
                "action's effect on the value, 1 decision",
                _number(found.effect_value_1),
                "of predicted against real latents; what Q is made of",
            ),
        ],
        [
            ("Q's ranking of actions", _number(found.q_ranking), "Spearman, with Monte-Carlo returns"),
            ("its ceiling", _number(found.q_ceiling), "between two halves of the rollouts"),
            ("spread of returns over actions", _number(found.return_spread), "what there is to choose"),
        ],
        [
            (
                "value and return, all states",
                _number(found.value_correlation),
                f"correlation over {found.value_states} states of the agent's own episodes",
            ),
            ("value and return, upright states", _number(found.value_correlation_upright), ""),
            ("value's bias", _number(found.value_bias), "above 0: overestimates"),
            ("value", _number(found.value), "mean over training positions"),
            (
                "gap between batch and running statistics",
                _number(found.gap_statistics),
                "fitted against bootstrapped value; 0 with LayerNorm heads",
            ),
            ("gap between learner and target network", _number(found.gap_target), ""),
        ],
        [
            (
                "policy's std over its bound",
                f"{np.mean(std):.2f} ({min(std):.2f} to {max(std):.2f})",
                "mean over action dimensions, and their range",
            ),
            ("dimensions at their bound", f"{found.std_at_bound:.0%}", "above 90% of it"),
        ],
        [
            ("effective sample size of weights", _share(found.effective_samples), "of a batch's positions"),
            ("weights at their floor", _share(found.weights_at_floor), "near 100%: they correct nothing"),
            ("upright states in replay", _share(found.upright_in_replay), ""),
        ],
        _prediction_rows(found.predictions),
    ]


def _prediction_rows(found: Predictions | None) -> list[tuple[str, str, str]]:
    if found is None:
        return []
    support = f"{found.beyond_support:.1%}, {cell(found.beyond_scaled, '.1%')}"
    reward = np.array(found.reward_error) / np.maximum(found.reward_spread, 1e-9)
    value = np.array(found.value_error) / np.maximum(found.return_spread, 1e-9)
    return [
        (
            "reward's error, 1 to 5 imagined decisions",
            f"{reward[0]:.2f} to {reward[-1]:.2f}",
            "over the rewards' spread; 1: knows the task only",
        ),
        (
            "value's error, 0 to 5 imagined decisions",
            f"{value[0]:.2f} to {value[-1]:.2f}",
            "over the returns' spread; a rise is the dynamics' doing",
        ),
        ("search value and return", _number(found.search_correlation), "correlation, as for the value above"),
        ("search value's bias", _number(found.search_bias), "above 0: the search overestimates"),
        (
            "search's choice from the policy's mode",
            _number(found.choice_distance),
            "over its candidates' distance; 0: they agree, 1: like chance",
        ),
        ("nearest candidate to the mode chosen", _share(found.mode_chosen), ""),
        ("values at their floor", _share(found.at_floor), "model.value_floor"),
        ("returns beyond the support", support, "as they are, and with return scaling"),
    ]


def _number(value: float | None) -> str:
    return cell(value, ".2f")


def _share(value: float | None) -> str:
    return cell(value, ".0%")
