"""The demo command, for real: the accuracy it has to reach, and what a second call does. The slowest test."""

import json
import os
import re
import time
import zipfile

import pytest

from grpo_kit.runs.files import hash_of
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from tests.helpers.processes import start as start_python
from tests.helpers.settings import ROOT

# The command, and then the most memory that it had at a time.
DEMO = """
import resource, runpy, sys
sys.argv = ["grpo_kit", "demo"]
try:
    runpy.run_module("grpo_kit", run_name="__main__", alter_sys=True)
finally:
    print("KiB:", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    here = tmp_path_factory.mktemp("demo")
    process = start_python(["-c", DEMO], os.environ | {"PYTHONPATH": str(ROOT)}, here)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return here, output


def test_the_demo_learns_to_solve_sums(demo):
    here, _ = demo
    report = json.loads((here / "runs/demo/evaluation/report.json").read_text())
    before, after = report["before"], report["after"]
    assert before["pass@1"] <= 0.55 and after["pass@1"] >= 0.85
    assert before["ci95"][1] < after["ci95"][0] and min(before["n"], after["n"]) >= 300
    assert report["difference_ci95"][0] > 0


def test_the_trained_demo_policy_thinks_where_the_untrained_one_guessed(demo):
    here, output = demo
    thought = {}
    for name in ("before", "after"):
        problems = json.loads((here / f"runs/demo/evaluation/{name}.json").read_text())["problems"]
        thought[name] = sum(p["completions"][0].startswith("looks like") for p in problems) / len(problems)
    assert thought["before"] > 0.4 and thought["after"] < 0.05
    assert "thinks looks like" in output


def test_the_demo_fits_into_three_gibibytes(demo):
    peak = int(re.search(r"^KiB: (\d+)$", demo[1], re.MULTILINE)[1]) / 2**20  # GiB
    assert 0.1 < peak < 3


def test_the_demo_leaves_a_zip_a_picture_and_a_table(demo):
    here, output = demo
    with zipfile.ZipFile(here / "submission/submission.zip") as archive:
        assert archive.namelist() == ["adapter_config.json", "adapter_model.safetensors"]
    assert (here / "runs/demo/report.png").stat().st_size > 10_000
    assert "Held-out accuracy" in (here / "runs/demo/report.html").read_text()
    for words in ("95 % interval", "submission/submission.zip", "runs/demo/report.png", "next: "):
        assert words in output
    assert output.count(" ok ") == 5 and " fatal " not in output


def test_held_out_problems_share_no_prompt_with_training(demo):
    run = find_run("demo", demo[0] / "runs")
    prompts = {
        split: {row["prompt"][-1]["content"] for row in read_lines(run.data_file(split))}
        for split in ("train", "val", "test")
    }
    assert (
        not prompts["train"] & prompts["test"] and not prompts["train"] & prompts["val"] and len(prompts["test"]) >= 300
    )


@pytest.mark.slow
def test_a_second_call_skips_what_is_done_and_says_so(demo):
    here, _ = demo
    before = hash_of(here / "runs/demo/adapter"), (here / "submission/submission.zip").stat().st_mtime_ns
    started = time.monotonic()
    again = start_python(["-m", "grpo_kit", "demo"], os.environ | {"PYTHONPATH": str(ROOT)}, here)
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0 and output.count("skipped") == 5, f"{time.monotonic() - started:.0f} s: {output}"
    assert (
        hash_of(here / "runs/demo/adapter"),
        (here / "submission/submission.zip").stat().st_mtime_ns,
    ) == before
