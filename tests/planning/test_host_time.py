"""The host's own seconds: one narrow layer of each kind stands for all of its kind."""

import itertools
import time

import pytest

from grpo_kit import config
from grpo_kit.nemotron import expert_kernel
from grpo_kit.planning import host_time, machines
from grpo_kit.planning.machines import Bandwidths, HostSeconds
from grpo_kit.planning.model_size import Architecture
from tests.helpers.plans import plan_for

TOKEN = {"linear_attention": 0.001, "full_attention": 0.002, "moe": 0.003, "mlp": 0.004, machines.OUTSIDE: 0.01}


def test_a_models_seconds_are_those_of_its_layers_and_of_what_is_outside():
    large, small = (Architecture.of(config.load_config([name]).policy) for name in ("t4", "t4-4b"))
    assert host_time.model_seconds(TOKEN, large) == pytest.approx(23 * 0.001 + 6 * 0.002 + 23 * 0.003 + 0.01)
    assert host_time.model_seconds(TOKEN, small) == pytest.approx(21 * 0.001 + 4 * 0.002 + 17 * 0.004 + 0.01)


@pytest.mark.slow
def test_a_step_takes_the_larger_of_gpu_and_host_and_on_a_cpu_both():
    """By hand: 512 tokens of 0.114 s; four micro-batches of 23 + 6 + 23 layers of 0.1 s; 300 answers in 38 batches."""
    micro_batch = dict.fromkeys(("linear_attention", "full_attention", "moe"), 0.1)
    fast = Bandwidths(1e12, 1e12, 1e12, HostSeconds(TOKEN, micro_batch, "by hand"))
    times = plan_for("t4", bandwidths=fast).times
    assert times.least == pytest.approx((512 * 0.114, 512 * 0.114, 4 * 52 * 0.1, 38 * 1024 * 0.114), rel=1e-3)
    slow = plan_for("t4", bandwidths=Bandwidths(1, 1e12, 1e12, fast.host)).times
    assert slow.least == slow.device and slow.most.sampling == slow.device.sampling + times.host.sampling
    # 300 answers in batches of 8, as many as a step samples; tokens of a larger batch read more experts
    assert slow.device.evaluation == pytest.approx(38 * 1024 * slow.device.sampling / 512)
    larger = plan_for("t4", "t4", "evaluation.batch_size=16", bandwidths=Bandwidths(1, 1e12, 1e12)).times
    assert larger.device.evaluation == pytest.approx(19 * 1024 * slow.device.sampling_all / 512)
    tiny = {"host": HostSeconds(TOKEN, micro_batch, "by hand")}
    cpu, plain = (plan_for("tiny", "cpu", bandwidths=Bandwidths(20, 20, 0.1, **more)).times for more in (tiny, {}))
    assert cpu.least.sampling == pytest.approx(plain.least.sampling + cpu.host.sampling)
    assert cpu.host.sampling == pytest.approx(40 * (0.001 + 0.002 + 2 * 0.003 + 0.01))


def test_recorded_seconds_of_experts_depend_on_where_they_lie_and_how_many_a_layer_has():
    t4, tiny = config.load_config(["t4"]), config.load_config(["tiny"], ["policy.load_in_4bit=true"])
    near = config.load_config(["t4"], ["policy.experts_on_host=0"])
    large, small = Architecture.of(t4.policy), Architecture.of(tiny.policy)
    away, here, few = (host_time.recorded_host(*pair) for pair in ((large, t4), (large, near), (small, tiny)))
    assert away.token["moe"] > here.token["moe"]
    assert few.micro_batch["moe"] == pytest.approx(here.micro_batch["moe"] * 8 / 128)
    assert 0.08 < host_time.model_seconds(away.token, large) < 0.25  # counted at full depth: 0.12 to 0.22


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "gpu"), [("tiny", False), ("t4", True)])
def test_this_processor_is_measured_and_everything_is_as_before(monkeypatch, preset, gpu):
    """A clock that counts its readings: every layer is timed, the routed experts by their way on a GPU."""
    ticks, launched = itertools.count(), []
    monkeypatch.setattr(time, "thread_time", lambda: float(next(ticks)))
    usable, kernel = expert_kernel.is_usable, expert_kernel.compile_kernel
    run = expert_kernel.run_experts
    monkeypatch.setattr(expert_kernel, "run_experts", lambda *args: launched.append(1) or run(*args))
    chosen = config.load_config([preset])
    model = Architecture.of(chosen.policy)
    host = host_time.measure_host(model, chosen, 4, gpu)
    assert set(host.token) == set(model.kinds) | {machines.OUTSIDE} and set(host.micro_batch) == set(model.kinds)
    assert all(host.token[kind] == host.micro_batch[kind] == 1 for kind in model.kinds)
    assert host.token[machines.OUTSIDE] > 0 and host.source == "measured here"
    assert bool(launched) == gpu
    assert (expert_kernel.is_usable, expert_kernel.compile_kernel) == (usable, kernel)
