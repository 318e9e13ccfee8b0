"""Packing, checking and showing what a run has come to, on the command line."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.commands import FEW, call, everything
from tests.helpers.submissions import submission as made


@pytest.mark.slow
def test_an_adapter_from_elsewhere_is_packed_and_passes_the_check(here):
    tensors = {}
    for name, (out, inside) in {"2.mixer.q_proj": (128, 128), "0.mixer.in_proj": (460, 128)}.items():
        tensors[f"model.layers.{name}.lora_A.default.weight"] = torch.randn(40, inside)
        tensors[f"model.layers.{name}.lora_B.default.weight"] = torch.randn(out, 40)
    Path("sft").mkdir()
    Path("sft/adapter_config.json").write_text(
        json.dumps({"r": 40, "lora_alpha": 4, "base_model_name_or_path": "somewhere"})
    )
    save_file(tensors, "sft/adapter_model.safetensors")
    assert "policy.model=" in call("package", "--adapter", "sft", "--out", "z.zip", status=2)
    assert "nothing was touched" in call("package", "--adapter", "sft", "--out", "z.zip", "--dry-run")
    assert not Path("z.zip").exists()
    output = call("package", "--adapter", "sft", "--out", "new/z.zip", "policy.model=tiny")
    assert "the folder new is new" in output and Path("new/z.zip").is_file()
    output = call("package", "--adapter", "sft", "--out", "z.zip", "policy.model=tiny", "--dtype", "bfloat16")
    assert (
        "2 modules were cut to rank 32" in output and "backbone.layers.0.mixer.in_proj" in output and "z.zip" in output
    )
    assert " fatal " not in call("check", "z.zip")
    output = call(
        "package", "--adapter", "sft", "--adapter", "sft", "--out", "z.zip", "-c", "tiny", "--ranks", "pattern"
    )
    assert "2 modules were cut" in output
    assert "dtype is 'fp8'" in call(
        "package", "--adapter", "sft", "--out", "z.zip", "-c", "tiny", "--dtype", "fp8", status=2
    )
    assert not Path("runs").exists()


@pytest.mark.slow
def test_check_says_what_is_wrong_with_any_zip_and_exits_with_1(here):
    made("a.zip", {"r": 64})
    output = call("check", "a.zip", status=1)
    assert (
        " fatal " in output
        and "r is 64" in output
        and "scorer: vLLM rejects" in output
        and "must not be submitted" in output
    )
    made("b.zip")
    assert " fatal " not in call("check", "b.zip")
    assert "wrong" not in call("check", "b.zip", "policy.model=tiny")
    output = call("check", "b.zip", "policy.model=nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", status=1)
    assert "The adapter is for" in output
    Path("c.zip").write_bytes(b"no zip")
    assert "is not a zip" in call("check", "c.zip", status=1)
    assert "is not a file" in call("check", "none.zip", status=2)
    assert "not a known base model" in call("check", "b.zip", "policy.model=no/such", status=2)
    assert everything(here) == ["a.zip", "b.zip", "c.zip"]


def test_a_failed_check_is_status_1_and_shows_what_failed(here, trained, tmp_path):
    import shutil
    import zipfile

    from safetensors.torch import load_file, save_file

    _, run = trained
    shutil.copytree(run.path, here / "runs/small")
    folder = here / "changed"
    shutil.copytree(run.adapter, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({k: v * 2 for k, v in tensors.items()}, folder / "adapter_model.safetensors")
    with zipfile.ZipFile("changed.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    output = call("check", "changed.zip", "--run", "small", status=1)
    assert (
        " fatal " in output
        and "The outputs are not the trained policy's" in output
        and "error: changed.zip must not" in output
    )


@pytest.mark.slow
def test_a_report_is_a_page_and_a_picture_and_needs_a_step(here):
    call("data", "-c", "tiny", "--run", "r", *FEW)
    assert "no finished stage 'train'" in call("report", "--run", "r", status=2)
    call("train", "--run", "r", *FEW)
    output = call("report", "--run", "r")
    assert "runs/r/report.html" in output and "runs/r/report.png" in output
    assert (here / "runs/r/report.html").stat().st_size > 5000


def test_without_run_the_message_says_so_and_names_the_runs_that_exist(here):
    for name in ("mine", "other"):
        (here / "runs" / name).mkdir(parents=True)
        (here / "runs" / name / "run.json").write_text(json.dumps({"stages": {}}))
    output = call("report", status=2)
    assert "Run 'tiny' (no --run was given) has no finished stage" in output
    assert output.endswith("Runs in runs: mine, other; name one with --run.")
