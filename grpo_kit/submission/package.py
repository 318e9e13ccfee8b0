"""Packing an adapter, a run's own or folders from elsewhere, as `submission.zip`.

The zip holds only the two files that the challenge's scorer loads. No pair is above the scorer's rank; if one routed
expert of a layer has a pair, all its experts have one. `zip_writer` writes the pairs.
"""

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from grpo_kit.adapters import low_rank, scorer
from grpo_kit.adapters.checkpoints.opening import open_adapter
from grpo_kit.adapters.layouts import STACKED, Pair, join_pairs, read_pairs
from grpo_kit.config import RunConfig, to_yaml
from grpo_kit.config.arguments import OneOrMore, as_path, as_texts
from grpo_kit.config.protocols import MAX_LORA_RANK
from grpo_kit.nemotron import base_models
from grpo_kit.nemotron.base_models import Modules
from grpo_kit.runs.run import Run
from grpo_kit.runs.session import require_config_and_run
from grpo_kit.submission.zip_writer import DTYPES, RANKS, plan_zip, write_zip

MOST_LOSSES = 64  # modules that are listed with what they lost, at most

Progress = Callable[[int, int], None]


def package_adapter(
    config: RunConfig,
    run: Run,
    out: str | Path | None = None,
    adapters: OneOrMore = (),
    base: str | None = None,
    dtype: str | None = None,
    ranks: str = "pad",
    stacked: str = "auto",
    only_used: bool = False,
    say: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write an adapter as a zip with exactly the two files that the scorer reads.

    The same adapter gives the same bytes. A zip of the run that is up to date is not written again, unless
    `config.run.force`.

    Args:
        config: names the policy.
        run: its adapter is packed, unless `adapters` are given.
        out: the zip; None for the run's `submission/submission.zip`.
        adapters: a folder from elsewhere (an adapter, a step of verl or NeMo-RL, or a merged model), or a list of
            folders, which are joined into one adapter whose update is the sum of theirs.
        base: the name of the model the adapter is for; None for the policy's, or the one that a foreign adapter names.
        dtype: `float32`, `float16` or `bfloat16`; None keeps the tensors' own.
        ranks: `pad` pads several ranks to one; `pattern` declares them in rank_pattern.
        stacked: how stacks of experts are laid out (see `layouts.read_pairs`).
        only_used: leave out the pairs that the scorer drops (`adapters/scorer.py`).
        say: called with a sentence for each thing that was converted, and what that lost.
        progress: called with (written modules, all modules).

    Returns:
        the path of the zip.

    Raises:
        FileNotFoundError: the run is not trained, or a folder is missing.
        ValueError: the scorer cannot load the adapter in any form, or an option is unknown.
        TypeError: an argument has another type.

    Example:
        >>> from grpo_kit import open_run, package
        >>> config, run = open_run(name="first")
        >>> package(config, run)  # doctest: +SKIP
        PosixPath('submission/submission.zip')
    """
    from grpo_kit.policy.model_source import base_model_name

    require_config_and_run(config, run)
    started, out = time.monotonic(), as_path("out", out or run.submission)
    folders = [Path(folder) for folder in as_texts("adapters", adapters, '["FOLDER"]')]
    settings = {"dtype": dtype, "ranks": ranks, "stacked": stacked} | ({"only_used": True} if only_used else {})
    if folders:
        notes = pack_folders(folders, base, out, **settings, progress=progress)
    else:
        adapter = run.result.adapter
        written_before = out.absolute().as_posix() in run.stages().get("package", {}).get("wrote", {})
        if written_before and run.is_done("package", settings, [adapter], config.run.force, derived=True):
            return out
        base = base or base_model_name(config.policy)
        with run.lock("package"):
            notes = pack_folders([adapter], base, out, **settings, progress=progress)
            run.record_stage("package", settings, [adapter], [out], time.monotonic() - started, to_yaml(config))
    for note in notes if say else ():
        say(note)
    return out


def pack_folders(
    folders: Sequence[Path],
    base: str | None,
    out: Path,
    dtype: str | None = None,
    ranks: str = "pad",
    stacked: str = "auto",
    only_used: bool = False,
    progress: Progress | None = None,
) -> list[str]:
    """Write the adapters of `folders` as one zip; the arguments are those of `package_adapter`.

    Returns:
        Sentences that say what was converted, and what that lost.

    Raises:
        FileNotFoundError: a folder or file is missing.
        ValueError: the base or an option is unknown, or a folder holds something else than a LoRA for that base.
    """
    for name, value, choices in (
        ("dtype", dtype, (*DTYPES, None)),
        ("ranks", ranks, RANKS),
        ("stacked", stacked, STACKED),
    ):
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; it is one of {', '.join(filter(None, choices))}. Name one of them.")
    sources = [open_adapter(folder, base) for folder in folders]
    bases = [source.config.fields.get("base_model_name_or_path") for source in sources]
    known_base = base_models.resolve_base(base or bases[0])
    if base is None and (known_base is None or any(base_models.resolve_base(other) != known_base for other in bases)):
        raise ValueError(
            f"{' and '.join(map(str, folders))} were trained on {' and '.join(str(name)[:80] for name in bases)}, "
            f"which is not one known base. Name the base with policy.model=..., such as {base_models.PUBLISHED}."
        )
    try:
        modules = base_models.lora_modules(known_base) if known_base else None
    except ValueError:  # a policy of another architecture: its adapter is packed as it is
        modules = None
    notes, adapters, losses = [], [], {}
    for source in sources:
        pairs, remarks = read_pairs(source, modules, stacked)
        adapters.append(pairs)
        notes += [f"{source.folder}: {remark}" for remark in [*source.remarks, *remarks]]
    pairs = join_adapters(adapters)
    if only_used:
        pairs = {name: pair for name, pair in pairs.items() if not scorer.is_dropped(name)}
        if not pairs:
            raise ValueError(
                f"{' and '.join(map(str, folders))} has LoRA pairs on shared experts only, and the scorer "
                f"({scorer.ENGINE}) drops these, so --only-used leaves nothing. Train {', '.join(scorer.USED)}."
            )
    if modules and (added := missing_experts(pairs, modules)):
        notes.append(
            f"{len(added)} pairs of zeros were added, because the scorer fails if a layer has only some of its experts"
        )
        pairs |= added
    plan = plan_zip(reduce_ranks(pairs, losses), known_base or str(base), modules, dtype, ranks)
    if rounded := write_zip(plan, out, progress):
        kind = str(plan.dtype).removeprefix("torch.")
        notes.append(f"rounding to {kind} changes the adapter's update by {rounded:.2%} of its norm (Frobenius)")
    if modules:
        shapes = {pair.name: plan.shapes_of(pair) for pair in plan.pairs}
        notes.append(scorer.describe_use(*scorer.count_used(shapes)))
    if losses:
        worst = sorted(losses, key=lambda name: (-losses[name], name))
        notes.append(
            f"{len(losses)} modules were cut to rank {MAX_LORA_RANK}; relative error of their update (Frobenius): "
            f"largest {losses[worst[0]]:.2e}, median {statistics.median(losses.values()):.2e}"
        )
        notes += [f"{losses[name]:.2e} {name}" for name in worst[:MOST_LOSSES]]
    return notes


def join_adapters(adapters: Sequence[Mapping[str, Pair]]) -> dict[str, Pair]:
    """One adapter whose update is the sum of all: each module's pairs are joined, their ranks added up."""
    joined = {}
    for name in {name: None for adapter in adapters for name in adapter}:
        pairs = [adapter[name] for adapter in adapters if name in adapter]
        joined[name] = pairs[0] if len(pairs) == 1 else join_pairs(name, pairs, pairs[0].shape[0])
    return joined


def missing_experts(pairs: Mapping[str, Pair], modules: Modules) -> dict[str, Pair]:
    """Pairs of zeros for the routed matrices without a pair, in layers in which other routed matrices have one."""
    routed = {name.partition(".experts.")[0]: pair for name, pair in pairs.items() if ".experts." in name}
    missing = {}
    for name, (out, inside) in modules.items():
        like = routed.get(name.partition(".experts.")[0]) if ".experts." in name and name not in pairs else None
        if like is not None:
            zeros = functools.partial(_zero_halves, like.rank, out, inside, like.dtype)
            missing[name] = like._replace(name=name, shape=(out, inside), load=zeros)
    return missing


def _zero_halves(rank: int, out: int, inside: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(rank, inside, dtype=dtype), torch.zeros(out, rank, dtype=dtype)


def reduce_ranks(pairs: Mapping[str, Pair], losses: dict[str, float]) -> dict[str, Pair]:
    """The pairs, those above the scorer's rank reduced to it when they are loaded.

    Args:
        pairs: by module name.
        losses: filled, as pairs are loaded, with {module: relative error of its update in the Frobenius norm}.
    """

    def reduced(pair: Pair) -> Pair:
        def load() -> tuple[torch.Tensor, torch.Tensor]:
            a, b, losses[pair.name] = low_rank.reduce_rank(*pair.load(), MAX_LORA_RANK)
            return a, b

        return pair._replace(rank=min(MAX_LORA_RANK, *pair.shape), load=load)

    return {name: reduced(pair) if pair.rank > MAX_LORA_RANK else pair for name, pair in pairs.items()}
