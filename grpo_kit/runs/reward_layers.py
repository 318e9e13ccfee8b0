"""What rewards say of this machine before a stage calls them: which layers of protection hold.

A reward that runs what a policy wrote has an attribute `describe`: a function without arguments that returns
{layer: text}, such as {"network": "holds", "files": "this kernel has no Landlock"}. It raises RuntimeError where the
reward refuses to run here. A stage prints the layers in one line and records them in `run.json`.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from grpo_kit.rewards.tools.calling import Reward, reward_name
from grpo_kit.rewards.tools.routing import Verifier
from grpo_kit.runs import processes


def print_layers(rewards: Iterable[Reward]) -> dict[str, dict[str, dict[str, str]]]:
    """Print what each reward says of this machine, in one line, and return what `run.json` records of it.

    Args:
        rewards: as a stage calls them; of a `Verifier` those that it calls.

    Returns:
        {"reward_layers": {name of a reward: {layer: text}}}; {} where no reward has a function `describe`.

    Raises:
        ValueError: a reward refuses to run on this machine, for its own reason, or `describe` returns another form.

    Example:
        >>> def pays(completions, **columns): return [1.0]
        >>> pays.describe = lambda: {"network": "holds", "files": "no Landlock"}
        >>> print_layers([pays, len])
        pays, layers on this machine: network (holds), files (no Landlock)
        {'reward_layers': {'pays': {'network': 'holds', 'files': 'no Landlock'}}}
    """
    layers = {name: _call_describe(name, describe) for name, describe in _find_describes(rewards)}
    for name, texts in layers.items():
        if processes.is_first():
            words = ", ".join(f"{layer} ({text})" for layer, text in texts.items())
            print(f"{name}, layers on this machine: {words}", flush=True)
    return {"reward_layers": layers} if layers else {}


def _find_describes(rewards: Iterable[Reward]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(name, function `describe`) of each reward that has one, also inside a partial or another wrapper."""
    for reward in rewards:
        if isinstance(reward, Verifier):
            yield from _find_describes(reward.verifiers.values())
            continue
        inner: Any = reward
        while inner is not None and not callable(getattr(inner, "describe", None)):
            inner = inner.func if isinstance(inner, functools.partial) else getattr(inner, "__wrapped__", None)
        if inner is not None:
            yield reward_name(reward), inner.describe


def _call_describe(name: str, describe: Callable[[], Any]) -> dict[str, str]:
    try:
        layers = describe()
    except RuntimeError as refusal:
        raise ValueError(f"The reward {name} refuses to run on this machine. {refusal}") from None
    if not isinstance(layers, Mapping) or not all(isinstance(text, str) for part in layers.items() for text in part):
        raise ValueError(
            f"{name}.describe returned {repr(layers)[:100]}; it must return a text for each layer's name. Return "
            'something like {"network": "holds"}, or remove the attribute describe.'
        )
    return dict(layers)
