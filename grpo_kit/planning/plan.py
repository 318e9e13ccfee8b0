"""Will a run fit this machine, how long is a step at best, and how far could its settings go?

Nothing is downloaded and nothing is measured here: `fit` counts what each place must hold, `step_time` divides bytes
and operations by bandwidths, and this file searches for the largest settings and puts the answer into one sentence.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import replace

import torch

from grpo_kit.config import RunConfig
from grpo_kit.config.arguments import require_type
from grpo_kit.planning import host_time, step_time
from grpo_kit.planning.fit import Plan, assess_fit, lacks_bf16
from grpo_kit.planning.machines import (
    CONTEXT,
    DEVICES,
    GIB,
    RETIRED,
    SLACK,
    Bandwidths,
    Device,
    distinct_gib,
    find_device,
    this_device,
)
from grpo_kit.planning.model_size import Architecture
from grpo_kit.planning.storage import describe_disk_remedy

KEYS = ("per_device_train_batch_size", "num_generations", "max_completion_length")  # whose largest value is searched
LARGEST_STEP = 2**16  # where the search ends
LENGTHS = 64  # the search tries completion lengths that are a multiple of this many tokens


def plan(
    config: RunConfig,
    device: Device | str | None = None,
    prompt_tokens: int = 256,
    bandwidths: Bandwidths | None = None,
    hits: torch.Tensor | None = None,
    search: bool = True,
) -> Plan:
    """Say whether a run fits a machine, before anything is downloaded. As many routed experts as fit stay on the GPU.

    Args:
        config: the run's configuration.
        device: the machine, or its name: `t4`, `p100`, `t4x2`, `24gb`, `40gb`, `80gb` or `cpu`; None: this machine
            as it is.
        prompt_tokens: length of the longest prompt in tokens.
        bandwidths: the device's, from `planning.step_time.measure_bandwidths`; with them the plan gives the seconds of
            a step. None: those of a named device's data sheet, with the host's seconds as recorded on another
            machine; no seconds for this machine.
        hits: how often each routed expert was chosen, int64 of shape (layers, experts), from `grpo-kit calibrate`;
            without them every expert counts as chosen equally often.
        search: whether to look for the largest settings that fit, which takes most of the time.

    Returns:
        The plan; `verdict` is its answer in one sentence.

    Raises:
        ValueError: if the policy is not a Nemotron-H, the device is unknown, or `prompt_tokens` is below 1.
        FileNotFoundError: if the policy's config.json cannot be found.
        TypeError: if an argument has another type.

    Example:
        >>> from grpo_kit import load_config, plan
        >>> plan(load_config("tiny"), "t4", search=False).verdict
        'It fits t4 with every weight in one place.'
    """
    require_type("config", config, RunConfig, "a configuration", 'Write load_config("tiny").')
    require_type("device", device, (Device, str, type(None)), "the name of a machine", 'Write "t4" or "80gb".')
    if prompt_tokens < 1:
        raise ValueError(f"prompt_tokens is {prompt_tokens}; a prompt has at least one token. Set it to 1 or more.")
    if not isinstance(device, Device):
        device = find_device(device) if device else this_device()
    model = Architecture.of(config.policy)
    fit = assess_fit(model, config, device, prompt_tokens)
    largest = {key: largest_setting(model, fit, key) for key in KEYS} if search else {}
    fit = replace(fit, largest=largest, verdict=_verdict(model, fit, largest))
    bandwidths = bandwidths or (device.sold and device.sold._replace(host=host_time.recorded_host(model, config)))
    if not bandwidths:
        return fit
    rows_off_gpu = fit.share_off_gpu
    if hits is not None:
        from grpo_kit.nemotron.placement.placing import choose_host_experts, expected_host_share  # loads bitsandbytes

        coldest = choose_host_experts(*hits.shape, fit.share_off_gpu, hits)
        rows_off_gpu = expected_host_share(hits, coldest)
    times = step_time.estimate_times(model, fit, bandwidths, rows_off_gpu)
    return replace(fit, bandwidths=bandwidths, times=times)


def vary_setting(config: RunConfig, key: str, step: int, processes: int = 1) -> RunConfig:
    """`config` with one of KEYS at its `step`-th possible value, counted from 1.

    A value is possible if whole groups fill whole micro-batches and `processes` divide a step's completions. Completion
    lengths are multiples of LENGTHS.
    """
    batch, accumulation = config.grpo.per_device_train_batch_size, config.grpo.gradient_accumulation_steps
    group, prompts = config.grpo.num_generations, batch * accumulation // config.grpo.num_generations
    value = LENGTHS * step
    if key == "per_device_train_batch_size":
        multiple = math.lcm(group, processes)
        value = step * multiple // math.gcd(multiple, accumulation)
    if key == "num_generations":
        multiple = math.lcm(batch, processes)
        value = max(2, step * multiple // math.gcd(multiple, prompts))
    return replace(config, grpo=replace(config.grpo, **changes_for(config, key, value)))


def changes_for(config: RunConfig, key: str, value: int) -> dict[str, int]:
    """{key of `grpo`: value} to set so that `key`, one of KEYS, has this value.

    With another group, a step keeps its prompts and its micro-batch, and accumulates more or fewer micro-batches.
    """
    if key != "num_generations":
        return {key: value}
    grpo = config.grpo
    return {key: value, "gradient_accumulation_steps": grpo.gradient_accumulation_steps * value // grpo.num_generations}


def describe_largest(config: RunConfig, key: str, value: int) -> str:
    """One sentence: the largest value of `key` that fits, and what else has to be set or changes with it.

    >>> from grpo_kit import load_config
    >>> describe_largest(load_config("t4"), "num_generations", 52)
    'largest grpo.num_generations that fits, with grpo.gradient_accumulation_steps=26, other settings unchanged: 52'
    """
    sentence, end = f"largest grpo.{key} that fits", f", other settings unchanged: {value or 'none'}"
    along = changes_for(config, key, value).items() if value else ()
    words = [f"grpo.{name}={n}" for name, n in along if name != key and n != getattr(config.grpo, name)]
    if value and key == "per_device_train_batch_size":
        end += f" ({value * config.grpo.gradient_accumulation_steps} completions a step)"
    return f"{sentence}{''.join(f', with {word}' for word in words)}{end}"


def largest_setting(model: Architecture, fit: Plan, key: str) -> int:
    """The largest value of `key` that fits with the others as configured; 0 where none does."""
    varied = functools.partial(vary_setting, fit.config, key, processes=fit.device.processes)

    def fits(step: int) -> bool:
        return assess_fit(model, varied(step), fit.device, fit.prompt_tokens, fit.storage).fits

    low, high = 0, 1  # `low` fits, or is 0
    if key == "max_completion_length":  # `fit` already assessed one, and long ones take long
        step = max(1, fit.config.grpo.max_completion_length // LENGTHS)
        low, high = (step, 2 * step) if fit.fits else (0, step if fits(1) else 1)
    while high < LARGEST_STEP and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return getattr(varied(low).grpo, key) if low else 0


def _verdict(model: Architecture, fit: Plan, largest: dict[str, int]) -> str:
    """One sentence: how it fits, or what is short and the first change that makes it fit."""
    config, device = fit.config, fit.device

    def fits_on(other: Device) -> bool:
        return assess_fit(model, config, other, fit.prompt_tokens).fits

    if fit.fits:
        return f"It fits {device.name} with {_expert_places(model, fit)}{_placement_advice(fit)}."
    if lacks_bf16(config, device):
        return f"It does not fit {device.name}, whose GPU has no bf16; first set policy.dtype=float16."
    place, need = next((p, n) for p, n in fit.needs.items() if n.has is not None and n.nbytes > n.has)
    has, needed = distinct_gib(need.has, need.nbytes)
    short = f"It does not fit {device.name}, whose {place} has {has} of {needed} GiB needed"
    for words, changed in _possible_changes(model, fit, largest):
        if changed != config and assess_fit(model, changed, device, fit.prompt_tokens).fits:
            return f"{short}; first set {words}."
    if device.processes > 1 and fits_on(replace(device, processes=1)):
        return f"{short}; start one process."
    if place.startswith("disk"):
        return f"{short}; {describe_disk_remedy(fit.storage)}."
    taken = device.gpu - CONTEXT - min(device.free, default=device.gpu)
    if "GPU" in place and taken > SLACK and fits_on(replace(device, free=())):
        return f"{short}; end the other processes that hold {taken:.1f} GiB of it."
    short += ", and no single setting changes that"
    if place == "host" and device.gpu:  # another card would not help
        return f"{short}; use a machine with that much host memory."
    larger = [name for name, other in DEVICES.items() if _has_more(other, device, place) and fits_on(other)]
    return f"{short}; use {larger[0] if larger else 'a larger machine'}."


def _has_more(other: Device, device: Device, place: str) -> bool:
    """Whether `other` can be rented, has clearly more of what is short, and is not `device` by another name."""
    if other.name in RETIRED:
        return False
    if other.gpus == device.gpus and abs(other.gpu - device.gpu) <= 0.05 * device.gpu:
        return False
    return other.gpu > 1.05 * device.gpu or (place == "second GPU" and other.gpus > device.gpus)


def _expert_places(model: Architecture, fit: Plan) -> str:
    """The places of the routed experts that do not fit on the first GPU."""
    processes = f" for {fit.device.processes} processes" if fit.device.processes > 1 else ""
    texts = [
        f"{fit.experts[row.place]:,} of {model.routed:,} routed experts on the {row.place} "
        f"({row.nbytes / GIB:.2f} GiB{processes})"
        for row in fit.rows
        if row.part == "routed experts" and fit.share_off_gpu and row.place != "GPU"
    ]
    return " and ".join(texts) or "every weight in one place"


def _placement_advice(fit: Plan) -> str:
    """The settings that place experts as planned, where the configuration differs."""
    policy, overflow = fit.config.policy, "cuda:1" if "second GPU" in fit.experts else "host"
    changes = []
    if abs(policy.experts_on_host - fit.share_off_gpu) > 0.002:
        changes.append(f"policy.experts_on_host={fit.share_off_gpu:.3f}")
    if policy.experts_overflow != overflow and (fit.share_off_gpu > 0 or fit.device.processes > 1):
        changes.append(f"policy.experts_overflow={overflow}")
    return f"; set {' '.join(changes)}" if policy.load_in_4bit and changes else ""


def _possible_changes(model: Architecture, fit: Plan, largest: dict[str, int]) -> Iterator[tuple[str, RunConfig]]:
    """(overrides, as they are typed; the configuration with them), the mildest change first."""
    config, grpo = fit.config, fit.config.grpo

    def change(**settings: object) -> tuple[str, RunConfig]:
        words = " ".join(f"grpo.{key}={value}" for key, value in settings.items()).lower()
        return words, replace(config, grpo=replace(grpo, **settings))

    yield change(gradient_checkpointing=True)
    step = grpo.per_device_train_batch_size * grpo.gradient_accumulation_steps  # stays, in smaller pieces
    for size in range(grpo.per_device_train_batch_size - 1, 0, -1):
        if step % size == 0:
            yield change(per_device_train_batch_size=size, gradient_accumulation_steps=step // size)
    yield change(resample_budget=0.0)
    for key in ("per_device_train_batch_size", "max_completion_length", "num_generations"):
        if value := largest[key] if key in largest else largest_setting(model, fit, key):
            words, changed = change(**changes_for(config, key, value))
            fewer = changed.grpo.per_device_train_batch_size * changed.grpo.gradient_accumulation_steps
            yield words + f" ({fewer} instead of {step} completions a step)" * (fewer != step), changed
    yield "policy.load_in_4bit=true", replace(config, policy=replace(config.policy, load_in_4bit=True))
