"""Shows what a search found: a chart of its trials, Optuna's own, and whether each setting changed the accuracy.

Optuna's own `plot_slice` leaves out the trials that were stopped early. Its importances are not shown:
`optuna.importance` gives shares that add up to 1 also where no setting matters, for 12 trials of random accuracy up to
0.93 for one of three settings.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from grpo_kit.display.panels import GREEN, GREY, ORANGE
from grpo_kit.tuning.space import Axis

ORDERS = 999  # random orders that a correlation is compared with
SIGNIFICANT = 0.05


def draw_trials(result: Mapping[str, Any], axes: Mapping[str, Axis]) -> Any:
    """A `matplotlib.figure.Figure` of the trials: accuracy by step, a line each, and by the value of each setting.

    Args:
        result: what `tune` returns.
        axes: the search space; choices are drawn in their order.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, PercentFormatter

    figure = Figure(figsize=(3.2 * (1 + len(axes)), 3.4), layout="constrained")
    curves, *panels = figure.subplots(1, 1 + len(axes), sharey=True)
    for row in reversed(result["trials"]):  # the best last, over the others
        is_best, marker = row is result["best"], "o" if row["state"] == "complete" else "x"
        color = GREEN if is_best else ORANGE if row["own"] else GREY
        label = "best" if is_best else "the run's own values" if row["own"] else None
        steps, accuracies = zip(*row["curve"]) if row["curve"] else ((), ())
        curves.plot(steps, accuracies, color=color, marker=marker, linewidth=2.4 if is_best else 1.5, label=label)
        values = _values_by_key(row)
        for panel, (key, axis) in zip(panels, axes.items(), strict=True):
            if row["accuracy"] is not None:
                place = axis.choices.index(values[key]) if axis.kind == "choice" else float(values[key])
                panel.plot([place], [row["accuracy"]], color=color, marker=marker)
    curves.plot([], [], "x", color=GREY, label="stopped early")
    curves.set(xlabel="GRPO step", ylabel="accuracy on the validation split", ylim=(-0.02, 1.05))
    curves.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    curves.legend(loc="lower right", frameon=False, fontsize=8)
    for panel, (key, axis) in zip(panels, axes.items(), strict=True):
        panel.set(xlabel=key, xscale="log" if axis.kind == "log" else "linear")
        if axis.kind == "log":  # matplotlib writes powers as formulas, which the figures of the kit do not read
            panel.xaxis.set_major_formatter("{x:g}")
            panel.xaxis.set_minor_formatter("{x:g}" if axis.high < 10 * axis.low else NullFormatter())
        if axis.kind == "choice":
            panel.set_xticks(range(len(axis.choices)), axis.choices)
            panel.set_xlim(-0.5, len(axis.choices) - 0.5)
    for panel in (curves, *panels):
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def draw_optuna(study: Any) -> list[bytes]:
    """Optuna's own pictures of a search as PNG: the accuracy of trial after trial, and by the value of each setting.

    Only complete trials are drawn. Without one there is no picture.

    Args:
        study: an `optuna.Study`.
    """
    import optuna
    from matplotlib import pyplot, rc_context

    if not study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE]):
        return []
    pictures = []
    plots = optuna.visualization.matplotlib
    with rc_context(), warnings.catch_warnings():  # Optuna sets its own style for the whole process
        warnings.simplefilter("ignore")  # its pictures are experimental, and one trial gives an axis no extent
        for draw in (plots.plot_optimization_history, plots.plot_slice):
            axes = np.ravel(draw(study, target_name="accuracy"))
            figure = axes[0].figure
            figure.set_size_inches(max(6.4, 3.2 * len(axes)), 3.4)
            file = io.BytesIO()
            figure.savefig(file, format="png", dpi=100, bbox_inches="tight")
            pyplot.close(figure)
            pictures.append(file.getvalue())
    return pictures


def describe_effects(result: Mapping[str, Any], seed: int = 0) -> list[str]:
    """For each setting a sentence: whether the accuracy rises, falls or differs with it, as far as the trials show.

    All trials that were measured count, and are compared at the last step that every one of them reached. The measure
    is the rank correlation, or Kruskal and Wallis's H for choices that are not numbers; `p` is the share of random
    orders of the accuracies that go with the setting at least as well.

    Args:
        result: what `tune` returns.
        seed: of the random orders.
    """
    rows = [row for row in result["trials"] if row["curve"]]
    if not rows:
        return []
    curves = [dict(row["curve"]) for row in rows]
    step = max(set.intersection(*map(set, curves)), default=None)
    if step is None:
        return []
    accuracies, trials = [curve[step] for curve in curves], [_values_by_key(row) for row in rows]
    return [
        f"{key}: {_describe_effect([values[key] for values in trials], accuracies, step, seed)}" for key in trials[0]
    ]


def _describe_effect(values: Sequence[str], accuracies: Sequence[float], step: int, seed: int) -> str:
    from scipy import stats

    if len(values) == 1:
        return "a single trial shows nothing."
    if len(set(values)) < 2 or len(set(accuracies)) < 2:
        return f"the {len(values)} trials do not differ, so they show nothing."
    # Both measures depend on ranks alone, so random orders of the ranks are enough.
    ranks, numbers = stats.zscore(stats.rankdata(accuracies)), _as_numbers(values)
    if numbers:
        places = stats.zscore(stats.rankdata(numbers))
        correlation = float(np.mean(places * ranks))
        direction, measure = "rises" if correlation > 0 else "falls", f"rank correlation {correlation:+.2f}"

        def strength(order: np.ndarray, axis: int = -1) -> np.ndarray:
            return np.abs(np.mean(places * order, axis))
    else:
        kinds = [np.array([value == kind for value in values]) for kind in sorted(set(values))]
        h = stats.kruskal(*[np.array(accuracies)[kind] for kind in kinds]).statistic
        direction, measure = "differs", f"H {h:.2f}"

        def strength(order: np.ndarray, axis: int = -1) -> np.ndarray:
            return sum(order[..., kind].sum(axis) ** 2 / kind.sum() for kind in kinds)

    p = stats.permutation_test(
        (ranks,), strength, permutation_type="pairings", n_resamples=ORDERS, alternative="greater", rng=seed
    ).pvalue
    effect = f"accuracy {direction} with it" if p < SIGNIFICANT else "no effect is shown"
    return f"{effect} ({measure} over {len(values)} trials at step {step}, p = {p:.3f})."


def _values_by_key(row: Mapping[str, Any]) -> dict[str, str]:
    return dict(override.split("=", 1) for override in row["overrides"])


def _as_numbers(texts: Sequence[str]) -> list[float] | None:
    try:
        return [float(text) for text in texts]
    except ValueError:
        return None
