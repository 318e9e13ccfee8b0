"""A training or measurement that runs out of GPU memory ends as one that does not, with more experts on the host."""

import importlib
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from grpo_kit import config
from grpo_kit.data.preparation import prepare
from grpo_kit.evaluation import evaluate
from grpo_kit.nemotron import expert_groups, experts
from grpo_kit.nemotron.decoding import one_token
from grpo_kit.nemotron.placement.tiered_layers import find_tiered_layers
from grpo_kit.policy import generation_loop
from grpo_kit.policy.load import load_policy
from grpo_kit.runs.files import write_text
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from grpo_kit.training import train
from tests.helpers.memory import MESSAGE, raise_at

SETTINGS = [
    "policy.load_in_4bit=true", "policy.experts_on_host=0.25", "data.limit=40", "data.test_size=6", "data.val_size=2",
    "grpo.max_steps=2", "grpo.num_generations=2", "grpo.per_device_train_batch_size=4", "grpo.resample_budget=0",
    "grpo.gradient_accumulation_steps=2", "grpo.max_completion_length=10", "grpo.mask_truncated_completions=false",
    "grpo.eval_steps=0", "lora.lora_dropout=0.1", "evaluation.max_completion_length=10", "evaluation.batch_size=3",
]  # fmt: skip
# What depends on the clock or on where experts lie.
PLACES = ("seconds", "time", "tokens_per_second", "host_share", "experts_on_host", "reliefs")


def spread(completion_ids, **kwargs):
    return [sum(ids) % 7 / 7 for ids in completion_ids]


def prepared(folder, *overrides):
    chosen = config.load_config(["tiny"], [*SETTINGS, *overrides])
    run = find_run("r", folder / "runs")
    prepare(chosen, run)
    return chosen, run


def results(run):
    rows = [
        {name: value for name, value in row.items() if not any(word in name for word in PLACES)}
        for row in read_lines(run.metrics)
    ]
    return rows, read_lines(run.completions), load_file(run.adapter / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    chosen, run = prepared(tmp_path_factory.mktemp("undisturbed"))
    train.train(chosen, run, [spread] * 2)
    assert not any("reliefs" in row for row in read_lines(run.metrics))
    assert len(read_lines(run.completions)) == 2 * 8  # each step is sampled once
    return results(run)


def fail_in_the_forward_pass(monkeypatch):
    """The second micro-batch of the first step, in its second layer of experts."""
    from grpo_kit.training.trl_internals.grpo import OpenGRPOTrainer

    compute, group = (
        OpenGRPOTrainer._get_per_token_logps_and_entropies,
        experts.TieredExperts.group_by_expert,
    )
    calls = []

    def compute_logps(*args, **kwargs):
        calls.append("pass")
        return compute(*args, **kwargs)

    def group_by_expert(*args):
        calls.append("layer")
        if calls.count("pass") == 3 and calls[-3:] == ["pass", "layer", "layer"]:  # the first pass is the trial's
            raise torch.OutOfMemoryError(MESSAGE)
        return group(*args)

    monkeypatch.setattr(OpenGRPOTrainer, "_get_per_token_logps_and_entropies", compute_logps)
    monkeypatch.setattr(experts.TieredExperts, "group_by_expert", group_by_expert)


def fail_in_half_a_step(monkeypatch, call):
    """AdamW finds no memory when three parameters are updated and the others are not."""
    module = importlib.import_module("torch.optim.adam")  # `torch.optim` itself has no such name
    inner, calls = module.adam, []

    def adam(*lists, **options):
        calls.append(len(lists[0]))
        if len(calls) == call:
            assert calls[-1] > 3
            inner(*[values[:3] for values in lists], **options)
            raise torch.OutOfMemoryError(MESSAGE)
        return inner(*lists, **options)

    monkeypatch.setattr(module, "adam", adam)


# Two layers have experts. The trial samples 1 and 10 tokens and takes one forward and backward pass.
WHERE = {
    "sampling": lambda patch: raise_at(patch, generation_loop, "draw_tokens", 11 + 5),
    "forward": fail_in_the_forward_pass,
    "backward": lambda patch: raise_at(patch, expert_groups.RoutedExperts, "backward", 6),
    "first step of the optimiser": lambda patch: fail_in_half_a_step(patch, 1),
    "second step of the optimiser": lambda patch: fail_in_half_a_step(patch, 3),  # it has two groups, one of them empty
    "trial, sampling": lambda patch: raise_at(patch, generation_loop, "draw_tokens", 4),
    "trial, backward": lambda patch: raise_at(patch, expert_groups.RoutedExperts, "backward", 2),
    "several times": lambda patch: raise_at(patch, expert_groups.RoutedExperts, "backward", 4, times=5),
}


@pytest.mark.slow
@pytest.mark.parametrize("where", WHERE)
def test_a_training_that_runs_out_of_memory_ends_as_one_that_does_not(tmp_path, monkeypatch, undisturbed, where):
    chosen, run = prepared(tmp_path)
    WHERE[where](monkeypatch)
    times = 5 if where == "several times" else 1
    with pytest.warns(UserWarning, match="CUDA is out of memory while") as caught:
        train.train(chosen, run, [spread] * 2)
    rows, completions, adapter = results(run)
    assert rows == undisturbed[0] and completions == undisturbed[1]
    assert all(torch.equal(value, adapter[name]) for name, value in undisturbed[2].items())
    said = [str(warning.message) for warning in caught if "out of memory" in str(warning.message)]
    metrics = read_lines(run.metrics)
    assert said == [sentence for row in metrics for sentence in row.get("reliefs", [])] and len(said) == times
    share = 0.25 + times / 16  # one of sixteen experts is more than 5 %
    assert said[-1].endswith(f"Keep that with policy.experts_on_host={math.ceil(1000 * share) / 1000}.")
    assert metrics[-1]["experts_on_host"] == share


@pytest.mark.slow
def test_a_measurement_that_runs_out_of_memory_ends_as_one_that_does_not(tmp_path, monkeypatch):
    chosen, run = prepared(tmp_path / "undisturbed")
    expected = evaluate.measure(chosen, run, "before", lambda completions, **_: [1.0] * len(completions))
    counted = run.routing.read_bytes()
    chosen, run = prepared(tmp_path / "full")
    calls = raise_at(monkeypatch, one_token.Decoder, "step", 14)  # when some prompts are answered
    with pytest.warns(
        UserWarning, match="out of memory while sampling .2.00 KiB more are needed.: 1 more of the routed"
    ):
        report = evaluate.measure(chosen, run, "before", lambda completions, **_: [1.0] * len(completions))
    assert len(calls) > 20
    assert report["problems"] == expected["problems"] and run.routing.read_bytes() == counted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (
            ["policy.load_in_4bit=false", "policy.experts_on_host=0"],
            r"are needed\). Lower",
        ),  # like the 4B: no experts to move
        (["policy.experts_on_host=1.0"], "and all routed experts lie on the host already. Lower"),
    ],
)
def test_where_no_expert_can_move_the_error_says_what_helps(tmp_path, monkeypatch, overrides, reason):
    chosen, run = prepared(tmp_path, *overrides)
    raise_at(monkeypatch, torch.Tensor, "backward", 1)
    with pytest.raises(RuntimeError, match=reason) as error:
        train.train(chosen, run, [spread] * 2)
    said = str(error.value)
    assert "tokens in training) does not fit the GPU; nothing was trained. CUDA is out of memory while training" in said
    assert said.endswith(
        "Lower grpo.per_device_train_batch_size or grpo.max_completion_length; `grpo-kit plan` says by how much."
    )
    assert read_lines(run.metrics) == [] and not run.adapter.exists()


# Placed by what the run counted

COUNTS = json.dumps({"model": "tiny", "hits": [[0, 0, 9, 9, 9, 9, 9, 9], [5, 4, 0, 0, 8, 8, 8, 8]]})


def placed(model):
    return [sorted(layer.on_host) for layer in find_tiered_layers(model).values()]


@pytest.mark.slow
def test_a_training_starts_with_the_coldest_on_the_host_also_where_the_model_is_loaded(tmp_path):
    chosen, run = prepared(tmp_path)
    policy = load_policy(chosen.policy)
    assert placed(policy[0]) == placed(train.make_trainer(chosen, run, [spread] * 2).model) == [[6, 7]] * 2
    write_text(run.routing, COUNTS)
    assert placed(train.make_trainer(chosen, run, [spread] * 2).model) == [[0, 1], [2, 3]]
    assert placed(train.make_trainer(chosen, run, [spread] * 2, policy=policy).model) == [[0, 1], [2, 3]]


@pytest.mark.slow
def test_a_training_gives_the_same_wherever_its_experts_lie_and_resumes_with_another_placement(tmp_path, undisturbed):
    chosen, run = prepared(tmp_path)
    seen = []
    train.train(chosen, run, [spread] * 2, seen.append, should_stop=lambda: len(seen) == 1)
    write_text(run.routing, COUNTS)
    train.train(chosen, run, [spread] * 2)
    rows, completions, adapter = results(run)
    assert rows == undisturbed[0] and completions == undisturbed[1]
    assert all((value - adapter[name]).abs().max() < 1e-7 for name, value in undisturbed[2].items())
    said = json.loads(run.forecast.read_text())["experts"]
    assert said.startswith(
        "4 of the routed experts (25%) lie on the host; of the rows counted before, 36% need them as"
    )
    first, second = (row["host_share"] for row in read_lines(run.metrics))
    assert first != second  # one training, two placements
