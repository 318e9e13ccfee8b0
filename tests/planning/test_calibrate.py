"""Experts that real prompts hit are counted, and experts are then placed by these counts."""

import json

import pytest
import torch

from grpo_kit import config
from grpo_kit.data.preparation import prepare
from grpo_kit.nemotron import expert_placement
from grpo_kit.planning import calibrate
from grpo_kit.policy.load import load_policy, read_routing_counts
from grpo_kit.runs.run import find_run
from tests.helpers.settings import SMALL

FOUR = ["policy.load_in_4bit=true", "policy.experts_on_host=0.25"]


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("GRPO_KIT_ROOT", str(tmp_path / "runs"))
    chosen = config.load_config(["tiny"], [*SMALL, *FOUR])
    run = find_run("r")
    prepare(chosen, run)
    return chosen, run


@pytest.mark.slow
def test_counted_hits_decide_which_experts_stay_on_the_host(prepared, tmp_path):
    chosen, run = prepared
    even = [layer.on_host for layer in expert_placement.find_tiered_layers(load_policy(chosen.policy)[0]).values()]
    assert even == [{6, 7}] * 2  # nothing is counted yet
    seen = []
    counts = calibrate.count_routed_rows(
        chosen, run, prompts=12, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (12, 12) and counts["prompts"] == 12
    hits = torch.tensor(counts["hits"])
    assert hits.shape == (2, 8) and int(hits.sum()) == counts["rows"] and hits[0].sum() == hits[1].sum()
    assert counts["host_share_coldest"] <= counts["host_share_last"]
    assert json.loads((tmp_path / "nf4/tiny/routing.json").read_text())["hits"] == counts["hits"]
    model, _ = load_policy(chosen.policy)
    placed = [sorted(layer.on_host) for layer in expert_placement.find_tiered_layers(model).values()]
    assert placed == expert_placement.choose_host_experts(2, 8, 0.25, hits) and sum(map(len, placed)) == 4


@pytest.mark.slow
def test_the_counts_may_be_written_to_another_path(prepared, tmp_path):
    _, run = prepared
    path = tmp_path / "elsewhere.json"
    chosen = config.load_config(["tiny"], [*SMALL, *FOUR, f"policy.routing={path}"])
    counts = calibrate.count_routed_rows(chosen, run, prompts=2)
    assert json.loads(path.read_text()) == counts
    assert read_routing_counts(chosen.policy).tolist() == counts["hits"]


def test_the_placement_of_weights_does_not_change_a_policys_identity():
    assert config.Policy(routing="x.json", experts_on_host=0.5).identity() == config.Policy().identity()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"hits": 3}',
     '{"hits": [[1, 2], [3]]}', '{"hits": [[0.5]]}', '{"hits": [[-1]]}', '{"hits": [["1"]]}',
     '{"hits": [[1e400]]}', '{"hits": [[99999999999999999999999]]}', '{"hits": []}'],
)  # fmt: skip
def test_a_file_that_holds_no_counts_is_refused(tmp_path, text):
    path = tmp_path / "routing.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="is not a table of routing counts") as error:
        read_routing_counts(config.Policy(routing=str(path)))
    assert "\n" not in str(error.value)


def test_a_missing_counts_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="policy.routing is .*nowhere.json.*calibrate"):
        read_routing_counts(config.Policy(routing=str(tmp_path / "nowhere.json")))


def test_a_policy_without_tiered_experts_cannot_be_counted(prepared):
    _, run = prepared
    with pytest.raises(ValueError, match="no routed experts in 4 bit.*policy.load_in_4bit=true"):
        calibrate.count_routed_rows(config.load_config(["tiny"], SMALL), run)
    with pytest.raises(ValueError, match="--prompts must be at least 1, got 0"):
        calibrate.count_routed_rows(config.load_config(["tiny"], SMALL), run, prompts=0)
