"""`plan` and `env` say what fits this machine or another, and what it lacks."""

import re

import pytest

from tests.helpers.commands import call, everything


@pytest.mark.slow
def test_a_plan_says_what_fits_and_what_does_not(here, monkeypatch):
    from grpo_kit.planning import plan

    monkeypatch.setattr(plan, "largest_setting", lambda *_: 8)  # a search that takes most of the time
    output = call("plan", "-c", "tiny", "--device", "t4")
    assert "It fits t4" in output and re.search(r"largest grpo\.max_completion_length[^:]*: 8 ", output)
    output = call("plan", "-c", "t4", "--device", "cpu", "policy.load_in_4bit=false", status=1)
    assert "It does not fit cpu" in output and "time" not in output
    assert "time: no bandwidth of cpu was measured" in call("plan", "-c", "tiny", "--device", "cpu")
    assert "two ways" not in output
    assert everything(here) == []


@pytest.mark.slow
def test_a_plan_for_two_gpus_compares_both_layouts_and_plans_one_process_of_two(here, monkeypatch):
    from grpo_kit.planning import plan

    monkeypatch.setattr(plan, "largest_setting", lambda *_: 0)  # a search that takes most of the time
    output = call("plan", "-c", "t4x2", "--device", "t4x2")
    assert "two ways" in output and "one copy each" in output and "9.92" in output
    output = call("plan", "-c", "t4x2", "--device", "t4x2", "--num-processes", "2")
    assert "one of 2 processes" in output and "9.92 GiB for 2 processes" in output and "two ways" in output
    output = call("plan", "-c", "t4", "--device", "t4", "--num-processes", "2", status=2)
    assert "t4 has 1 GPU" in output and "Traceback" not in output


@pytest.mark.slow
def test_without_a_device_the_plan_measures_this_machine(here, monkeypatch):
    from grpo_kit.planning import plan

    monkeypatch.setattr(plan, "largest_setting", lambda *_: 0)  # a search that takes most of the time
    output = call("plan", "-c", "tiny")
    assert "It fits this machine" in output and re.search(r"TFLOPS, measured here; the host's seconds measured", output)
    assert re.search(r"sampling, a step .*training, a step .*evaluation, one of two", output)
    time = r"[\d.]+( to [\d.]+)? (s|min|h)"  # one figure where the least and the most look the same
    words = rf"30 steps take {time} \(the larger with every replacement\), the evaluations before and after {time}"
    assert re.search(words, output)
    assert re.search(rf"500 steps take {time} ", call("plan", "-c", "tiny", "grpo.max_steps=500"))


@pytest.mark.slow
def test_env_says_what_room_a_preset_needs_on_the_disk(here, monkeypatch):
    import shutil

    usage, nf4 = shutil.disk_usage, here / "large"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=int(18.6 * 2**30)))
    output = call("env")  # the embedded policy, as `auto` takes here
    assert "disk for tiny" in output and "nothing to write" in output
    (here / "mine.yaml").write_text(f"policy: {{nf4_folder: {nf4}}}\n")
    output = call("env", "-c", "t4", "-c", "mine.yaml", status=1)
    assert "disk for t4 mine.yaml" in output and "20.8 GiB needed, 18.6 GiB free at" in output
    assert "free 2.3 GiB at" in output and "or set policy.nf4_folder to a folder on a larger disk" in output
    output = call("env", "-c", "t4-4b")
    assert "7.7 GiB needed, 18.6 GiB free" in output and "policy.nf4_folder" not in output


def test_env_reports_this_machine_as_usable(here):
    output = call("env")
    assert "transformers" in output and "embedded policy" in output and "make_tiny_policy.py" not in output


def test_env_names_each_problem(here, monkeypatch):
    from grpo_kit.nemotron import tiny

    monkeypatch.setitem(tiny.SHA256, "tiny", "other")
    assert "scripts/make_tiny_policy.py" in call("env", status=1)
