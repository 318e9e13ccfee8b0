"""The verdict, the change it proposes, and the largest settings that fit."""

import itertools
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from grpo_kit import config
from grpo_kit.planning import machines
from grpo_kit.planning import plan as plan_module
from grpo_kit.planning.fit import assess_fit
from grpo_kit.planning.model_size import Architecture
from grpo_kit.planning.plan import KEYS, changes_for, describe_largest, plan, vary_setting
from grpo_kit.runs import processes
from tests.helpers.machines import FULL_T4, GIB, L4, P100, T4, machine, write_nf4, write_source
from tests.helpers.plans import plan_for, plan_shared

ALL_HERE = "policy.experts_on_host=0"


COLAB, KAGGLE = {"host": 11.3, "disks": {"/": 70.0}}, {"host": 29.0, "disks": {"/": 18.6}}
ON_HOST, ON_SECOND = (
    f"with 1,035 of 2,944 routed experts on the {place} (4.96 GiB)." for place in ("host", "second GPU")
)


# What is there: "nf4", the finished checkpoint, or "source", the published one as a mount. Then GiB that the GPU must
# hold and may fill, that the disk must take, and to download.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "device", "there", "verdict", "gpu", "usable", "disk", "download"),
    [
        ("t4", machine(T4, **COLAB), None, f"It fits Tesla T4 {ON_HOST}", 13.88, 13.93, 20.83, 58.82),
        ("t4", machine(T4, **COLAB), "nf4", f"It fits Tesla T4 {ON_HOST}", 13.88, 13.93, 0, 0),
        ("t4", machine(FULL_T4, host=11.3, disks={"/": 2.0}), "nf4", f"It fits Tesla T4 {ON_HOST}", 13.88, 13.93, 0, 0),
        ("t4x2", machine(T4, T4, **KAGGLE), None,
         "It does not fit Tesla T4, whose disk has 18.6 of 20.8 GiB needed; free 2.3 GiB at FOLDER, or set "
         "policy.nf4_folder to a folder on a larger disk.", 13.88, 13.93, 20.83, 58.82),
        ("t4x2", machine(T4, T4, **KAGGLE), "source", f"It fits Tesla T4 {ON_SECOND}", 13.88, 13.93, 16.17, 0),
        ("24gb", machine(L4, host=50.0, disks={"/": 180.0}), None,
         "It fits NVIDIA L4 with 46 of 2,944 routed experts on the host (0.22 GiB); set policy.experts_on_host=0.016.",
         21.23, 21.30, 20.83, 58.82),
        ("t4", machine(P100, host=29.0, disks={"/": 60.0}), None,
         "It fits Tesla P100-PCIE-16GB with 782 of 2,944 routed experts on the host (3.75 GiB); "
         "set policy.experts_on_host=0.266.", 15.09, 15.10, 20.83, 58.82),
        ("t4", machine(host=14.0, disks={"/": 200.0}), None,
         "It does not fit this machine, whose host has 14.0 of 18.6 GiB needed, and no single setting changes that; "
         "use t4.", None, None, 20.83, 58.82),
    ],
    ids=["Colab", "Colab, NF4", "Colab, loaded", "Kaggle", "Kaggle, mounted", "L4", "P100", "laptop"],
)  # fmt: skip
def test_eight_machines(tmp_path, monkeypatch, preset, device, there, verdict, gpu, usable, disk, download):
    monkeypatch.setenv("GRPO_KIT_ROOT", str(tmp_path / "runs"))
    overrides = {"nf4": ["policy.nf4_folder={}"], "source": ["policy.model={}"]}.get(there, [])
    if there:
        overrides = [overrides[0].format({"nf4": write_nf4, "source": write_source}[there](tmp_path / there))]
    result = plan(config.load_config([preset], overrides), device, search=False)
    assert result.verdict == verdict.replace("FOLDER", str(tmp_path))

    def gib(place, at=0):
        return result.needs[place][at] / GIB if place in result.needs else None

    assert (gib("GPU"), gib("GPU", 1)) == (gpu and pytest.approx(gpu, abs=0.02), usable and pytest.approx(usable))
    assert (gib("disk") or 0) == pytest.approx(disk, abs=0.01)
    assert result.storage.download / GIB == pytest.approx(download, abs=0.01)


@pytest.mark.slow
def test_the_advice_is_never_the_machine_one_is_on():
    """A T4 with 4 GiB free, a T4 with too little host memory, a T4 that is too small, and the same by name."""
    large = ["policy.load_in_4bit=false", "grpo.max_completion_length=4096"]
    taken, starved = machine(T4._replace(free=4 * GIB), **COLAB), machine(T4, host=6.0, disks={"/": 70.0})
    ends = {
        taken: ([], "; end the other processes that hold 10.4 GiB of it."),
        starved: ([], "and no single setting changes that; use a machine with that much host memory."),
        machine(L4, host=6.0, disks={"/": 70.0}): (
            [], "and no single setting changes that; use a machine with that much host memory."
        ),
        machine(T4, **COLAB): (large, "and no single setting changes that; use 80gb."),
        machines.DEVICES["t4"]: (large, "and no single setting changes that; use 80gb."),
    }  # fmt: skip
    for device, (overrides, end) in ends.items():
        verdict = plan(config.load_config(["t4"], overrides), device, search=False).verdict
        assert verdict.startswith("It does not fit") and verdict.endswith(end)
    h100 = machines.Device("NVIDIA H100 80GB HBM3", 79.1, 900.0, nominal=False)
    verdict = plan(config.load_config(["t4"]), h100, prompt_tokens=300_000, search=False).verdict
    assert verdict.endswith("and no single setting changes that; use a larger machine.")


def test_what_is_needed_never_looks_like_what_is_there():
    """A host that lacks 3 MiB, and one that lacks 1 byte; a disk that lacks 1 MiB: freeing the GiB named is enough."""
    config_, need = config.load_config(["t4"]), plan_for("t4").needs["host"].nbytes
    assert need / GIB == pytest.approx(7.937, abs=0.002)
    for missing, words in ((3 * 2**20, r"7\.93\d? of 7\.9[34]\d?"), (1, r"7\.\d{9} of 7\.\d{9}")):
        verdict = plan(config_, replace(machines.DEVICES["t4"], host=(need - missing) / GIB), search=False).verdict
        ((has, needed),) = re.findall(r"whose host has ([\d.]+) of ([\d.]+) GiB needed", verdict)
        assert float(has) < float(needed) and re.fullmatch(words, f"{has} of {needed}")
    needed = assess_fit(Architecture.of(config_.policy), config_, machine(T4, **COLAB), 256).storage.needed
    full = machine(T4, host=11.3, disks={"/": needed / GIB - 1 / 1024})
    assert "; free 0.1 GiB at " in plan(config_, full, search=False).verdict


@pytest.mark.slow
def test_a_retired_card_is_never_advised_and_can_be_planned_for(monkeypatch):
    assert plan_for("t4-4b", "p100").fits and "p100" in machines.RETIRED
    small = replace(machines.DEVICES["t4"], name="small", gpu=8.0)
    monkeypatch.setattr(plan_module, "RETIRED", ("24gb",))  # which would be the advice
    verdict = plan(config.load_config(["t4-4b"], ["policy.load_in_4bit=false"]), small, search=False).verdict
    assert verdict.endswith(", and no single setting changes that; use 40gb.")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "device"), [("t4", "t4"), ("t4x2", "t4x2"), ("24gb", "24gb"), ("80gb", "80gb"), ("tiny", "cpu")]
)
def test_a_preset_fits_its_device_as_it_is_configured(preset, device):
    result = plan_for(preset, device)
    assert result.fits and "set" not in result.verdict


# preset, device, configured, the setting that the verdict advises (None: nothing)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "device", "configured", "ending"),
    [
        ("t4", "t4", [ALL_HERE], "; set policy.experts_on_host=0.352."),
        ("t4", "t4", ["policy.experts_on_host=0.351"], "(4.96 GiB)."),  # as good as
        ("t4", "t4x2", [], "; set policy.experts_overflow=cuda:1."),
        ("t4x2", "t4", [], "; set policy.experts_overflow=host."),
        ("t4x2", "t4x2", [ALL_HERE, "policy.experts_overflow=host"],
         "; set policy.experts_on_host=0.352 policy.experts_overflow=cuda:1."),
        ("t4", "80gb", [ALL_HERE, "policy.experts_overflow=cuda:1"], "in one place."),  # nothing overflows
        ("t4", "24gb", [], "; set policy.experts_on_host=0.000."),
    ],
)  # fmt: skip
def test_the_verdict_says_which_setting_to_change(preset, device, configured, ending):
    assert plan_for(preset, device, *configured).verdict.endswith(ending)


@pytest.mark.slow
def test_a_plan_that_fails_names_a_change_that_works():
    large = ["grpo.per_device_train_batch_size=16", "grpo.gradient_accumulation_steps=1"]
    result = plan_for("t4", "t4", *large)
    assert "first set grpo.per_device_train_batch_size=4 grpo.gradient_accumulation_steps=4." in result.verdict
    assert plan_for("t4", "t4", "grpo.per_device_train_batch_size=4", "grpo.gradient_accumulation_steps=4").fits
    result = plan_for("t4", "t4", "grpo.per_device_train_batch_size=16")  # of 64 completions none are sampled at once
    assert "first set grpo.per_device_train_batch_size=6 (24 instead of 64 completions a step)." in result.verdict
    assert plan_for("t4", "t4", "grpo.per_device_train_batch_size=6").fits
    micro = ["grpo.per_device_train_batch_size=4", "grpo.gradient_accumulation_steps=2"]
    result = plan_for("t4", "24gb", "grpo.gradient_checkpointing=false", *micro)
    assert "first set grpo.gradient_checkpointing=true." in result.verdict
    assert "first set policy.load_in_4bit=true." in plan_for("t4", "24gb", "policy.load_in_4bit=false").verdict
    assert "use 80gb." in plan_for("t4", "t4", "policy.load_in_4bit=false", "grpo.max_completion_length=4096").verdict


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "device"), [("t4", "t4"), ("t4x2", "t4x2"), ("80gb", "24gb")])
def test_the_largest_value_fits_and_the_next_one_does_not(preset, device):
    settings, where = config.load_config([preset]), machines.find_device(device)
    result = plan(settings, where)
    for key in KEYS:
        largest = result.largest[key]
        steps = itertools.count(1)  # the number of the largest value among the possible ones, 0 where none fits
        m = next(m for m in steps if getattr(vary_setting(settings, key, m).grpo, key) == largest) if largest else 0
        model = Architecture.of(settings.policy)
        fits = [assess_fit(model, vary_setting(settings, key, n), where, 256).fits for n in (m, m + 1) if n]
        assert fits == ([True, False] if m else [False]), key


@pytest.mark.slow
def test_a_plan_loads_no_library_that_it_does_not_need():
    code = """
import sys
from grpo_kit.cli.main import app
from typer.testing import CliRunner
assert CliRunner().invoke(app, ["plan", "-c", "t4", "--device", "80gb"]).exit_code == 0
sys.exit(" ".join({"bitsandbytes", "peft", "trl", "datasets", "pandas", "matplotlib"} & set(sys.modules)) or 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_settings_that_are_varied_are_valid_ones():
    for overrides in ([], ["grpo.num_generations=4"], ["grpo.per_device_train_batch_size=8"]):
        settings = config.load_config(["t4"], overrides)
        for key in KEYS:
            values = [getattr(vary_setting(settings, key, m).grpo, key) for m in range(1, 30)]
            assert values == sorted(values) and values[0] >= 1


# preset, key, its largest value; the sentence
@pytest.mark.parametrize(
    ("preset", "key", "value", "sentence"),
    [
        ("t4", "num_generations", 52, "fits, with grpo.gradient_accumulation_steps=26, other settings unchanged: 52"),
        ("t4", "num_generations", 8, "fits, other settings unchanged: 8"),
        ("24gb", "num_generations", 20, "fits, with grpo.gradient_accumulation_steps=5, other settings unchanged: 20"),
        ("t4", "per_device_train_batch_size", 6, "fits, other settings unchanged: 6 (24 completions a step)"),
        ("t4", "max_completion_length", 2688, "fits, other settings unchanged: 2688"),
        ("t4", "num_generations", 0, "fits, other settings unchanged: none"),
    ],
)  # fmt: skip
def test_the_largest_value_is_said_with_what_has_to_be_set_with_it(preset, key, value, sentence):
    settings = config.load_config([preset])
    assert describe_largest(settings, key, value) == f"largest grpo.{key} that {sentence}"
    if value:
        words = [f"grpo.{name}={n}" for name, n in changes_for(settings, key, value).items()]
        grpo = config.load_config([preset], words).grpo  # can be set
        assert grpo.per_device_train_batch_size * grpo.gradient_accumulation_steps % grpo.num_generations == 0


def test_group_size_keeps_the_prompts_of_a_step():
    settings = config.load_config(["t4"], ["grpo.gradient_accumulation_steps=8"])  # 2 x 8 completions: 2 prompts
    varied = vary_setting(settings, "num_generations", 12)
    assert (varied.grpo.num_generations, varied.grpo.gradient_accumulation_steps) == (12, 12)


def test_a_configuration_that_cannot_be_planned_raises_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder here, and the Hub did not"):
        plan_for("tiny", "cpu", "policy.model=no/such-model")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="only a Nemotron-H can be planned"):
        plan_for("tiny", "cpu", f"policy.model={tmp_path}")
    with pytest.raises(ValueError, match="prompt_tokens is 0"):
        plan_for("tiny", "cpu", prompt_tokens=0)


def test_a_host_too_small_for_all_processes_advises_one_process():
    two = plan(config.load_config(["t4x2"]), replace(machines.find_device("t4x2"), host=9.0, processes=2), search=False)
    assert not two.fits and "whose host has 9.0 of 13.9 GiB needed; start one process." in two.verdict
    assert plan(two.config, replace(two.device, processes=1), search=False).fits


def test_a_second_gpu_with_its_own_process_cannot_hold_experts():
    assert plan_shared(2).verdict.endswith("(9.92 GiB for 2 processes); set policy.experts_overflow=host.")
    # where nothing is left over, the run would still be refused with that setting
    assert "policy.experts_overflow=host" in plan_shared(2, "t4x2", "80gb").verdict


def test_the_largest_value_for_several_processes_divides_among_them():
    settings, where = config.load_config(["t4x2"]), replace(machines.find_device("t4x2"), gpus=3, processes=3)
    with pytest.raises(ValueError, match="3 processes do not divide the 8 completions"):
        plan(settings, where, search=False)
    for key in KEYS[:2]:
        for m in range(1, 20):
            varied = vary_setting(settings, key, m, 3).grpo
            assert processes.split_batch(varied, 3)
            step = varied.per_device_train_batch_size * varied.gradient_accumulation_steps
            assert step % varied.num_generations == 0


def test_the_device_is_given_by_name_or_is_this_machine():
    tiny = config.load_config(["tiny"])
    assert plan(tiny, "t4x2", search=False).device == machines.find_device("t4x2")
    assert plan(tiny, search=False).device.name == machines.this_device().name
    with pytest.raises(ValueError, match="t5"):
        plan(tiny, "t5")
