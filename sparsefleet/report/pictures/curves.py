"""Loss curves of several trials over one another with the accuracy in the legend, and density over the training (sources 000 section 5, 002 section 5)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparsefleet.report.pictures.style import COLOURS, LINES, grid_of
from sparsefleet.report.pictures.trial import TrialData

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_TRIALS = 12
_MOST_POINTS = 60


def curves(trials: Sequence[TrialData]) -> Figure | None:
    """Left the training loss (dashed: validation), right the density, over optimizer steps; at most 12 trials; None where none has a curve.

    A loss of more than 60 points is drawn as means over equally many points each.
    """
    shown = [trial for trial in trials if trial.record.get("curves", {}).get("train_loss")][:_MOST_TRIALS]
    if not shown:
        return None
    figure, ((left, right),) = grid_of(1, 2, 5.4, 3.9)
    for i, trial in enumerate(shown):
        colour, line = COLOURS[i % len(COLOURS)], LINES[i // len(COLOURS) % len(LINES)]
        found = trial.record["curves"]
        loss = found["train_loss"]
        left.plot(
            *averaged(loss["steps"], loss["values"]),
            color=colour,
            linestyle=line,
            linewidth=1.4,
            label="on training data" if len(shown) == 1 else _named(trial),
        )
        if len(shown) == 1 and found.get("validation_loss"):
            validation = found["validation_loss"]
            left.plot(
                validation["steps"], validation["values"], color=COLOURS[1], linestyle="--", linewidth=1.4, label="on validation data"
            )
        steps, values = density_line(trial.record)
        right.plot(steps, [100 * value for value in values], color=colour, linestyle=line, linewidth=1.4, drawstyle="steps-post")
    values = [v for trial in shown for v in averaged(**trial.record["curves"]["train_loss"])[1]]
    if min(values) > 0 and max(values) > 20 * min(values):
        left.set_yscale("log")
    for axes, what in ((left, "loss" if len(shown) == 1 else "training loss"), (right, "density of the prunable weights (%)")):
        axes.set_xlabel("optimizer step", fontsize=8)
        axes.set_ylabel(what, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    right.set_ylim(0, None)
    if len(shown) > 1:
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=7)
    else:
        left.legend(fontsize=7)
    title = _named(shown[0]) if len(shown) == 1 else f"{len(shown)} of {len(trials)} trials" if len(trials) > len(shown) else ""
    figure.suptitle("\n".join(part for part in ("Training", title) if part), fontsize=9)
    return figure


def averaged(steps: Sequence[int], values: Sequence[float]) -> tuple[list[int], list[float]]:
    """The curve as at most 60 points: means of equally many neighbours, each at its last step."""
    each = -(-len(steps) // _MOST_POINTS)
    parts = [values[i : i + each] for i in range(0, len(values), each)]
    return [steps[min(i + each, len(steps)) - 1] for i in range(0, len(steps), each)], [math.fsum(part) / len(part) for part in parts]


def density_line(record: Mapping[str, Any]) -> tuple[list[int], list[float]]:
    """Steps and densities from the first step to the last: the record's curve, or a flat line where the density never changed."""
    last = (record.get("accuracy") or {}).get("steps", 0)
    curve = record["curves"].get("density") or {"steps": [], "values": []}
    counts = record.get("counts") or {}
    end = curve["values"][-1] if curve["values"] else counts.get("density_realised", 1.0)
    layers, total = record["curves"].get("nnz"), counts.get("total_weights_prunable")
    begin = layers["values"][0] / total if layers and total else curve["values"][0] if curve["values"] else end
    return [0, *curve["steps"], last], [begin, *curve["values"], end]


def _named(trial: TrialData) -> str:
    accuracy = trial.record.get("accuracy") or {}
    if accuracy.get("test") is None:
        return f"{trial.label}: {str(trial.record.get('state', '')).lower()}"
    figure = f"accuracy {100 * accuracy['test']:.1f} %" if accuracy["metric"] == "top1" else f"test error {accuracy['test']:.4g}"
    return f"{trial.label}: {figure}"
