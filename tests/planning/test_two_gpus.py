"""The two layouts for several GPUs, each with its limit."""

from dataclasses import replace

import pytest

from grpo_kit import config
from grpo_kit.planning import machines, two_gpus
from grpo_kit.planning.plan import plan


def both(preset, device, *overrides, count=1, **more):
    settings = config.load_config([preset], list(overrides))
    where = device if isinstance(device, machines.Device) else machines.find_device(device)
    return two_gpus.compare_layouts(plan(settings, machines.with_processes(where, count), **more, search=False))


@pytest.mark.parametrize("count", [1, 2])
def test_two_t4_fit_the_30b_in_both_layouts(count):
    split, copies = both("t4x2", "t4x2", count=count)
    assert split.fits and split.name == "one process, experts on GPU and second GPU"
    assert split.limit.startswith("second GPU: 5.7 of 13.9 GiB")
    assert copies.fits and copies.name == "one copy each, --num-processes 2"
    assert copies.limit.startswith("host: 13.9 of 27.9 GiB for 2 processes")
    assert "set policy.experts_overflow=host" in copies.verdict and "set" not in split.verdict


def test_a_host_with_room_for_one_process_only_leaves_the_split_layout():
    small = replace(machines.find_device("t4x2"), host=9.0)
    split, copies = both("t4x2", small)
    assert split.fits and not copies.fits
    assert copies.limit == "host: 13.9 of 9.0 GiB for 2 processes" and "start one process" in copies.verdict


@pytest.mark.slow
def test_longer_completions_fit_when_split_but_not_as_copies():
    split, copies = both("t4x2", replace(machines.find_device("t4x2"), host=16.0), "grpo.max_completion_length=3000")
    assert split.fits and not copies.fits and split.limit.startswith("second GPU: ")


def test_a_step_that_two_processes_cannot_divide_is_a_verdict_not_an_error():
    split, copies = both(
        "t4",
        "t4x2",
        "grpo.num_generations=3",
        "grpo.per_device_train_batch_size=3",
        "grpo.gradient_accumulation_steps=1",
    )
    assert split.fits and not copies.fits and copies.plan is None
    assert copies.limit == "the step" and "2 processes do not divide the 3 completions" in copies.verdict


@pytest.mark.slow
def test_a_plan_that_needs_one_gpu_says_that_the_second_idles():
    idle, copies = both("80gb", "80gb", count=2)
    assert idle.name == "one process, the other GPUs idle" and idle.limit.startswith("GPU: ")
    assert idle.fits and copies.fits
    assert not any(way.fits for way in both("80gb", "40gb", count=2))


def test_without_two_gpus_there_is_nothing_to_compare():
    assert both("t4", "t4") == [] and both("tiny", "cpu", count=2) == []


def test_with_bandwidths_each_layout_has_its_step_time():
    split, copies = both("t4x2", "t4x2", bandwidths=machines.Bandwidths(320, 16, 65))
    assert sum(copies.plan.seconds) < sum(split.plan.seconds)
