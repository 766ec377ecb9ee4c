"""A figure of equal panels with one legend below them."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

MOST_COLUMNS = 3


def new_panels(count: int, size: tuple[float, float], *, legend: float) -> tuple[Figure, list[Axes]]:
    """A figure and its panels, row by row.

    Args:
        count: of panels.
        size: width and height of a panel in inches.
        legend: height in inches that titles and the legend take.
    """
    columns = max(1, min(MOST_COLUMNS, count))
    rows = max(1, math.ceil(count / columns))
    figure = Figure(figsize=(size[0] * columns, size[1] * rows + legend), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def add_legend(figure: Figure, axes: Sequence[Axes], *, columns: int, frame: bool = True) -> None:
    """One legend below the panels, where it covers nothing; what several panels show is named once."""
    entries = {
        label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside lower center",
        ncols=columns,
        fontsize="small",
        frameon=frame,
    )


def save_both(figure: Figure, stem: Path) -> Path:
    """Writes a PNG and an SVG, whose path is returned; their folder is made."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(stem.with_name(f"{stem.name}.png"), dpi=150)
    svg = stem.with_name(f"{stem.name}.svg")
    figure.savefig(svg, metadata={"Date": None})
    return svg


def save(figure: Figure, path: Path) -> None:
    """Writes the figure in the format that the file's name says; its folder is made.

    Raises:
        OSError: the file cannot be written. (matplotlib itself raises other errors on a full disk.)
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix.removeprefix("."), dpi=120)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(drawn.getvalue())
