"""The shortest possible seconds of a step: the roofline, worked out by hand."""

from dataclasses import replace

import pytest
import torch

from grpo_kit import config
from grpo_kit.planning import machines, step_time
from grpo_kit.planning.machines import GIB
from grpo_kit.planning.plan import plan
from tests.helpers.plans import part_bytes, plan_for, plan_shared

ALL_HERE = "policy.experts_on_host=0"


def counted(rows_of_the_cold):
    """Routing statistics of 23 layers: half of the experts, spread over all, get `rows_of_the_cold`, the others 100."""
    return torch.where(torch.arange(23 * 128).view(23, 128) % 2 == 0, rows_of_the_cold, 100)


def test_this_machine_has_no_step_time_before_it_is_measured_and_a_named_one_has_its_data_sheets():
    assert plan_for("tiny", "cpu").times is None
    assert plan_for("t4").times == plan_for("t4", bandwidths=plan_for("t4").bandwidths).times
    assert plan_for("t4").bandwidths[:3] == (320, 16, 65)


@pytest.mark.slow
def test_step_time_is_the_roofline_computed_by_hand():
    """By hand: 8 sequences read 7.09 GB a token in VRAM; 1,536 tokens are 29.7 TF; dequantising is 133 GB a pass."""
    fast = 1e12  # a link or product that takes no time
    only = {"vram": machines.Bandwidths(1, fast, fast), "products": machines.Bandwidths(fast, fast, 1)}
    overrides = [ALL_HERE, "grpo.per_device_train_batch_size=2", "grpo.gradient_accumulation_steps=4"]
    overrides += ["grpo.resample_budget=0"]
    seconds = {name: plan_for("t4", "24gb", *overrides, bandwidths=speed).seconds for name, speed in only.items()}
    assert seconds["vram"][0] / 512 == pytest.approx(7.09, rel=0.05)
    assert seconds["vram"][1] == pytest.approx(4 * 3 * 133, rel=0.02)  # four micro-batches, three passes
    assert seconds["products"][1] == pytest.approx(4 * 29.7, rel=0.15)  # the facts leave lm_head out, we count it
    slow = plan_for("t4", "t4", bandwidths=machines.Bandwidths(fast, 10, fast)).seconds
    assert slow[1] == pytest.approx(4 * 3 * part_bytes(plan_for("t4"), "routed experts", "host") / 10e9, rel=0.01)


@pytest.mark.slow
def test_replacements_are_sampled_beside_the_step_and_not_trained_on():
    """By hand: a sequence's states are 49.4 MB, 23 layers of 64 x 64 x 128 in float32 and 6,144 x 4 in 16 bit, read and
    written; of 128 experts 6 a token, 8 sequences hit 0.3189 and 16 hit 0.5361."""
    fast, overrides = 1e12, [ALL_HERE, "grpo.per_device_train_batch_size=2", "grpo.gradient_accumulation_steps=4"]
    vram = machines.Bandwidths(1, fast, fast)
    replacing, none = (
        plan_for("t4", "24gb", *overrides, f"grpo.resample_budget={budget}", bandwidths=vram) for budget in (1.0, 0)
    )
    # Without replacements, sampling_all has the states of the step's own 8 sequences only.
    assert replacing.seconds == none.seconds and none.times.least.sampling_all == none.seconds[0]
    states = 23 * (64 * 64 * 128 * 4 + 6144 * 4 * 2)
    more = 2 * 8 * states + part_bytes(replacing, "routed experts", "GPU") * (0.5361 - 0.3189)
    assert (replacing.times.least.sampling_all - replacing.seconds[0]) / 512 == pytest.approx(more / 1e9, rel=1e-3)


def test_replacements_off_the_gpu_come_over_pcie():
    """By hand, with all experts off the GPU: 16 sequences bring 0.5361 of them a token where 8 bring 0.3189."""
    away = ["policy.experts_overflow=host", "grpo.resample_budget=1"]
    result = plan_for("t4", "t4", *away, bandwidths=machines.Bandwidths(1e12, 1, 1e12))
    k, count = 6, 128 * result.share_off_gpu
    hit = [1 - (1 - k * result.share_off_gpu / count) ** n for n in (8, 16)]
    assert hit == pytest.approx([0.3189, 0.5361], abs=1e-4)
    brought = part_bytes(result, "routed experts", "host")
    assert [t / 512 for t in (result.seconds[0], result.times.least.sampling_all)] == pytest.approx(
        [h * brought / 1e9 for h in hit], rel=1e-3
    )


def test_each_process_samples_its_part_of_the_replacements():
    speed = machines.Bandwidths(320, 16, 65)
    one, two = (plan_shared(n, "24gb", "24gb", bandwidths=speed) for n in (1, 2))
    assert (
        one.seconds[0] / 2 < two.seconds[0] < two.times.least.sampling_all == pytest.approx(one.seconds[0])
    )  # 8 of 16, as one's 8


def test_bytes_over_pcie_cost_time_and_a_smaller_share_less():
    speed = machines.Bandwidths(224, 10, 25)
    near, far = plan_for("t4", "24gb", bandwidths=speed).seconds, plan_for("t4", "t4", bandwidths=speed).seconds
    assert far[0] > near[0] and far[1] > near[1]


def test_placement_by_hits_costs_less_than_uniform_routing_and_uniform_is_the_default():
    speed = machines.Bandwidths(224, 10, 25)
    times = [
        plan_for("t4", bandwidths=speed, hits=hits).seconds for hits in (counted(1), counted(30), counted(100), None)
    ]
    assert times[0][0] < times[1][0] < times[2][0] == pytest.approx(times[3][0], rel=1e-3)
    assert len({training for _, training in times}) == 1  # training passes over every expert


def test_micro_batches_of_one_leave_less_on_the_host_and_cost_time_with_counted_hits():
    """Why the preset keeps 2 x 4: with half of what uniform routing sends over PCIe, 1 x 8 is the slower one."""
    small = ["grpo.per_device_train_batch_size=1", "grpo.gradient_accumulation_steps=8"]
    speed = machines.Bandwidths(224, 10, 25)  # a T4's, as sold: for the comparison only
    two, one = (plan_for("t4", "t4", *o, bandwidths=speed, hits=counted(33)) for o in ([], small))
    assert part_bytes(one, "routed experts", "host") < part_bytes(two, "routed experts", "host") - 0.5 * GIB
    assert sum(one.seconds) > sum(two.seconds)


@pytest.mark.slow
def test_this_machine_measures_itself():
    here = step_time.measure_bandwidths("cpu")
    assert min(here[:3]) > 0
    result = plan_for("tiny", "cpu", bandwidths=here)
    assert result.bandwidths == here and min(result.seconds) > 0


def test_a_copy_counts_as_read_and_written_and_a_transfer_once(monkeypatch):
    """With a clock of 2, 5 and 9 ms for the copy, the transfer and the product: only the arithmetic."""
    seconds = iter([0.002, 0.005, 0.009])
    monkeypatch.setattr(step_time, "shortest_seconds", lambda device, work: next(seconds))
    monkeypatch.setitem(step_time.COPIED, "cpu", 1_000_000)
    monkeypatch.setitem(step_time.WIDTH, "cpu", 100)
    assert step_time.measure_bandwidths("cpu")[:3] == pytest.approx((1.0, 0.2, 2e6 / 0.009 / 1e12))


def test_a_gpu_is_measured_by_its_own_clock(monkeypatch):
    """With a clock of 2, 5 and 9 ms for three pieces of work, each tried several times: only the arithmetic."""
    milliseconds = iter([2.0] * step_time.TRIES + [5.0] * step_time.TRIES + [9.0] * step_time.TRIES)
    event = type("Event", (), {"__init__": lambda self, enable_timing: None, "record": lambda self: None,
                               "elapsed_time": lambda self, other: next(milliseconds)})  # fmt: skip
    monkeypatch.setattr(torch.cuda, "Event", event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    cuda = torch.device("cuda")
    taken = [step_time.shortest_seconds(cuda, lambda: None) for _ in range(3)]
    assert taken == pytest.approx([0.002, 0.005, 0.009])


def test_a_divided_step_trains_faster_and_still_samples_token_by_token():
    speed = machines.Bandwidths(320, 16, 65)
    one, two = (plan_shared(n, "24gb", "24gb", bandwidths=speed).seconds for n in (1, 2))
    assert two[1] == pytest.approx(one[1] / 2, rel=0.01)
    assert one[0] / 2 < two[0] < one[0]  # the dense weights are read for 4 sequences as for 8


def test_processes_on_a_cpu_share_its_bandwidth():
    speed = machines.Bandwidths(20, 20, 0.1)
    cpu = machines.Device("cpu", 0.0, triton=False)
    one, two = (
        plan(config.load_config(["tiny"]), replace(cpu, processes=n), bandwidths=speed, search=False).seconds
        for n in (1, 2)
    )
    assert two[1] == pytest.approx(one[1], rel=0.01) and one[0] < two[0] < 2 * one[0]


def test_a_gpu_that_a_policy_fills_is_measured_with_less_memory(monkeypatch):
    sizes = []

    def measure(device, nbytes):
        sizes.append(nbytes)
        if len(sizes) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return machines.Bandwidths(1, 2, 3)

    monkeypatch.setattr(step_time, "_measure", measure)
    assert step_time.measure_bandwidths("cuda:0") == (1, 2, 3, None) and sizes == [2**28, 2**24]


# evaluation.sets, further settings; problems of each set (None: unknown)
@pytest.mark.parametrize(
    ("sets", "settings", "counts"),
    [
        ("test", [], {"test": 300}),
        ("test,math500", [], {"test": 300, "math500": 500}),
        ("aime2024,gsm8k_test", [], {"aime2024": 30, "gsm8k_test": 1319}),
        ("aime2024,math500,own/er", ["evaluation.num_problems=40"], {"aime2024": 30, "math500": 40, "own/er": 40}),
        ("own/er", [], {"own/er": None}),
        ("puzzles", [], {"puzzles": 4000}),
        ("mine.jsonl", [], {"mine.jsonl": 3}),
        ("mine.jsonl", ["evaluation.num_problems=2"], {"mine.jsonl": 2}),
        ("mine.csv,gone.jsonl", [], {"mine.csv": None, "gone.jsonl": None}),
    ],
)  # fmt: skip
def test_the_problems_of_every_set_are_counted_where_their_number_is_known(
    tmp_path, monkeypatch, sets, settings, counts
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text('{"prompt": "1"}\n\n{"prompt": "2"}\n{"prompt": "3"}')
    (tmp_path / "mine.csv").write_text("prompt,answer\n1,1\n")
    chosen = config.load_config(["t4"], [f"evaluation.sets=[{sets}]", *settings])
    assert step_time.count_problems(chosen) == counts
    planned = plan_for("t4", "t4", f"evaluation.sets=[{sets}]", "evaluation.num_generations=3", *settings)
    assert step_time.count_evaluated(planned) == 3 * sum(n or 0 for n in counts.values())
    assert (planned.times.least.evaluation > 0) == any(counts.values())


def test_a_set_that_does_not_exist_is_refused_with_the_name_that_was_meant():
    with pytest.raises(ValueError, match="Did you mean aime2024"):
        plan_for("t4", "t4", "evaluation.sets=[aime_2024]")
