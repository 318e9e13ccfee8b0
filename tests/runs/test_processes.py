"""A run on one process and on several: the same samples, the same adapter, one writer, and even division."""

import os
import socket
import time

import pytest
import torch
from safetensors.torch import load_file

from grpo_kit import config
from grpo_kit.data.preparation import prepare
from grpo_kit.policy import generation_loop
from grpo_kit.rewards.tools.loading import load_reward
from grpo_kit.runs import processes
from grpo_kit.runs.files import is_running, write_text
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from grpo_kit.runs.session import open_run
from grpo_kit.training import train
from tests.helpers.processes import start as start_python
from tests.helpers.settings import ROOT

STEPS = [
    "data.limit=600", "data.test_size=60", "data.val_size=20", "grpo.max_steps=7", "grpo.eval_steps=5",
    "grpo.per_device_train_batch_size=32", "run.report_to=[]",
]  # fmt: skip


def grpo(batch, accumulation=1, generations=8):
    return config.Grpo(
        per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, num_generations=generations
    )


@pytest.mark.parametrize(
    "batch, accumulation, count, share",
    [
        (64, 1, 1, (64, 1)),
        (64, 1, 2, (32, 1)),
        (8, 8, 2, (8, 4)),  # micro-batches stay as large as they were while there is something to accumulate
        (2, 4, 2, (2, 2)),  # a T4's step on two: a group's eight completions, four each
        (2, 4, 8, (1, 1)),
        (6, 4, 2, (6, 2)),
    ],
)
def test_a_step_divided_among_processes_keeps_its_size(batch, accumulation, count, share):
    assert processes.split_batch(grpo(batch, accumulation), count) == share


@pytest.mark.parametrize(
    "batch, accumulation, count, says",
    [
        (64, 1, 3, "3 processes do not divide the 64 completions.*Use 1, 2, 4, 8, 16, 32 or 64.*batch_size=72"),
        (2, 4, 5, "batch_size=10"),
        (8, 1, 16, "Use 1, 2, 4 or 8 processes, or grpo.per_device_train_batch_size=16"),
    ],
)
def test_a_number_that_does_not_divide_the_step_names_what_does(batch, accumulation, count, says):
    with pytest.raises(ValueError, match=says):
        processes.split_batch(grpo(batch, accumulation), count)
    larger = int(says.rpartition("=")[2])
    assert processes.split_batch(grpo(larger, accumulation), count)


@pytest.fixture
def launcher(monkeypatch):
    """Sets a launcher's variables from a text `NAME=value ...` and clears the others."""

    def set_variables(text):
        for name in processes.VARIABLES:
            monkeypatch.setenv(name, "")  # so that the test's end restores what the code removes
            monkeypatch.delenv(name)
        for name, _, value in (word.partition("=") for word in text.split()):
            monkeypatch.setenv(name, value)

    return set_variables


@pytest.mark.parametrize(
    "left",
    ["WORLD_SIZE=", "WORLD_SIZE=0", "WORLD_SIZE=1 RANK=0 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=0",
     "WORLD_SIZE=-1", "WORLD_SIZE=two", "RANK=3", "RANK=", "LOCAL_RANK=", "LOCAL_RANK=0", "LOCAL_RANK=1 RANK=1",
     "MASTER_PORT=", "MASTER_PORT=29500 MASTER_ADDR=", "LOCAL_WORLD_SIZE=2 PMI_SIZE=2", "OMPI_COMM_WORLD_SIZE=4"],
)  # fmt: skip
def test_what_an_image_leaves_in_the_environment_is_forgotten(launcher, left):
    from accelerate.state import PartialState

    launcher(left)
    assert (processes.process_count(), processes.is_first()) == (1, True)
    open_run(["tiny"])
    assert not [name for name in processes.VARIABLES if name in os.environ]
    PartialState._reset_state()
    assert PartialState(cpu=True).num_processes == 1  # accelerate does not look for partners either


@pytest.mark.parametrize(
    ("left", "says"),
    [
        ("WORLD_SIZE=2", "WORLD_SIZE is 2, so 2 processes should share this run, but RANK is ''"),
        ("WORLD_SIZE=2 RANK=2 LOCAL_RANK=0 MASTER_ADDR=h MASTER_PORT=1", "RANK is '2'"),
        ("WORLD_SIZE=2 RANK=0 LOCAL_RANK= MASTER_ADDR=h MASTER_PORT=1", "LOCAL_RANK is ''"),
        ("WORLD_SIZE=2 RANK=0 LOCAL_RANK=-1 MASTER_ADDR=h MASTER_PORT=1", "LOCAL_RANK is '-1'"),
        ("WORLD_SIZE=2 RANK=0 LOCAL_RANK=0 MASTER_ADDR=h MASTER_PORT=0", "MASTER_PORT is '0'"),
        ("WORLD_SIZE=2 RANK=0 LOCAL_RANK=0 MASTER_ADDR=h MASTER_PORT=99999", "MASTER_PORT is '99999'"),
        ("WORLD_SIZE=2 RANK=0 LOCAL_RANK=0 MASTER_ADDR= MASTER_PORT=1", "MASTER_ADDR is ''"),
    ],
)
def test_half_of_a_launchers_variables_is_one_sentence_with_the_remedy(launcher, left, says):
    launcher(left)
    with pytest.raises(ConnectionError, match=says) as caught:
        open_run(["tiny"])
    assert "Remove WORLD_SIZE from the environment" in str(caught.value) and "--num-processes 2" in str(caught.value)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_start_without_partners_says_that_it_waits_and_gives_up(launcher, monkeypatch, capfd, rank):
    import torch

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher(f"WORLD_SIZE=2 RANK={rank} LOCAL_RANK={rank} MASTER_ADDR=127.0.0.1 MASTER_PORT={port}")
    monkeypatch.setattr(processes, "PATIENCE", 1.0)
    monkeypatch.setattr(processes, "SILENCE", 0.0)
    open_run(["tiny"])  # the variables are complete
    with pytest.raises(ConnectionError, match=f"Process {rank} of 2 did not meet the others at 127.0.0.1:{port}"):
        processes.broadcast_from_first(lambda: pytest.fail("it worked without its partner"))
    assert f"Process {rank} of 2 (WORLD_SIZE=2, RANK={rank}) waits for the others" in (
        printed := capfd.readouterr().err
    )
    assert len(printed.splitlines()) == 1  # and no warnings of torch's
    assert not torch.distributed.is_initialized()


def test_a_single_process_exchanges_nothing_and_gets_the_whole_batch():
    assert (processes.process_count(), processes.process_rank(), processes.is_first()) == (1, 0, True)
    assert processes.all_gather((1, 2)) == [1, 2] and processes.broadcast_from_first(lambda: 3) == 3
    assert list(range(10))[processes.local_slice(10)] == list(range(10))


def test_parts_in_order_make_the_whole(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    parts = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        parts += list(range(12))[processes.local_slice(12)]
    assert parts == list(range(12))


@pytest.mark.parametrize("count", range(1, 13))
def test_groups_are_added_until_the_processes_divide_them_and_no_more(monkeypatch, count):
    monkeypatch.setenv("WORLD_SIZE", str(count))
    for groups in range(1, 20):
        for size in (2, 4, 6, 8):
            expected = next(more for more in range(count + 1) if (groups + more) * size % count == 0)
            assert processes.groups_to_pad(groups, size) == expected


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_a_part_samples_the_same_tokens_as_in_the_whole_batch(parts):
    p = torch.rand(6, 1000, generator=torch.Generator().manual_seed(1)).softmax(-1)
    torch.manual_seed(5)
    expected = [torch.multinomial(p, 1).squeeze(1) for _ in range(20)]
    drawn = []
    for part in range(parts):
        torch.manual_seed(5)
        size = 6 // parts
        at = (part * size, 6)
        drawn.append([generation_loop.draw_tokens(p[at[0] : at[0] + size], at) for _ in range(20)])
    for step in range(20):
        assert torch.equal(torch.cat([part[step] for part in drawn]), expected[step])


def test_a_second_gpu_with_its_own_process_does_not_take_experts(monkeypatch):
    from grpo_kit.policy.load import overflow_device

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="experts_overflow is cuda:1.*2 processes.*Set it to host"):
        overflow_device(config.Policy(experts_overflow="cuda:1"))


def started(run, count):
    """`grpo-kit train` as a user starts it on several processes; the launcher and the processes start afresh."""
    command = ["-W", "ignore", "-m", "grpo_kit", "train", "--run", run.name, f"--num-processes={count}"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "GRPO_KIT_ROOT": str(run.root), "OMP_NUM_THREADS": "1"}
    return start_python(command, env)


def started_ranks(run, count):
    """The processes alone, as a launcher starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = os.pathsep.join(filter(None, [os.environ.get("GRPO_KIT_SITE"), str(ROOT)]))
    env = os.environ | {"PYTHONPATH": folders, "GRPO_KIT_ROOT": str(run.root), "OMP_NUM_THREADS": "1"}
    env |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    command = ["-W", "ignore", "-m", "grpo_kit", "train", "--run", run.name]
    ranks = [env | {"MASTER_PORT": str(port), "RANK": str(n), "LOCAL_RANK": str(n)} for n in range(count)]
    return [start_python(command, rank) for rank in ranks]


def prepared(folder, *more):
    chosen = config.load_config(["tiny"], [*STEPS, *more])
    run = find_run("m", folder)
    prepare(chosen, run)
    write_text(run.config, config.to_yaml(chosen))
    return chosen, run


def figures(run):
    clock = ("second", "time")
    return [{k: v for k, v in r.items() if not any(c in k for c in clock)} for r in read_lines(run.metrics)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, math_reward):
    chosen, run = prepared(tmp_path_factory.mktemp("alone"))
    train.train(chosen, run, [load_reward(spec) for spec in chosen.grpo.reward_funcs])
    return run


def apart(a, b):
    a, b = (load_file(run.adapter / "adapter_model.safetensors") for run in (a, b))
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.slow
def test_two_processes_give_the_same_result_as_one(alone, tmp_path):
    chosen, run = prepared(tmp_path)
    child = started(run, 2)
    output, _ = child.communicate(timeout=300)
    assert child.returncode == 0, output
    assert output.count("train    done in") == 1 and output.count("7 steps, reward") == 1  # the first one shows
    assert run.completions.read_text() == alone.completions.read_text()
    assert [row["step"] for row in figures(run)] == list(range(1, 8))
    for one, two in zip(figures(alone), figures(run), strict=True):
        assert one.keys() == two.keys()
        for name in (
            "reward",
            "groups/with_gradient",
            "groups/sampled",
            "completions/mean_length",
            "held_out",
            "num_tokens",
        ):
            assert one.get(name) == pytest.approx(two.get(name), abs=1e-6), name
    assert apart(alone, run) < 1e-5  # one in ten thousand of what was learned, which the largest entry shows
    assert max(t.abs().max() for t in load_file(run.adapter / "adapter_model.safetensors").values()) > 0.01


@pytest.mark.slow
def test_a_run_killed_on_two_processes_resumes_on_one(alone, tmp_path):
    chosen, run = prepared(tmp_path, "grpo.save_steps=2")
    killed = started_ranks(run, 2)
    while killed[0].poll() is None and not (run.path / "checkpoints/step_4").is_dir():
        time.sleep(0.05)
    assert killed[0].poll() is None, killed[0].stdout.read()
    for process in killed:
        process.kill()
    while any(is_running(process.pid, time.time()) for process in killed):  # until its memory is freed
        time.sleep(0.05)
    assert "train" not in run.stages()
    assert [row["step"] for row in figures(run)][:4] == [1, 2, 3, 4]
    train.train(chosen, run, [load_reward(spec) for spec in chosen.grpo.reward_funcs])
    assert [row["step"] for row in figures(run)] == list(range(1, 8)) and apart(alone, run) < 1e-5
    assert run.completions.read_text() == alone.completions.read_text()


@pytest.mark.slow
def test_a_run_started_on_one_process_resumes_on_two(alone, tmp_path):
    chosen, run = prepared(tmp_path)
    rewards, seen = [load_reward(spec) for spec in chosen.grpo.reward_funcs], []
    train.train(chosen, run, rewards, seen.append, should_stop=lambda: len(seen) == 5)
    for child in started_ranks(run, 2):
        output, _ = child.communicate(timeout=300)
        assert child.returncode == 0, output
    assert [row["step"] for row in figures(run)] == list(range(1, 8)) and apart(alone, run) < 1e-5
    assert run.completions.read_text() == alone.completions.read_text()


@pytest.mark.slow
def test_a_process_count_that_does_not_divide_the_step_is_one_sentence(alone):
    child = started(alone, 7)
    output, _ = child.communicate(timeout=60)
    assert child.returncode == 2 and "7 processes do not divide" in output and "Traceback" not in output


FULL = """
import os, torch, trl
compute, calls = trl.GRPOTrainer.compute_loss, []

def compute_loss(*args, **kwargs):
    calls.append(1)
    if os.environ["RANK"] == "1" and len(calls) == 3:  # the first is the trial of the longest step
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 KiB. GPU 1 has")
    return compute(*args, **kwargs)

trl.GRPOTrainer.compute_loss = compute_loss
"""


@pytest.mark.slow
def test_where_one_of_two_processes_runs_out_of_memory_both_end_and_say_why(tmp_path, monkeypatch):
    chosen, run = prepared(tmp_path / "runs", "policy.load_in_4bit=true", "policy.experts_on_host=0.25")
    (tmp_path / "sitecustomize.py").write_text(FULL)
    monkeypatch.setenv("GRPO_KIT_SITE", str(tmp_path))
    first, second = started_ranks(run, 2)
    said, _ = second.communicate(timeout=120)
    assert second.returncode == 1 and "error: CUDA is out of memory while training" in said, said
    assert "Several processes move no experts: set policy.experts_on_host=0.313." in said
    first.terminate()  # as the launcher does; what it waits for will not come
    first.wait(timeout=60)
    assert first.returncode and "train" not in run.stages() and not run.adapter.exists()
