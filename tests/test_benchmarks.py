"""The benchmark of the full size, run small: it works, its table has every row, and it leaves open what a GPU owes."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def run(name, *words):
    call = [sys.executable, BENCHMARKS / f"{name}.py", *words]
    return subprocess.run(call, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})


@pytest.fixture(scope="module")
def said():
    done = run("nemotron_16gb", "--scale", "tiny")
    assert done.returncode == 0, done.stderr
    return done.stdout


ROWS = [
    *(("tiered", phase) for phase in ("load", "prefill 8 x 96", "decode 8 x 16", "GRPO step 8 x 112", "peak, measured", "peak, by plan")),
    *((other, phase) for other in ("parametrised", "offloaded") for phase in ("load", "prefill 8 x 96", "decode 8 x 8")),
]  # fmt: skip


def test_the_table_has_a_row_for_every_phase_of_every_contender(said):
    cells = [
        [cell.strip() for cell in line.strip("│").split("│")] for line in said.splitlines() if line.startswith("│")
    ]
    assert [tuple(row[:2]) for row in cells] == ROWS
    for contender, phase, seconds, tokens, vram, rss, pcie, share in cells:
        timed = not phase.startswith("peak")
        assert (float(seconds) > 0) if timed else seconds == ""
        assert (float(tokens) > 0) if timed and phase != "load" else tokens == ""
        assert vram == "no GPU" or torch.cuda.is_available()
        assert 0.1 < float(rss) < 4
        if contender == "tiered" and phase.startswith(("decode", "GRPO")):
            assert float(pcie) > 0 and share.endswith("%") and 0 <= float(share[:-1]) < 100  # a busy machine has 0.0


def test_the_last_line_says_the_figures_and_leaves_a_gpus_open(said):
    figures = json.loads(said.splitlines()[-1])
    assert figures["benchmark"] == "nemotron_16gb" and figures["scale"] == "tiny"
    assert figures["decode_tokens_per_s"] > 0 and figures["times_best_alternative"] > 0
    assert (
        figures["best_alternative"] in ("parametrised", "offloaded") and figures["alternatives_that_do_not_fit"] == []
    )
    assert figures["lora_pairs_trained"] == "9 of 9"
    assert 0 < figures["host_tier_gib"] < figures["bar_host_tier_gib"] and figures["rss_gib"] < figures["bar_rss_gib"]
    if not torch.cuda.is_available():
        assert [figures[key] for key in ("peak_gib", "planned_gib", "planned_off", "pcie_gb_s")] == [None] * 4
        assert "full size" in figures["owed"]


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


@pytest.mark.parametrize("way", ["tiered", "parametrised", "offloaded"])
def test_experts_elsewhere_change_no_logit(ways, tmp_path, way):
    from grpo_kit import tiny

    (tmp_path / "config.json").write_text((tiny.FOLDER / "config.json").read_text())
    ids, found = torch.arange(16, 80).view(2, 32), []
    for share in (0.0, 0.5):
        torch.manual_seed(0)
        model = getattr(ways, way)(tmp_path, torch.float32, "cpu", share)
        with torch.no_grad():
            found += [model(ids).logits, model(ids).logits]  # twice: what was brought can be brought again
    assert all(torch.equal(found[0], logits) for logits in found[1:]) and found[0].isfinite().all()


def test_bitsandbytes_still_loses_the_scales_of_what_accelerate_puts_away(ways, tmp_path, monkeypatch):
    from grpo_kit import tiny

    (tmp_path / "config.json").write_text((tiny.FOLDER / "config.json").read_text())
    monkeypatch.setattr(ways, "Scales", ways.bitsandbytes.functional.QuantState)
    with pytest.raises(NotImplementedError, match="meta tensor"):
        ways.offloaded(tmp_path, torch.float32, "cpu", 1.0)(torch.arange(16, 80).view(2, 32))


def test_an_adapter_in_real_shapes_is_packed_and_checked_and_broken_ones_cost_little():
    done = run("submission", "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["benchmark"] == "submission" and figures["tensors"] == 2 * (2 * 129 + 2 + 4)
    assert figures["peak_gib"] < figures["bar_gib"] and figures["broken_grew_mib"] < figures["bar_broken_mib"]
    assert figures["broken"] == 150 and figures["broken_wrote"] == 0
    assert "pack 528 tensors" in done.stdout and "150 broken submissions" in done.stdout


def test_of_a_step_on_two_processes_the_parts_are_no_more_than_the_whole(tmp_path, monkeypatch):
    scale = imported("scale", monkeypatch)
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS.parent))
    monkeypatch.setattr(
        scale, "OVERRIDES", (*scale.OVERRIDES, "data.limit=100", "data.test_size=10", "data.val_size=10")
    )
    found = scale.measured("two", str(tmp_path), "m", 2)
    assert [len(rows) for rows in found] == [1, 1]  # the first step warms up
    for (row,) in found:
        assert 0 < row["sampling, waiting"] < row["sampling"] < row["seconds"]
        assert 0 < row["training, waiting"] < row["seconds"] - row["sampling"]
        assert row["exchanges"] > 10 and row["tokens"] > 64 * 20  # both know what the whole step has
    assert found[0][0]["exchanges"] == found[1][0]["exchanges"] and found[0][0]["tokens"] == found[1][0]["tokens"]
    of = scale.summed([found])
    assert of["steps"] == 1 and of["median"] == of["seconds"] == found[0][0]["seconds"]
    assert of["sampling, waiting"] + of["training, waiting"] < 1
