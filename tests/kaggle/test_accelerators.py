"""The first cell of a kernel stops on another GPU than was asked for, and the output names the GPU that ran."""

import json
import subprocess
import sys

import pytest

from grpo_kit.kaggle.accelerators import GPU_LINE, compare_gpu, find_gpu, make_first_cell

T4, PRO = "Tesla T4", "NVIDIA RTX PRO 6000 Blackwell Server Edition"


@pytest.mark.parametrize(
    ("shape", "gpus", "stops"),
    [
        ("NvidiaTeslaT4", ["Tesla T4", "Tesla T4"], False),
        ("NvidiaTeslaT4", ["Tesla P100-PCIE-16GB"], True),
        ("NvidiaRtxPro6000", ["NVIDIA RTX PRO 6000 Blackwell Server Edition"], False),
        ("NvidiaRtxPro6000", ["Tesla P100-PCIE-16GB"], True),
        ("NvidiaH100", ["NVIDIA H100 80GB HBM3"], False),
        ("NvidiaL4X1", [], True),
    ],
)
def test_the_first_cell_names_the_gpu_and_stops_on_another_than_was_asked_for(tmp_path, shape, gpus, stops):
    code = make_first_cell(shape)
    assert len(code.splitlines()) <= 25
    tool = tmp_path / "nvidia-smi"
    if gpus:
        tool.write_text("#!/bin/sh\n" + "".join(f"echo '{gpu}'\n" for gpu in gpus))
        tool.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PATH": f"{tmp_path}:/bin"}, capture_output=True, text=True
    )
    assert (done.returncode != 0) is stops
    assert done.stdout.strip() == f"{GPU_LINE} {', '.join(gpus) or 'no GPU'}"
    assert not stops or "Stopped to save the quota" in done.stderr


def log(*lines):
    return json.dumps([{"stream_name": "stdout", "time": 1.0, "data": line + "\n"} for line in lines])


@pytest.mark.parametrize(
    ("gpu", "requested", "right"),
    [
        (PRO, "NvidiaRtxPro6000", True),
        (f"{T4}, {T4}", "NvidiaTeslaT4", True),
        (T4, "NvidiaTeslaT4Highmem", True),
        ("NVIDIA A100-SXM4-40GB", "NvidiaTeslaA100", True),
        ("NVIDIA H100 80GB HBM3", "NvidiaH100", True),
        ("NVIDIA L4", "NvidiaL4X1", True),
        ("Tesla P100-PCIE-16GB", "NvidiaTeslaP100", True),
        ("Tesla P100-PCIE-16GB", "NvidiaRtxPro6000", False),
        (f"{T4}, {T4}", "NvidiaTeslaP100", False),
        ("NVIDIA L40S", "NvidiaL4", False),
        ("NVIDIA RTX PRO 4000", "NvidiaRtxPro6000", False),
        ("no GPU", "NvidiaTeslaT4", False),
    ],
)
def test_the_gpu_that_ran_is_read_from_the_log(tmp_path, gpu, requested, right):
    for text in (log("Loading", f"{GPU_LINE} {gpu}", "step 1"), f"x\n{GPU_LINE} {gpu}\ny"):
        (tmp_path / "k.log").write_text(text)
        machine = find_gpu(tmp_path, "2026")
        assert machine == (gpu, str(tmp_path / "k.log"))
        assert compare_gpu(machine, requested)[0] is right


def test_without_a_log_line_the_gpu_is_read_from_stages_finished_since_the_push(tmp_path):
    stages = {
        "data": {"finished": "2026-11-01T00:00:00+00:00", "environment": {"gpu": T4}},
        "train": {"finished": "2026-11-25T12:00:00+00:00", "environment": {"gpu": PRO}},
    }
    path = tmp_path / "runs/80gb/run.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"stages": stages}))
    assert find_gpu(tmp_path, "2026-11-25T10:00:00+00:00")[0] == PRO
    assert find_gpu(tmp_path, "2026-11-26T00:00:00+00:00") is None
    (tmp_path / "run.json").write_text("[]")
    assert find_gpu(tmp_path, "2026-11-25T10:00:00+00:00")[0] == PRO


def test_an_unknown_gpu_is_reported_as_unknown(tmp_path):
    assert find_gpu(tmp_path, "2026") is None
    right, message = compare_gpu(None, "NvidiaTeslaT4")
    assert right is None and "not known which GPU ran" in message


def test_a_traceback_that_quotes_the_first_cell_does_not_name_the_gpu(tmp_path):
    (tmp_path / "k.log").write_text(log(f'print("{GPU_LINE}", ", ".join(gpus) or "no GPU")', "RuntimeError"))
    assert find_gpu(tmp_path, "2026") is None
