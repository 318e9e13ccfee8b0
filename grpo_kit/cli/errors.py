"""How a failing command ends: one sentence, and status 2 for usage, 1 for failure, 130 when interrupted."""

import functools
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape

from grpo_kit.display import terminal

USAGE = (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
PACKAGE = Path(__file__).parents[1]


def report_errors(function: Callable[..., None]) -> Callable[..., None]:
    """Turn the kit's own errors into one sentence and an exit status; a defect keeps its traceback."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except typer.Exit:  # a RuntimeError by descent
            raise
        except KeyboardInterrupt:
            terminal.err.print("Interrupted. Finished stages are kept; the same command continues from there.")
            raise typer.Exit(130) from None
        except (ValueError, RuntimeError, OSError) as error:
            if not _is_for_the_user(error):
                raise  # a defect, ours or a library's: its traceback is what helps
            terminal.err.print(f"[bold red]error:[/] {escape(str(error))}")
            raise typer.Exit(2 if isinstance(error, USAGE) else 1) from None

    return guarded


def _is_for_the_user(error: BaseException) -> bool:
    """Whether the kit's own code raised the error, worded for the user, or the operating system did."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(last).is_relative_to(PACKAGE) or type(error) in (OSError, PermissionError)
