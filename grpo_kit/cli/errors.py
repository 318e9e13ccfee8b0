"""How a command ends that could not do its work: one sentence, and status 2 for usage, 1 for failure, 130 when interrupted."""

import functools
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape

from grpo_kit.display import terminal

USAGE = (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)


def one_sentence(function: Callable[..., None]) -> Callable[..., None]:
    """Turn errors that are ours into one sentence and an exit status."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except typer.Exit:  # a RuntimeError by descent
            raise
        except KeyboardInterrupt:
            terminal.err.print("Interrupted; finished stages stand, and the same command goes on from there.")
            raise typer.Exit(130) from None
        except (ValueError, RuntimeError, OSError) as error:
            if not _is_ours(error):
                raise  # a defect, ours or a library's: the trace is what helps
            terminal.err.print(f"[bold red]error:[/] {escape(str(error))}")
            raise typer.Exit(2 if isinstance(error, USAGE) else 1) from None

    return guarded


def _is_ours(error: BaseException) -> bool:
    """Whether the error was raised by the kit's own code, which words it for the user, or by the operating system."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(last).is_relative_to(Path(__file__).parents[1]) or type(error) in (OSError, PermissionError)
