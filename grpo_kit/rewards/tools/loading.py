"""Load a reward function by its file: `FILE.py:function` names one of the kit's or your own copy of it.

The file is the user's own code, named by the user, so it is executed. A bare file name is looked for in the
working folder first and then among the kit's rewards, so a copy beside your notebook takes the kit's place.
"""

import contextlib
import functools
import hashlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from grpo_kit.config.arguments import require_type
from grpo_kit.rewards.tools.calling import Reward

FOLDER = Path(__file__).resolve().parents[1]
MODULE_PREFIX = "grpo_kit_reward_"  # of the modules that reward files are loaded as
OTHER_NAMES = re.compile(r"[^_]\w*_reward_(?:func|fn|function)|check_\w+|reward_(?:func|fn|function)")
LARGEST = 1 << 20  # bytes; Python takes gigabytes to compile a hundred megabytes
RULE = "a reward function or the path of its file"
REMEDY = 'Write "math_answer.py", or pass a function that you defined.'


def load_reward(spec: str | Path) -> Reward:
    """Load a reward function from a Python file. The file is executed.

    Args:
        spec: `FILE.py:function`, or `FILE.py` if exactly one function there has a name that ends in `_reward`; where
            none has, exactly one that takes `completions` and is called like `x_reward_func` or `check_x`. (One that
            takes a single `completion` is loaded too, and a call says what to change.) A file name
            is looked up in the working folder first, then among the kit's own rewards.

    Returns:
        The function, or whatever else can be called under that name. It takes `completions` and the columns of the
        data as lists, and returns one number for each completion, or None where the reference answer cannot be used.

    Raises:
        ValueError: `spec` has another form, the file has no such function or several, or executing it fails.
        FileNotFoundError: the file does not exist.
        TypeError: `spec` is not a text or a path.

    Example:
        >>> from grpo_kit import load_reward
        >>> math_reward = load_reward("math_answer.py:math_reward")
        >>> math_reward(completions=[r"</think>\\boxed{85}", r"</think>\\boxed{83}"], answer=["85", "85"])
        [1.0, 0.0]
    """
    require_type("spec", spec, (str, Path), "the path of a reward file", 'Write load_reward("math_answer.py").')
    spec = str(spec)
    name, colon, function = spec.rpartition(":")
    if not colon or spec.endswith(".py"):
        name, function = spec, ""
    if not name.endswith(".py") or (name != spec and not function.isidentifier()):
        raise ValueError(
            f"{spec!r} does not name a reward; write FILE.py:function, such as math_answer.py:math_reward."
        )
    path = find_reward(name)
    module = load_module(path, f"{MODULE_PREFIX}{path.stem}")
    own = [n for n, v in vars(module).items() if callable(v) and _is_from(module, v)]
    rewards = [n for n in own if n.endswith("_reward") and not n.startswith("_")]
    others = [n for n in own if OTHER_NAMES.fullmatch(n)]
    for parameter in ("completions", "completion"):
        rewards = rewards or [n for n in others if _has_parameter(getattr(module, n), parameter)]
    chosen = function or (rewards[0] if len(rewards) == 1 else "")
    if chosen and callable(getattr(module, chosen, None)):
        reward = getattr(module, chosen)
        if not hasattr(reward, "__name__"):  # a partial, or an object: it is recorded under the name in its file
            with contextlib.suppress(AttributeError):  # an object with slots
                reward.__name__ = chosen
        return reward
    missing = f"function {chosen!r}" if chosen else "single function that ends in _reward"
    names = ", ".join(rewards or [n for n in own if not n.startswith("_")]) or "none"
    raise ValueError(f"{path} has no {missing}; its functions are: {names}. Name one as {name}:function.")


def load_module(path: Path, name: str) -> ModuleType:
    """Execute a Python file of the user's as the module `name`, as it is now.

    Raises:
        ValueError: it is too large; or executing it fails, and the message says in which line.
    """
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} has more than {LARGEST:,} bytes, too many for a program. Name another file.")
    loader = _SourceLoader(name, str(path))
    module_spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses and pickling look a module up by its name
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        trace = traceback.extract_tb(error.__traceback__)
        lines = [f"line {frame.lineno}, " for frame in trace if frame.filename == module_spec.origin]
        reason = f"{lines[-1] if lines else ''}{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"{path} cannot be loaded ({reason}). Correct the file.") from error
    return module


class _SourceLoader(SourceFileLoader):
    """Compiles the file as it is now. Python's cache takes a text of equal length for the one of the same second."""

    def path_stats(self, path: str) -> Any:
        raise OSError("no cache")


def _is_from(module: Any, value: Any) -> bool:
    return isinstance(value, functools.partial) or getattr(value, "__module__", "") == module.__name__


def _has_parameter(function: Callable[..., object], name: str) -> bool:
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):  # it has no signature
        return False


def resolve_reward(name: str, reward: Reward | str | Path) -> Reward:
    """A reward function, loaded from its file where the file's path is given.

    Args:
        name: the argument's name, for the message.
        reward: a function, or what `load_reward` takes.

    Raises:
        TypeError: it is neither; other errors are those of `load_reward`.
    """
    if callable(reward):
        return reward
    require_type(name, reward, (str, Path), RULE, REMEDY)
    return load_reward(reward)


def resolve_rewards(name: str, rewards: Reward | str | Path | Iterable[Reward | str | Path]) -> list[Reward]:
    """The reward functions of a list as `resolve_reward` takes them; a single one counts as a list of one.

    Raises:
        TypeError: an item is not a reward.
    """
    is_list = isinstance(rewards, Iterable) and not callable(rewards) and not isinstance(rewards, str)
    return [resolve_reward(name, reward) for reward in (rewards if is_list else [rewards])]


def fingerprint(reward: Callable[..., object]) -> str | None:
    """sha256 of the file a reward comes from, or of its own source when it was defined in a notebook cell.

    None when Python cannot find the source. A run notes it, so that an edited reward does not pass for the old one.
    The arguments that a `functools.partial` holds count too.
    """
    function, arguments = _function_of(reward)
    try:
        path = Path(inspect.getsourcefile(function) or "")
        source = path.read_bytes() if path.is_file() else inspect.getsource(function).encode()
    except (OSError, TypeError):
        return None
    return hashlib.sha256(source + arguments.encode()).hexdigest()


def _function_of(reward: Callable[..., object]) -> tuple[Any, str]:
    """(the function that runs when a reward is called, the arguments of the partials around it as text)."""
    arguments = ""
    while isinstance(reward, functools.partial):
        arguments += f"{reward.args} {sorted(reward.keywords.items())}"
        reward = reward.func
    reward = inspect.unwrap(reward)
    if not inspect.isroutine(reward) and not isinstance(reward, type):
        reward = type(reward).__call__
    return reward, re.sub(r" at 0x[0-9a-f]+", "", arguments)  # an address differs from session to session


def answer_reader(reward: Callable[..., object]) -> Callable[..., str | None] | None:
    """The function `final_answer` that a reward's file (or notebook) defines beside it; None where there is none.

    `final_answer(completion, **columns)` returns the answer that a completion commits to, or None without one. Answers
    that the reward takes for equal must be spelled alike. `columns` are the row's, with `prompt_opened_think`. Majority
    voting needs it, because a reward tells right from wrong but not one wrong answer from another.

    A reward's attribute `final_answer` comes first: where several reward files are pasted into one notebook, the global
    name means the last one's. A global that is the attribute of another reward there does not count.
    """
    function, _ = _function_of(reward)
    function = getattr(function, "__func__", function)
    names = getattr(function, "__globals__", {})
    reader = getattr(function, "final_answer", None)
    if reader is None:
        reader = names.get("final_answer")
        if any(getattr(value, "final_answer", None) is reader for value in names.values() if inspect.isfunction(value)):
            return None
    return reader if callable(reader) else None


def find_reward(name: str) -> Path:
    """The path of a reward file: as given if it exists, else among the kit's own."""
    for path in (Path(name), FOLDER / name):
        if path.is_file():
            return path
    own = ", ".join(sorted(p.name for p in FOLDER.glob("[a-z]*.py")))
    raise FileNotFoundError(
        f"{name} is neither a file here nor one of the kit's rewards ({own}). Give an existing path."
    )
