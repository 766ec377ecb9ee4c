"""What the report says of an ablation: a figure, a table and a sentence, computed from its runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ezm_pl.sweeps.findings import listed
from ezm_pl.sweeps.report_tables import NONE, spread
from ezm_pl.tracking.console import count
from ezm_pl.tracking.results import html
from ezm_pl.tracking.sweep.ablation_figure import ablation_figure
from ezm_pl.tracking.sweep.ablations import Ablation, compare_variants
from ezm_pl.tracking.sweep.runs import Sweep
from ezm_pl.tracking.sweep.scores import PointScore


def ablation_parts(sweep: Sweep, scored: Sequence[PointScore], folder: Path) -> list[str]:
    """The pieces of the page: a sentence, the figure `ablations` and the table."""
    reference, variants = compare_variants(sweep, scored)
    if reference is None or reference.own is None:
        return [
            html.paragraph(f"{sweep.reference} has no complete trial yet: there is nothing to compare with.")
        ]
    parts = [html.heading("What each part contributes"), html.paragraph(summary(reference, variants))]
    if variants:
        svg = ablation_figure(reference.point.label, reference.own, variants, folder / "ablations")
        words = "Scores of the variants with 95% intervals, and how probably the reference scores higher"
        parts += [html.figures([(svg, words)])]
    note = (
        "Interquartile mean of normalised scores over tasks and seeds at the last evaluation, and the "
        "probability that a run of the reference scores above one of the variant on the same task; 95% "
        "percentile intervals from a bootstrap that resamples seeds within each task (Agarwal et al. 2021). "
        "A variant with fewer tasks is compared on its own."
    )
    return [*parts, html.paragraph(note, "quiet"), _table(sweep, scored, reference, variants)]


def summary(reference: PointScore, variants: Sequence[Ablation]) -> str:
    """A sentence for each verdict, and how many comparisons there were."""
    label = reference.point.label
    if not variants:
        return f"No variant of {label} has a complete trial yet."
    assert reference.own is not None
    said = [
        f"{label} scores {reference.own.interval.text(3)} ({count(len(reference.runs), 'seed')}, "
        f"{count(len(reference.point.tasks), 'task')}); {count(len(variants), 'variant')} of it were trained."
    ]
    for verdict, words in (
        ("worse", "Every seed is below all of its seeds"),
        ("better", "Every seed is above all of its seeds"),
        ("suggestive", "The interval of the difference leaves out 0, but the seeds do not settle it"),
    ):
        found = [
            f"{each.label} ({each.difference.value:+.3f})" for each in variants if each.verdict == verdict
        ]
        if found:
            said.append(f"{words}: {listed(found)}.")
    open_ = [each.label for each in variants if each.verdict == "no difference shown"]
    if open_:
        said.append(f"No difference is shown for {listed(open_)}.")
    single = [each.label for each in variants if each.verdict == "one seed"]
    if single:
        said.append(f"One seed, no interval and no claim: {listed(single)}.")
    if len(variants) > 1:
        said.append(
            f"With {len(variants)} comparisons at 95%, {0.05 * len(variants):.1f} differ by chance alone on "
            "average, and few seeds make the intervals too narrow."
        )
    return " ".join(said)


def _table(
    sweep: Sweep, scored: Sequence[PointScore], reference: PointScore, variants: Sequence[Ablation]
) -> str:
    tasks = reference.point.tasks
    runs = {point.point.label: point.runs for point in scored}

    def returns(label: str) -> list[str]:
        return [spread([run.final_return(task, sweep.protocol) for run in runs[label]]) for task in tasks]

    assert reference.own is not None
    name, score = reference.point.label, reference.own.interval.text(3)
    rows = [(name, str(len(reference.runs)), score, NONE, NONE, *returns(name))]
    for each in variants:
        numbers = [x.text(3) for x in (each.score, each.difference, each.improvement)]
        rows.append((each.label, str(each.seeds), *numbers, *returns(each.label)))
    head = (
        "variant",
        "seeds",
        "IQM [95%]",
        f"difference from\n{reference.point.label} [95%]",
        f"P({reference.point.label}\nscores higher) [95%]",
        *(f"{task}:\nreturn" for task in tasks),
    )
    return html.table(
        head, rows, f"Returns: mean ± std over seeds of the last evaluation, {sweep.protocol} protocol."
    )
