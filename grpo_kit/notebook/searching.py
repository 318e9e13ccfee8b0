"""The search over settings in notebook 5."""

from collections.abc import Mapping
from typing import Any

from grpo_kit.config.form import split_settings
from grpo_kit.notebook.fields import require_number, require_text
from grpo_kit.runs.run import Run


def show_search_space(search: str) -> list[str]:
    """Print each setting to search and its values, and return the settings; `search` is `key=log(a,b) key=[a,b,c]`."""
    from grpo_kit.tuning import space

    require_text("search", search, "lora.r=[4,16]")
    settings = split_settings(search)
    axes, _ = space.parse_search(settings)
    for key, axis in axes.items():
        print(f"{key:<24}", " or ".join(axis.choices) or f"{axis.low:g} to {axis.high:g}, {axis.kind}")
    return settings


def open_search_board(run: Run, trials: int, steps: int) -> Any:
    """Show a board for a search of `trials`, each of `steps`, with a button; returns a `tuning.board.SearchBoard`."""
    from IPython.display import display

    from grpo_kit.tuning.board import SearchBoard

    require_number("trials", trials, 8)
    require_number("steps", steps, 12)
    board = SearchBoard(run, trials)
    display(board)
    return board


def show_optuna(run: Run) -> None:
    """Show Optuna's own pictures of the search: the accuracy of trial after trial, and by each setting."""
    from IPython.display import Image, display

    from grpo_kit.tuning import report, study

    for picture in report.draw_optuna(study.load_study(run)):
        display(Image(picture))


def show_effects(result: Mapping[str, Any], run: Run) -> None:
    """Show the search as a chart, and print for each setting whether it changed the accuracy."""
    from IPython.display import Image, display

    from grpo_kit.tuning import report

    display(Image(run.path / "tune" / "tune.png"))
    print("\n".join(report.describe_effects(result)))
