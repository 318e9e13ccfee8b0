"""Both policies read the same texts; the load of the experts is written, recorded, shown, or left out."""

import json
import shutil
from types import SimpleNamespace

import pytest

from grpo_kit import config
from grpo_kit.adapters import lora
from grpo_kit.config import load_config
from grpo_kit.display import report
from grpo_kit.display.console import TextConsole
from grpo_kit.display.terminal import experts
from grpo_kit.evaluation import evaluate, expert_choices
from grpo_kit.evaluation.problem_sets import Problem
from grpo_kit.planning import expert_load
from grpo_kit.policy.generate import TransformersEngine
from grpo_kit.policy.load import load_policy
from grpo_kit.runs.files import hash_of
from grpo_kit.runs.run import find_run
from tests.helpers.experts import load_with_expert_lora


@pytest.fixture
def copied(trained, tmp_path):
    run = find_run("small", tmp_path)
    shutil.copytree(trained[1].path, run.path)
    return trained[0], run


def test_measuring_the_trained_policy_writes_and_records_the_load(trained):
    _, run = trained
    path = run.evaluation / "after_experts.json"
    assert run.stages()["after"]["wrote"]["evaluation/after_experts.json"] == hash_of(path)
    assert not (run.evaluation / "before_experts.json").exists()
    load = expert_load.read_load(path)
    assert (load["stage"], load["model"], load["prompts"], load["top_k"], load["layers"]) == (
        "after",
        "tiny",
        32,
        2,
        [1, 3],
    )
    for table in ("hits", "hits_before"):
        assert [sum(layer) for layer in load[table]] == [2 * load["tokens"]] * 2
    assert load["rows"] == 4 * load["tokens"] > 4 * 32 * 20
    assert all(0 < share < 0.5 for share in load["changed"])  # four steps with a gradient
    assert (load["on_host"], load["lora_pairs"]) == ([[], []], 0)
    sentences = json.loads((run.evaluation / "report.json").read_text())["experts"]
    assert sentences == expert_load.describe_load(load, path) and len(sentences) == 2


def test_the_texts_are_prompts_with_the_untrained_policys_completions(trained, tiny_policy):
    _, run = trained
    _, tokenizer = tiny_policy
    before = json.loads((run.evaluation / "before.json").read_text())["problems"]
    problems = [Problem("test", [], {"id": problem["id"]}) for problem in before]
    texts = expert_choices.build_texts(run, tokenizer, problems, [[place] for place in range(60)])
    assert len(texts) == 32 and [text[0] for text in texts[:4]] == [0, 1, 3, 5]  # spread over the 60
    assert tokenizer.decode(texts[2][1:]) == before[3]["completions"][0]
    foreign = [Problem("other", [], {"id": "nobody's"}), problems[7]]
    assert expert_choices.build_texts(run, tokenizer, foreign, [[1], [2]]) == [
        [2] + tokenizer(before[7]["completions"][0], add_special_tokens=False)["input_ids"]
    ]
    (long,) = expert_choices.build_texts(run, tokenizer, problems[:1], [[5] * 5000])
    assert long == [5] * 1024


def test_without_a_measured_untrained_policy_there_are_no_texts(copied):
    _, run = copied
    notes = json.loads(run.notes.read_text())
    del notes["stages"]["before"]
    run.notes.write_text(json.dumps(notes))
    assert expert_choices.build_texts(run, None, [Problem("test", [], {"id": "a"})], [[1]]) == []


def test_completions_that_were_changed_are_not_read(copied):
    _, run = copied
    path = run.evaluation / "before.json"
    path.write_text(path.read_text().replace("boxed", "foxed", 1))
    with pytest.raises(ValueError, match=r"before\.json is not as stage 'before' wrote it"):
        expert_choices.build_texts(run, None, [], [])


def engine_of(model, tokenizer):
    return TransformersEngine(model, tokenizer, load_config("tiny").evaluation)


def test_with_experts_in_4_bit_their_tier_and_their_zero_pairs_are_noted(tmp_path, tiny_policy):
    model, run = load_with_expert_lora(), find_run("r", tmp_path)
    for name, value in model.named_parameters():
        if "lora_B" in name and ".experts.5." in name:
            value.data.zero_()
    lora.save_adapter(model, run.adapter, "tiny")
    policy = config.Policy(load_in_4bit=True, experts_on_host=0.5)
    texts = [list(range(20, 60)), list(range(30, 50))]
    (path,) = expert_choices.write_load(policy, run, "after", engine_of(model, tiny_policy[1]), run.adapter, texts)
    load = expert_load.read_load(path)
    assert load["on_host"] == [[4, 5, 6, 7]] * 2 and (load["lora_pairs"], load["lora_pairs_zero"]) == (32, 4)
    assert load["tokens"] == 60 and load["changed"][0] == 0.0 < load["changed"][1]  # the first layer's router is before
    # The same pairs on experts that are not in 4 bit are added to the weights: there is no base to compare with.
    whole = lora.attach_adapter(load_policy(config.Policy())[0], run.adapter)
    assert expert_choices.write_load(policy, run, "after", engine_of(whole, tiny_policy[1]), run.adapter, texts) == []
    assert not path.exists()  # it was another measurement's


@pytest.mark.parametrize("lack", ["experts", "texts", "transformers"])
def test_without_experts_texts_or_a_model_here_nothing_is_written(trained, tmp_path, tiny_policy, lack, monkeypatch):
    chosen, of = trained
    run, engine = find_run("r", tmp_path), engine_of(*tiny_policy)
    if lack == "experts":
        monkeypatch.setattr(expert_choices.patches, "find_routers", lambda model: {})
    if lack == "transformers":
        engine = SimpleNamespace(name="vllm 0.17")
    texts = [] if lack == "texts" else [[20, 21]]
    assert expert_choices.write_load(chosen.policy, run, "after", engine, of.adapter, texts) == []
    assert not run.path.exists()


def test_the_load_is_shown_in_the_terminal_and_on_the_page(copied, monkeypatch):
    _, run = copied
    path = run.evaluation / "after_experts.json"
    load = json.loads(path.read_text()) | {
        "hits": [[400, 300, 300, 300, 300, 0, 350, 50], [250] * 8], "changed": [0.25, 0.0], "overlap": [0.875, 1.0],
        "hits_before": [[400, 400, 300, 300, 300, 200, 50, 50], [250] * 8], "on_host": [[6, 7], []],
    }  # fmt: skip
    path.write_text(json.dumps(load))
    console = TextConsole(width=110, record=True)
    monkeypatch.setattr(experts, "out", console)
    experts.print_expert_load(run)
    rows = [line.split() for line in console.export_text().splitlines()]
    assert ["1", "1.60", "1.60", "0.920", "0.893", "0", "1", "25.0%", "87.5%", "6"] in rows
    assert ["3", "1.00", "1.00", "1.000", "1.000", "0", "0", "0.0%", "100.0%"] in rows
    monkeypatch.setattr(report, "build_panels", lambda run, rows, *_, **__: [])  # seconds of other charts
    assert 'alt="Charts: Load of the experts"' in report.render_page(run)
    assert "For " in report.read_verdict(run) and "choice changed" in report.read_verdict(run)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"after_experts\.json is damaged: it is a list"):
        report.save_report(run)
    notes = json.loads(run.notes.read_text())
    del notes["stages"]["after"]["wrote"]["evaluation/after_experts.json"]
    run.notes.write_text(json.dumps(notes))
    experts.print_expert_load(run)
    assert "No load of experts was measured" in console.export_text()


def test_a_damaged_or_missing_load_is_made_or_told_as_any_result(copied, math_reward):
    chosen, run = copied
    path = run.evaluation / "after_experts.json"
    first = path.read_text()
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"after_experts\.json is damaged: it lacks 'model'"):
        evaluate.measure(chosen, run, "after", math_reward)
    path.unlink()
    evaluate.measure(chosen, run, "after", math_reward)
    assert path.read_text() == first  # the same bytes
