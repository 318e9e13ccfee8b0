"""How a failing command ends: one sentence, and status 2 for usage, 1 for failure, 130 or 143 when interrupted."""

import errno
import functools
import re
import shlex
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape

from grpo_kit.display import console
from grpo_kit.environments.worlds.loading import WORLD_PREFIX
from grpo_kit.rewards.tools.loading import MODULE_PREFIX
from grpo_kit.runs.interrupts import Terminated
from grpo_kit.runs.texts import drop_functions

USAGE = (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
PACKAGE = Path(__file__).parents[1]
# What to do about an error of the operating system that names a path.
REMEDIES = {
    FileNotFoundError: "Check the path.",
    FileExistsError: "Name another path.",
    NotADirectoryError: "A file stands where a folder is needed; name another path.",
    IsADirectoryError: "A file is needed; name one.",
    PermissionError: "Change its permissions, or name another path.",
}
KEPT = "Finished stages, checkpoints and answered batches are kept; the same command continues from there."
FULL = f"Free space there, or set run.root to a folder on another disk. {KEPT}"
READ_ONLY = "Set run.root (or GRPO_KIT_ROOT) to a folder that can be written; copy the run there to continue it."
GONE = f"The disk does not answer: mount it again (in Colab, run the cell that opens the run). {KEPT}"
NO_LOCKS = (
    "This disk has no file locks. Set GRPO_KIT_ROOT (for runs) or HF_HOME (for models) to the machine's own disk."
)
# What to do about an error of the disk, whatever the path.
DISK_REMEDIES = {
    errno.ENOSPC: FULL, errno.EDQUOT: FULL, errno.EFBIG: FULL, errno.EROFS: READ_ONLY,
    errno.EIO: GONE, errno.ESTALE: GONE, errno.ENOTCONN: GONE, errno.ETIMEDOUT: GONE, errno.EHOSTDOWN: GONE,
    errno.ENODEV: GONE, errno.ENXIO: GONE, errno.ENOLCK: NO_LOCKS, errno.ENOTSUP: NO_LOCKS, errno.ENOSYS: NO_LOCKS,
}  # fmt: skip
# The commands that messages recommend and that take --config, --run and settings.
STAGE_COMMANDS = "data|sft|screen|train|prefer|calibrate|evaluate|score|package"


def report_errors(function: Callable[..., None]) -> Callable[..., None]:
    """Turn errors that the user can correct into one sentence and an exit status; a defect keeps its traceback."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        if function.__name__ != "train":  # the only command that several processes run together
            console.print_as_first()
        try:
            function(*args, **kwargs)
        except (typer.Exit, BrokenPipeError):  # Typer ends the command; a closed pipe is the end of `| head`
            raise
        except (KeyboardInterrupt, Terminated) as stop:
            console.err.print("Interrupted. Finished stages are kept; the same command continues from there.")
            raise typer.Exit(130 if isinstance(stop, KeyboardInterrupt) else stop.code) from None
        except Exception as error:
            in_file = _describe_error_in_file(error)
            sentence = in_file or _describe_error(error)
            if not sentence:
                raise  # a defect, ours or a library's: its traceback is what helps
            # Each process says so that did not meet the others, or whose own GPU is full.
            if isinstance(error, ConnectionError) or "out of memory" in sentence:
                console.print_as_first()
            console.err.print(f"[bold red]error:[/] {escape(_complete_message(sentence, kwargs))}")
            raise typer.Exit(2 if isinstance(error, USAGE) and not in_file else 1) from None

    return guarded


def _describe_error_in_file(error: Exception) -> str | None:
    """What was raised in a reward or a world of the user, with the last line of its file that was executed."""
    remedies = {MODULE_PREFIX: "Correct the reward.", WORLD_PREFIX: "Correct the world."}
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        path, module = frame.f_code.co_filename, str(frame.f_globals.get("__name__"))
        remedy = next((remedies[prefix] for prefix in remedies if module.startswith(prefix)), None)
        if remedy and not Path(path).is_relative_to(PACKAGE):
            return f"{path}, line {line} raised {type(error).__name__}: {_join_lines(error)}. {remedy}"
    return None


def _describe_error(error: Exception) -> str | None:
    """A sentence where the kit's own code raised the error, worded for the user, or the operating system did."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    if isinstance(error, OSError) and error.errno is not None and (error.filename or error.errno in DISK_REMEDIES):
        remedy = next((REMEDIES[kind] for kind in type(error).__mro__ if kind in REMEDIES), "Name another path.")
        remedy = DISK_REMEDIES.get(error.errno, remedy)
        return f"{error.filename or 'A file'} cannot be used ({error.strerror}). {remedy}"
    if isinstance(error, OSError):
        return str(error) or type(error).__name__
    if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
        return f"{error.object.strip()[:200]!r} is not UTF-8, as the names of files have to be. Rename the file."
    if isinstance(error, ValueError | RuntimeError) and Path(last).is_relative_to(PACKAGE):
        return str(error)
    return None


def _join_lines(error: Exception) -> str:
    return " ".join(str(error).split())


def _complete_message(sentence: str, arguments: Mapping[str, Any]) -> str:
    """Make each command in the sentence one that can be pasted: with the run, the presets and the settings given here.

    >>> _complete_message("Run `grpo-kit data` first.", {"name": "mine", "sources": ["t4"]})
    'Run `grpo-kit data -c t4 --run mine` first.'
    """
    sentence = drop_functions(sentence)
    words = [word for source in arguments.get("sources") or () for word in ("-c", source)]
    if arguments.get("name"):
        words += ["--run", arguments["name"]]
    elif "name" in arguments:
        sentence = re.sub(r"^(Run '[^']+') has", r"\1 (no --run was given) has", sentence)
        sentence = re.sub(r"( Runs in .*)\.$", r"\1; name one with --run.", sentence)
    subject = sentence.split(" ", 1)[0]
    for override in arguments.get("overrides") or ():
        key, _, value = override.partition("=")
        if subject != value and not f"{key}.".startswith(f"{subject}."):  # a setting at fault is not repeated
            words.append(override)
    given = "".join(f" {shlex.quote(word)}" for word in words)
    # A command that names a run of its own is about that run, whose presets and settings were not given here.
    incomplete = rf"(`grpo-kit (?:{STAGE_COMMANDS})\b(?![^`]* --run )[^`]*)`"
    sentence = re.sub(incomplete, lambda match: f"{match[1]}{given}`", sentence)
    return sentence.replace("`grpo-kit ", f"`{console.program_name()} ")
