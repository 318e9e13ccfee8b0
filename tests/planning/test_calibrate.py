"""Experts that real prompts hit are counted, and experts are then placed by these counts."""

import json
import re

import pytest
import torch

from grpo_kit import config
from grpo_kit.data.preparation import prepare
from grpo_kit.nemotron import base_models
from grpo_kit.nemotron.placement.placing import choose_host_experts, place_coldest
from grpo_kit.nemotron.placement.tiered_layers import find_tiered_layers
from grpo_kit.planning import calibrate
from grpo_kit.policy.load import load_policy
from grpo_kit.policy.routing_counts import read_routing_counts
from grpo_kit.runs.files import write_text
from grpo_kit.runs.run import find_run
from tests.helpers.experts import load_tiered
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
    even = [layer.on_host for layer in find_tiered_layers(load_policy(chosen.policy)[0]).values()]
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
    placed = [sorted(layer.on_host) for layer in find_tiered_layers(model).values()]
    assert placed == choose_host_experts(2, 8, 0.25, hits) and sum(map(len, placed)) == 4


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
     '{"hits": [[4611686018427387904]]}', "[" * 100_000, '{"hits": [[true]]}', "\xff",
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


HITS = [[0, 0, 9, 9, 9, 9, 9, 9], [5, 4, 0, 0, 0, 0, 8, 8]]


@pytest.mark.parametrize(
    ("written", "used"),
    [
        (None, False),
        ({"model": "tiny", "hits": HITS}, True),
        ({"model": "another", "hits": HITS}, False),
        ({"model": ["tiny"], "hits": HITS}, False),
        ({"model": "tiny", "hits": [[1, 2, 3]] * 3}, False),  # of another shape
        ({"model": "grpo-kit/tiny", "hits": HITS}, True),  # the same model by its other name
        ({"hits": HITS}, False),
        ({"model": "tiny", "hits": [[0.5]]}, False),
        ([], False),
        ("{", False),  # damaged
    ],
)
def test_a_run_uses_its_own_counts_where_they_are_whole_and_of_its_model(tmp_path, written, used):
    run, policy = find_run("r", tmp_path), config.Policy(load_in_4bit=True)
    if written is not None:
        write_text(run.routing, written if isinstance(written, str) else json.dumps(written))
    assert calibrate.use_counts_of(run, policy).routing == (str(run.routing) if used else None)
    named = config.Policy(load_in_4bit=True, routing="mine.json")
    assert calibrate.use_counts_of(run, named) is named  # the user's file comes first


FOREIGN = [
    ({"model": "another", "hits": HITS}, "has the routing counts of 'another'; 'grpo-kit/tiny' is another model."),
    ({"model": "tiny", "hits": [[1, 2, 3]] * 3}, "of 3 layers of 3 experts; tiny has 2 layers of 8."),
    ({"model": "tiny", "hits": [[2**62] * 8] * 2}, "(a count is a whole number, 0 to 1,099,511,627,776)."),
    ("{", "is not a table of routing counts"),
]


@pytest.mark.parametrize(("written", "says"), FOREIGN)
def test_counts_of_another_model_are_told_and_not_used(tmp_path, written, says):
    path = tmp_path / "routing.json"
    path.write_text(written if isinstance(written, str) else json.dumps(written))
    told = re.escape(says) + ".*Make it again with `grpo-kit calibrate`, or delete it."
    with pytest.raises(ValueError, match=told):  # what the user names
        read_routing_counts(config.Policy(load_in_4bit=True, routing=str(path)))
    with pytest.warns(UserWarning, match=told):  # what lies beside the checkpoint
        assert read_routing_counts(config.Policy(load_in_4bit=True, nf4_folder=str(tmp_path))) is None


def test_the_same_published_model_has_the_same_counts_under_each_of_its_names(tmp_path):
    path, mounted = (
        tmp_path / "routing.json",
        "/kaggle/input/models/metric/nemotron-3-nano-30b-a3b-bf16/transformers/default/1",
    )
    path.write_text(json.dumps({"model": base_models.PUBLISHED, "hits": [[1] * 128] * 23}))
    for name in (base_models.PUBLISHED, mounted):
        assert read_routing_counts(config.Policy(model=name, routing=str(path))).shape == (23, 128)
    with pytest.raises(ValueError, match="is another model"):
        read_routing_counts(config.Policy(model=base_models.LIGHTNING, routing=str(path)))


@pytest.mark.slow
@pytest.mark.parametrize("written", [FOREIGN[1][0], FOREIGN[3][0]])
def test_calibrate_replaces_counts_of_another_model(prepared, tmp_path, written):
    chosen, run = prepared
    path = tmp_path / "nf4/tiny/routing.json"
    write_text(path, written if isinstance(written, str) else json.dumps(written))
    with pytest.warns(UserWarning, match="no expert is placed by it"):
        counts = calibrate.count_routed_rows(chosen, run, prompts=2)
    assert json.loads(path.read_text()) == counts and len(counts["hits"]) == 2


@pytest.mark.slow
def test_a_runs_own_counts_come_before_those_beside_the_checkpoint(prepared, tmp_path):
    chosen, run = prepared
    write_text(tmp_path / "nf4/tiny/routing.json", json.dumps({"hits": [[1] * 8, [2] * 8]}))

    def placed(policy):
        model, _ = load_policy(policy)
        return [sorted(layer.on_host) for layer in find_tiered_layers(model).values()]

    assert placed(calibrate.use_counts_of(run, chosen.policy)) == [[0, 1, 2, 3], []]
    write_text(run.routing, json.dumps({"model": "tiny", "hits": HITS}))
    assert placed(calibrate.use_counts_of(run, chosen.policy)) == [[0, 1], [2, 3]]


def test_the_placement_is_described_with_what_counting_saves():
    model, layers = load_tiered(0.0)
    assert calibrate.describe_placement(model) == "" == calibrate.describe_placement(torch.nn.Linear(2, 2))
    for layer in layers:
        layer.place([5, 6, 7])
    laid_out = "6 of the routed experts (38%) lie on the host"
    assert calibrate.describe_placement(model) == f"{laid_out}; which are used least was not counted"
    place_coldest(model, torch.tensor(HITS))
    described = f"{laid_out}; of the rows counted before, 54% need them as laid out, 0% as counted"
    assert calibrate.describe_placement(model) == described  # (9 + 9 + 9 + 0 + 8 + 8) of 79


def test_work_is_counted_by_itself():
    model, layers = load_tiered(0.0)
    layers[0].hits = torch.tensor([3] * 8)
    ids = torch.full((1, 5), 40)
    result, hits = calibrate.count_hits(model, lambda: model(ids).logits.shape[1])
    assert result == 5 and hits.sum(1).tolist() == [10, 10] and layers[0].hits.sum() == 24 + 10
    with pytest.raises(KeyError):
        calibrate.count_hits(model, lambda: {}["nothing"])
    assert not any(layer.counting for layer in layers)
    assert calibrate.count_hits(torch.nn.Linear(2, 2), lambda: 1) == (1, None)
