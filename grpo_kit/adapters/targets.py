"""Target modules as people write them, made into the endings of module names that PEFT takes."""

from collections.abc import Collection, Sequence

from grpo_kit.config.checks import suggest_nearest
from grpo_kit.config.lora import ALL_LINEAR, compile_target, is_pattern
from grpo_kit.nemotron.base_models import name_endings, select_modules, shortest_targets


def resolve_targets(
    targets: Sequence[str], linears: Collection[str], experts: Collection[str] = (), others: Collection[str] = ()
) -> list[str]:
    """The endings of module names that `lora.target_modules` means in a model.

    Args:
        targets: endings of module names, which stay as they are; `all-linear`; regular expressions, which match a whole
            name as in PEFT, or where none does, an ending of a name.
        linears: names of the linear layers that `all-linear` means.
        experts: names of the routed experts' matrices, which expressions match too.
        others: names of further modules, which only an ending can mean.

    Returns:
        The endings, in the order of `targets`.

    Raises:
        ValueError: a target means no module of the model.

    Example:
        >>> modules = ["layers.0.q_proj", "layers.0.v_proj", "layers.1.q_proj", "layers.1.v_proj"]
        >>> resolve_targets(["all-linear"], modules), resolve_targets(["layers.1.*"], modules)
        (['q_proj', 'v_proj'], ['1.q_proj', '1.v_proj'])
    """
    modules, endings = [*linears, *experts, *others], []
    for target in targets:
        if target == ALL_LINEAR:
            names = list(linears)
        elif is_pattern(target):
            names = _match_pattern(target, [*linears, *experts])
        else:
            names = select_modules([target], modules)
        if not names:
            leaves = sorted({name.rsplit(".", 1)[-1] for name in linears})
            raise ValueError(
                f"lora.target_modules names {target!r}, which matches nothing in this model; it has "
                f"{', '.join(leaves)}. Name some of these, or {ALL_LINEAR}."
                f"{suggest_nearest(target, [*leaves, ALL_LINEAR])}"
            )
        endings += shortest_targets(names, modules) if target == ALL_LINEAR or is_pattern(target) else [target]
    return list(dict.fromkeys(endings))


def _match_pattern(target: str, modules: Collection[str]) -> list[str]:
    pattern = compile_target(target)
    by_name = [name for name in modules if pattern.fullmatch(name)]
    return by_name or [name for name in modules if any(map(pattern.fullmatch, name_endings(name)))]
