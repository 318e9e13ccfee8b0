"""The load of the experts: counted by hand, compared, worded, and read from files that may be damaged."""

import json
import math

import pytest
import torch

from grpo_kit import config
from grpo_kit.adapters import lora
from grpo_kit.nemotron.placement.tiered_layers import find_tiered_layers
from grpo_kit.planning import calibrate, expert_load
from grpo_kit.policy.load import load_policy
from grpo_kit.policy.routing_counts import read_routing_counts
from grpo_kit.runs.files import write_text
from grpo_kit.runs.run import find_run
from tests.helpers.experts import IDS, load_tiered, load_with_expert_lora

TEXTS = [IDS[0].tolist(), IDS[1, :7].tolist(), IDS[2, :23].tolist()]


class Router(torch.nn.Module):
    """Token t chooses experts t and t + 1 of four; it has the name of transformers' router, by which it is found."""

    num_experts = 4

    def forward(self, ids):
        tokens = ids.flatten()
        return None, None, torch.stack([tokens, tokens + 1], -1) % 4


Router.__name__ = "NemotronHTopkRouter"


class Policy(torch.nn.Module):
    """A policy of two routers, the second of which reads every token as the one after it."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleDict({"1": torch.nn.ModuleDict({"gate": Router()})})
        self.layers["5"] = torch.nn.ModuleDict({"gate": Router()})
        self.read = []

    def forward(self, ids, use_cache, logits_to_keep):
        assert (use_cache, logits_to_keep) == (False, 1)
        self.read.append(ids.tolist())
        self.layers["1"]["gate"](ids)
        self.layers["5"]["gate"](ids + 1)


def test_choices_are_recorded_token_by_token_without_the_padding(monkeypatch):
    policy = Policy()
    choices = expert_load.record_choices(policy, [[2, 3, 2], [1]])
    assert policy.read == [[[1, 0, 0], [2, 3, 2]]]  # short ones first, padded behind
    assert choices.tolist() == [
        [[1, 2], [2, 3], [3, 0], [2, 3]],
        [[2, 3], [3, 0], [0, 1], [3, 0]],
    ]
    assert expert_load.count_choices(choices, 4).tolist() == [[1, 1, 3, 3], [3, 1, 1, 3]]
    assert expert_load.number_layers(policy) == [1, 5]
    policy.read.clear()
    monkeypatch.setattr(expert_load, "TOKENS_AT_ONCE", 4)
    assert expert_load.record_choices(policy, [[2, 3, 2], [1], [2, 3]]).shape == (2, 6, 2)
    assert policy.read == [[[1, 0], [2, 3]], [[2, 3, 2]]]  # 3 texts of 3 tokens with padding are more than 4


def test_no_hook_stays_where_reading_fails():
    policy = Policy()
    policy.layers["5"]["gate"].forward = lambda ids: {}["a fault"]
    with pytest.raises(KeyError, match="a fault"):
        expert_load.record_choices(policy, [[1]])
    assert not any(module._forward_hooks for module in policy.modules())


@pytest.mark.parametrize("kind", ["transformers", "tiered"])
def test_reading_together_or_alone_or_counting_rows_gives_the_same_choices(kind, tiny_policy):
    model = tiny_policy[0] if kind == "transformers" else load_tiered(0.5)[0]
    choices = expert_load.record_choices(model, TEXTS)
    assert choices.shape == (2, 40 + 7 + 23, 2) and choices.dtype == torch.int16
    alone = [expert_load.record_choices(model, [text]) for text in sorted(TEXTS, key=len)]
    assert expert_load.compare_choices(torch.cat(alone, 1), choices) == ([0.0, 0.0], [1.0, 1.0])
    if kind == "tiered":
        _, hits = calibrate.count_hits(model, lambda: [model(torch.tensor([text])) for text in TEXTS])
        assert hits.tolist() == expert_load.count_choices(choices, 8).tolist()


def test_a_load_is_even_or_all_on_one_expert_or_nothing():
    even, one, half, none = expert_load.describe_layers([[3, 3, 3, 3], [0, 12, 0, 0], [6, 6, 0, 0], [0, 0, 0, 0]])
    assert even == (0.0, 1.0, 0) and one == (3.0, 0.0, 3) and half == (1.0, 0.5, 2) and none == (-1.0, 0.0, 4)
    (uneven,) = expert_load.describe_layers([[1, 3]])
    assert uneven.max_violation == 0.5
    assert uneven.entropy == pytest.approx(-(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75)))


def test_a_choice_is_a_set():
    before = torch.tensor([[[0, 1], [2, 3], [4, 5]], [[0, 1], [2, 3], [4, 5]]])
    after = torch.tensor([[[1, 0], [3, 2], [5, 4]], [[0, 1], [3, 6], [7, 6]]])
    assert expert_load.compare_choices(before, after) == ([0.0, pytest.approx(2 / 3)], [1.0, pytest.approx(0.5)])


def test_a_lora_before_the_router_changes_choices_and_a_fresh_one_none():
    model, _ = load_policy(config.Policy())
    base = expert_load.record_choices(model, TEXTS)
    model = lora.add_lora(model, config.Lora(r=4, lora_alpha=8, target_modules=["in_proj", "out_proj"]), seed=1)
    assert expert_load.compare_choices(base, expert_load.record_choices(model, TEXTS)) == ([0.0] * 2, [1.0] * 2)
    generator = torch.Generator().manual_seed(2)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.data = torch.randn(value.shape, generator=generator) * 0.05
    changed, overlap = expert_load.compare_choices(base, expert_load.record_choices(model, TEXTS))
    assert all(0 < share < 1 for share in changed + overlap)
    with model.disable_adapter():
        assert torch.equal(expert_load.record_choices(model, TEXTS), base)


def test_lora_pairs_that_no_gradient_reached_are_counted(tiny_policy):
    model = load_with_expert_lora()
    assert expert_load.count_zero_pairs(model) == (0, 32)  # 2 layers of 8 experts, up and down
    for name, value in model.named_parameters():
        if "lora_B" in name and (".experts.3.up_proj" in name or ".experts.5." in name):
            value.data.zero_()
    assert expert_load.count_zero_pairs(model) == (6, 32)
    assert expert_load.count_zero_pairs(tiny_policy[0]) == (0, 0)


LOAD = {
    "model": "tiny", "stage": "after", "prompts": 2, "tokens": 1000, "top_k": 2, "layers": [1, 3],
    "hits_before": [[400, 400, 300, 300, 300, 200, 50, 50], [250, 250, 250, 250, 250, 250, 250, 250]],
    "hits": [[400, 300, 300, 300, 300, 0, 350, 50], [250, 250, 250, 250, 250, 250, 250, 250]],
    "changed": [0.25, 0.0], "overlap": [0.875, 1.0], "on_host": [[6, 7], []], "lora_pairs": 0, "lora_pairs_zero": 0,
}  # fmt: skip


def changed(**more):
    return LOAD | more


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "after_experts.json"

    def write(content):
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def test_an_expert_on_the_slower_tier_that_became_hot_rings(written):
    path = written(LOAD)
    load = expert_load.read_load(path)
    assert expert_load.find_hot(load) == [(1, 6)]  # 50 of a mean of 250 before, 350 after; expert 7 stayed cold
    assert expert_load.describe_load(load, path) == [
        "Load of the experts over 2 fixed texts (1,000 tokens; 2 layers of 8 experts, 2 a token): the fullest has 1.60 "
        "times its layer's mean before and 1.60 after; entropy 0.960 and 0.947 of that of an even load; 0 and 1 of 16 "
        "unused.",
        "For 12.5% of the tokens a layer's choice changed; 93.8% of the chosen experts stayed.",
        "Alarm: 1 of the experts on the slower tier became hot (expert 6 of layer 1): 2.5% of the rows needed that "
        "tier before training, 10.0% do now, and 1.2% would in a placement by these counts. Set "
        f"policy.routing={path} to use it.",
    ]


@pytest.mark.parametrize(
    "load",
    [
        changed(on_host=[[], []]),  # nothing lies there
        changed(on_host=[[5, 7], []]),  # what lies there stayed cold
        changed(on_host=[[0, 1], []]),  # it was hot before training
        changed(hits=LOAD["hits_before"]),  # nothing changed
        changed(hits=[[249, 251] * 4] * 2, hits_before=[[250] * 8] * 2, on_host=[[1], []]),  # nothing to gain
    ],
)
def test_otherwise_no_alarm_rings(load):
    assert expert_load.find_hot(load) == [] and "Alarm" not in " ".join(expert_load.describe_load(load, "x"))


def test_many_hot_experts_are_counted_and_zero_pairs_told():
    load = changed(
        hits=[[0, 0, 0, 400, 400, 400, 400, 400]] * 2, hits_before=[[600, 700, 700, 0, 0, 0, 0, 0]] * 2,
        on_host=[[3, 4, 5], [5, 6, 7]], lora_pairs=32, lora_pairs_zero=6,
    )  # fmt: skip
    zero, alarm = expert_load.describe_load(load, "x")[2:]
    reason = "no token that counted in the loss chose their expert"
    assert zero == f"The experts have 32 LoRA pairs; 6 of them are still zero: {reason}."
    reached = changed(lora_pairs=32, on_host=[[], []])
    assert expert_load.describe_load(reached, "x")[2:] == [
        "The experts have 32 LoRA pairs; a gradient has reached each of them."
    ]
    named = "3 of layer 1, 4 of layer 1, 5 of layer 1, 5 of layer 3 and 2 more"
    assert alarm.startswith(f"Alarm: 6 of the experts on the slower tier became hot (expert {named}): 0.0% of the rows")


def test_the_file_is_a_placement(written):
    path = written(changed(hits=[[9, 9, 0, 9, 9, 9, 9, 9], [9, 9, 9, 9, 9, 0, 9, 1]]))
    policy = config.Policy(load_in_4bit=True, experts_on_host=3 / 16, routing=str(path))
    model, _ = load_policy(policy)
    layers = find_tiered_layers(model).values()
    assert [sorted(layer.on_host) for layer in layers] == [[2], [5, 7]]
    assert read_routing_counts(policy).tolist() == json.loads(path.read_text())["hits"]


DAMAGED = [
    ("", "it is empty"),
    ("[]", "it is a list, not a JSON object"),
    ("{}", "it lacks 'model'"),
    ("[" * 100_000, "it is nested too deeply"),
    (changed(hits=[]), "its counts are no tables of layers and experts"),
    (changed(hits=[[]], hits_before=[[]]), "its counts are no tables of layers and experts"),
    (changed(hits=[[1] * 8, [1] * 7]), "its counts are no tables of layers and experts"),
    (changed(hits_before=[[1] * 9] * 2), "its counts are no tables of layers and experts"),
    (changed(hits=[[1], [1]], hits_before=[[1], [1]]), "its counts are no tables of layers and experts"),
    (changed(hits_before=[[1] * 8]), "its tables have different numbers of layers"),
    (changed(layers=[1]), "its tables have different numbers of layers"),
    (changed(on_host=[[]]), "its tables have different numbers of layers"),
    (changed(hits=[[-1] * 8] * 2), "a count is a whole number, 0 to 1,099,511,627,776"),
    (changed(hits_before=[[2**62] * 8] * 2), "a count is a whole number, 0 to 1,099,511,627,776"),
    (changed(hits=[[0.5] * 8] * 2), "hits.0.0 is a number, not a whole number"),
    (changed(hits=[[True] * 8] * 2), "hits.0.0 is True, not a whole number"),
    (changed(hits=[["1"] * 8] * 2), "hits.0.0 is a text, not a whole number"),
    (changed(changed=[0.5, float("nan")]), "a share is a number from 0 to 1"),
    (changed(overlap=[0.5, float("inf")]), "a share is a number from 0 to 1"),
    (changed(overlap=[0.5, None]), "overlap.1 is None, not a number"),
    (changed(on_host=[[8], []]), "an expert on the host is a number from 0 to 7"),
    (changed(on_host=[[-1], []]), "an expert on the host is a number from 0 to 7"),
    (changed(tokens="many"), "tokens is a text, not a whole number"),
]


@pytest.mark.parametrize(("content", "says"), DAMAGED)
def test_a_damaged_file_is_refused_in_a_sentence(written, content, says):
    path = written(content)
    with pytest.raises(ValueError, match=r"damaged") as error:
        expert_load.read_load(path)
    assert says in str(error.value) and "measure again with `grpo-kit evaluate --force`" in str(error.value)


def test_the_last_measured_policy_counts_and_only_a_recorded_file(tmp_path):
    run = find_run("r", tmp_path)
    assert expert_load.find_load_file(run) is None
    stage = {"finished": "", "seconds": 1.0, "settings": {}, "read": {}}
    for name in ("after_sft", "after"):
        write_text(run.evaluation / f"{name}_experts.json", "{}")
    records = {"after_sft": stage | {"wrote": {"evaluation/after_sft_experts.json": "x"}}}
    write_text(run.notes, json.dumps({"stages": records}))
    assert expert_load.find_load_file(run) == run.evaluation / "after_sft_experts.json"
    records["after"] = stage | {"wrote": {"evaluation/after.json": "x"}}  # by vLLM, or by an earlier version
    write_text(run.notes, json.dumps({"stages": records}))
    assert expert_load.find_load_file(run) is None
