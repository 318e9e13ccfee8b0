"""Devices by name and this machine; how many processes a device has GPUs for."""

import pytest
import torch

from grpo_kit.planning import machines

GIB = 2**30


@pytest.mark.parametrize(
    ("name", "near"),
    [("t5", "t4"), ("T4X2", "t4x2"), ("24", "24gb"), ("80GB", "80gb"), ("gpu", "cpu"), ("", None), ("foo", None)],
)
def test_an_unknown_device_is_one_sentence_with_the_nearest(name, near):
    with pytest.raises(ValueError, match="Unknown device") as caught:
        machines.find_device(name)
    assert str(caught.value).endswith(f"cpu. Did you mean {near}?" if near else "cpu.")


def test_named_devices_have_nominal_sizes_and_this_machine_is_measured(tmp_path):
    assert all(device.nominal and device.sold for device in machines.DEVICES.values())
    here, cpu = machines.this_device(), machines.find_device("cpu")
    assert not here.nominal and not cpu.nominal and cpu.gpu == 0 and here.host > 0
    name, free = here.disk(tmp_path)
    assert name == tmp_path.stat().st_dev and free > 0


def test_this_machine_with_gpus_is_what_the_driver_reports(monkeypatch):
    """The second card holds 2 GiB of another process; of what the first one lacks, this process holds 9."""
    card = type("Card", (), {"name": "Tesla T4", "total_memory": 99, "major": 7})
    free = {0: int(5.0 * GIB), 1: int(12.43 * GIB)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (free[index], int(14.56 * GIB)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: (9 * GIB, 0)[index])
    here = machines.this_device()
    assert (here.name, here.gpus, here.triton, here.nominal) == ("Tesla T4", 2, False, False)
    assert here.gpu == pytest.approx(14.56) and here.free == pytest.approx((14.0, 12.43))
    assert (here.usable(), here.usable(1), here.usable(2)) == pytest.approx((13.5, 11.93, 0))
    assert machines.with_processes(here, 2).usable() == pytest.approx(11.93)  # each has the least


def test_half_a_gibibyte_stays_free_of_what_the_driver_reports_free():
    assert machines.SLACK >= 0.5
    assert machines.DEVICES["t4"].usable() == pytest.approx(14.56 - machines.CONTEXT - machines.SLACK)
    assert machines.DEVICES["t4"].usable(1) == 0 < machines.DEVICES["t4x2"].usable(1)
    assert machines.Device("full", 14.56, free=(0.3,)).usable() == machines.Device("none", 0.0).usable() == 0


def test_processes_need_a_gpu_each():
    two = machines.find_device("t4x2")
    assert machines.with_processes(two, 2).processes == 2 and machines.with_processes(two, 1) == two
    with pytest.raises(ValueError, match="t4x2 has 2 GPUs, but 3 processes need one each. Use --num-processes 2."):
        machines.with_processes(two, 3)
    with pytest.raises(ValueError, match="t4 has 1 GPU, but 2 processes need one each. Use --num-processes 1."):
        machines.with_processes(machines.find_device("t4"), 2)


def test_each_process_gets_a_gpu_and_processes_on_a_cpu_share_the_machine():
    eight = machines.with_processes(machines.find_device("80gb"), 8)
    assert (eight.gpus, eight.processes, eight.gpu) == (8, 8, machines.find_device("80gb").gpu)
    assert machines.with_processes(machines.find_device("cpu"), 4).processes == 4
