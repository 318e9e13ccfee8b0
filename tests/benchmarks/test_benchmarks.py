"""The benchmark of the full size, run small: it works, its table has every row, and it leaves open what a GPU owes."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.helpers.processes import start

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run(name, *words):
    call = [sys.executable, BENCHMARKS / f"{name}.py", *words]
    return subprocess.run(call, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})


@pytest.fixture(scope="module")
def printed():
    command = ["-W", "ignore", "-m", "benchmarks.nemotron_16gb", "--scale", "tiny"]
    done = start(command, os.environ | {"COLUMNS": "200"}, BENCHMARKS.parent)
    output, _ = done.communicate(timeout=600)
    assert done.returncode == 0, output
    return output


PHASES = ("load", "prefill 8 x 96", "decode 8 x 16", "GRPO step 8 x 112", "peak, measured", "peak, by plan")
ROWS = [
    *(("tiered", phase) for phase in PHASES),
    *((other, phase) for other in ("parametrised", "offloaded") for phase in (*PHASES[:2], "decode 8 x 8")),
]  # fmt: skip


def test_the_table_has_a_row_for_every_phase_of_every_contender(printed):
    cells = [
        [cell.strip() for cell in line.strip("│").split("│")] for line in printed.splitlines() if line.startswith("│")
    ]
    assert [tuple(row[:2]) for row in cells] == ROWS
    for contender, phase, seconds, tokens, vram, rss, pcie, share in cells:
        timed = not phase.startswith("peak")
        assert (float(seconds) > 0) if timed else seconds == ""
        assert (float(tokens) > 0) if timed and phase != "load" else tokens == ""
        assert vram == "no GPU" or torch.cuda.is_available()
        assert 0.1 < float(rss) < 4
        if contender == "tiered" and phase.startswith(("decode", "GRPO")):
            # The slots hold the few experts that a small policy has on the host, so none comes over PCIe again.
            assert float(pcie) == 0
            assert share.endswith("%") and 0 <= float(share[:-1]) < 100  # a busy machine has 0.0


def test_the_last_line_says_the_figures_and_leaves_a_gpus_open(printed):
    figures = json.loads(printed.splitlines()[-1])
    assert figures["benchmark"] == "nemotron_16gb" and figures["scale"] == "tiny"
    assert figures["decode_tokens_per_s"] > 0 and figures["times_best_alternative"] > 0
    assert (
        figures["best_alternative"] in ("parametrised", "offloaded") and figures["alternatives_that_do_not_fit"] == []
    )
    assert figures["lora_pairs_trained"] == "6 of 6"
    assert 0 < figures["host_tier_gib"] < figures["bar_host_tier_gib"] and figures["rss_gib"] < figures["bar_rss_gib"]
    if not torch.cuda.is_available():
        assert [figures[key] for key in ("peak_gib", "planned_gib", "planned_off", "pcie_gb_s")] == [None] * 4
        assert "full size" in figures["owed"]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="here the full size would run")
def test_without_a_gpu_the_full_size_says_what_it_needs():
    done = run("nemotron_16gb", "--scale", "full")
    assert done.returncode == 1 and "needs a CUDA GPU" in done.stderr and "--scale tiny" in done.stderr


def imported(name, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ways(monkeypatch):
    return imported("random_nemotron", monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["tiered", "parametrised", "offloaded"])
def test_experts_elsewhere_change_no_logit(ways, tmp_path, way):
    from grpo_kit.nemotron import tiny

    (tmp_path / "config.json").write_text((tiny.FOLDER / "config.json").read_text())
    ids, outputs = torch.arange(16, 80).view(2, 32), []
    for share in (0.0, 0.5):
        torch.manual_seed(0)
        model = getattr(ways, way)(tmp_path, torch.float32, "cpu", share)
        with torch.no_grad():
            outputs += [model(ids).logits, model(ids).logits]  # twice: what was brought can be brought again
    assert all(torch.equal(outputs[0], logits) for logits in outputs[1:]) and outputs[0].isfinite().all()


def test_bitsandbytes_still_loses_the_scales_of_what_accelerate_puts_away(ways, tmp_path, monkeypatch):
    from grpo_kit.nemotron import tiny

    (tmp_path / "config.json").write_text((tiny.FOLDER / "config.json").read_text())
    monkeypatch.setattr(ways, "Scales", ways.bitsandbytes.functional.QuantState)
    with pytest.raises(NotImplementedError, match="meta tensor"):
        ways.offloaded(tmp_path, torch.float32, "cpu", 1.0)(torch.arange(16, 80).view(2, 32))


# A command of the kit, which prints its own peak memory: as in `run_module`, the kernel says it.
MEASURED = """
import resource, runpy, sys
del sys.argv[0]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
finally:
    print("KiB:", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_an_adapter_in_real_shapes_is_packed_and_checked_and_broken_ones_cost_little(monkeypatch, capsys):
    submission = imported("submission", monkeypatch)
    run_fresh = submission.run_module

    def run_module(*words, cwd):
        if words[0] != "grpo_kit":
            return run_fresh(*words, cwd=cwd)
        child = start(["-c", MEASURED, *words], os.environ | {"PYTHONPATH": str(submission.ROOT)}, cwd)
        printed, peak = child.communicate(timeout=300)[0].rsplit("KiB: ", 1)
        assert child.returncode == 0, printed
        return 1.0, int(peak) / 2**20, printed  # it shares the libraries, so its time says nothing

    monkeypatch.setattr(submission, "run_module", run_module)
    monkeypatch.setattr(sys, "argv", ["submission.py", "--quick"])
    submission.main()
    printed = capsys.readouterr().out
    figures = json.loads(printed.splitlines()[-1])
    assert figures["benchmark"] == "submission" and figures["tensors"] == 2 * (2 * 129 + 2 + 4)
    assert figures["peak_gib"] < figures["bar_gib"] and figures["broken_grew_mib"] < figures["bar_broken_mib"]
    assert figures["broken"] == 150 and figures["broken_wrote"] == 0
    assert "pack 528 tensors" in printed and "150 broken submissions" in printed


def test_scale_tells_waiting_from_sampling_and_from_training(monkeypatch):
    """By the test's clock a step samples 10 s and trains 3 s, each with an exchange of 0.5 s after a wait of 2 s."""
    scale, now = imported("scale", monkeypatch), [0.0]

    def lasts(seconds):
        return lambda *_: now.append(now[-1] + seconds)

    monkeypatch.setattr(scale, "time", SimpleNamespace(perf_counter=lambda: now[-1]))
    monkeypatch.setattr(scale.dist, "barrier", lasts(2))
    for name in scale.EXCHANGES:
        monkeypatch.setattr(scale.dist, name, lasts(0.5))

    def sample(batch):
        lasts(10)()
        scale.dist.all_gather_object()
        return batch

    trainer, state = SimpleNamespace(_generate_and_score_completions=sample), SimpleNamespace(num_input_tokens_seen=0)
    clock = scale.Clock(trainer)
    for _ in range(2):
        clock.on_step_begin(None, state, None)
        assert trainer._generate_and_score_completions("batch") == "batch"
        lasts(3)()
        scale.dist.all_reduce()
        state.num_input_tokens_seen += 100
    clock.on_train_end(None, state, None)
    step = {
        "sampling": 12.5,
        "sampling, waiting": 2,
        "training, waiting": 2,
        "exchanges": 2,
        "seconds": 18,
        "tokens": 100,
    }
    assert clock.rows == [step, step]
    shares = {name: step[name] / 18 for name in ("sampling", "sampling, waiting", "training, waiting")}
    means = {"seconds": 18, "tokens": 100, "exchanges": 2, "steps": 2, "median": 18}
    assert scale.summed([[clock.rows, clock.rows]]) == pytest.approx(shares | means)


def test_programs_of_all_sorts_are_judged_and_leave_nothing(monkeypatch):
    figures = imported("code_tests", monkeypatch).run_many(150)
    for name in ("folders", "descriptors", "server_descriptors"):
        assert figures[f"{name}_after"] == figures[f"{name}_before"], name
    assert figures["programs"] == 150 and figures["mib_after"] - figures["mib_before"] < 20
