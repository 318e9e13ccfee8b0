"""The stage `prefer`: pairs, training, resumption, refusals, and that no copy of the adapter is left anywhere."""

import json
import os
import re
import shutil
import signal
from dataclasses import replace

import pytest
from safetensors import safe_open

from grpo_kit import config
from grpo_kit.cli import stages
from grpo_kit.evaluation import evaluate
from grpo_kit.evaluation.compare import compare
from grpo_kit.policy.chat import encode_prompt
from grpo_kit.runs.files import hash_of
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from grpo_kit.submission.package import package_adapter
from grpo_kit.training.preferences import prefer as stage
from grpo_kit.training.preferences.groups import Group, Reply
from grpo_kit.training.preferences.prefer import prefer
from tests.helpers.processes import start as start_python
from tests.helpers.settings import ROOT, SMALL

DPO = [
    "dpo.max_steps=4", "dpo.per_device_train_batch_size=2", "dpo.gradient_accumulation_steps=2",
    "dpo.learning_rate=1e-3", "dpo.save_steps=2", "run.report_to=[]",
]  # fmt: skip


def open_copy(trained, folder, *overrides):
    """(config, run): a copy of the run that GRPO has trained."""
    _, run = trained
    shutil.copytree(run.path, folder / "runs" / run.name)
    return config.load_config(["tiny"], [*SMALL, *DPO, *overrides]), find_run(run.name, folder / "runs")


def forced(chosen):
    return replace(chosen, run=replace(chosen.run, force=True))


def figures(path):
    """Metrics rows without the columns of time."""
    return [{k: v for k, v in row.items() if "second" not in k} for row in read_lines(path)]


@pytest.fixture(scope="module")
def undisturbed(trained, tmp_path_factory):
    chosen, run = open_copy(trained, tmp_path_factory.mktemp("undisturbed"))
    last = prefer(chosen, run)
    return chosen, run, last


def test_pairs_are_learned_and_the_stage_is_recorded(undisturbed):
    chosen, run, last = undisturbed
    files = run.stage_files("prefer")
    rows = read_lines(files.metrics)
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and all(row["grad_norm"] > 0 for row in rows)
    assert rows[0]["rewards/margins"] == 0.0 < last["rewards/margins"] and last["step"] == 4
    assert {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "logps/chosen", "logps/rejected"} <= set(last)
    record = run.stages()["prefer"]
    assert record["steps"] == 4 and run.require_trained() == "prefer"
    names = {f"prefer/{name}" for name in ("adapter", "pairs.jsonl", "summary.json", "reference.json", "metrics.jsonl")}
    assert names < set(record["wrote"]) and {"adapter", "completions.jsonl", "data/manifest.json"} < set(record["read"])
    assert hash_of(files.adapter) != hash_of(run.adapter)
    assert prefer(chosen, run) == last  # finished: nothing is changed
    with pytest.raises(ValueError, match=r"dpo.beta was 0.05, now 0.1"):
        prefer(replace(chosen, dpo=replace(chosen.dpo, beta=0.1)), run)


def test_the_pairs_say_where_they_come_from_and_what_they_would_teach(undisturbed):
    _, run, _ = undisturbed
    folder = run.path / "prefer"
    pairs, summary = read_lines(folder / "pairs.jsonl"), json.loads((folder / "summary.json").read_text())
    lines = read_lines(run.completions)
    paid = {(line["prompt"], line["completion"]): line["rewards"]["math_reward"] for line in lines}
    held_out = {row["prompt"][-1]["content"] for split in ("val", "test") for row in read_lines(run.data_file(split))}
    assert pairs and summary["pairs"] == len(pairs) and summary["kinds"] == {"wrong": len(pairs)}
    for pair in pairs:
        asked = pair["prompt"][-1]["content"]
        assert (paid[asked, pair["chosen"]], paid[asked, pair["rejected"]]) == (1.0, 0.0) and asked not in held_out
    assert summary["difference"] >= 0 and summary["difference_ci95"][0] <= summary["difference"]
    assert "dpo.sft_loss_weight=0.2 weighs the sum over a pair's chosen tokens, as in NeMo-RL" in summary["words"]


def test_no_copy_of_the_adapter_is_left_in_any_file(undisturbed, tmp_path):
    chosen, run, _ = undisturbed
    zip_path = package_adapter(chosen, run, tmp_path / "submission.zip")
    shutil.unpack_archive(zip_path, tmp_path / "zip")
    places = [run.path, tmp_path / "zip"]
    assert [path for place in places for path in place.rglob("*") if path.name == "ref"] == []
    tensors = [path for place in places for path in place.rglob("adapter_model.safetensors")]
    assert len(tensors) >= 4  # GRPO's, this stage's, of its checkpoints, of the zip
    for path in tensors:
        with safe_open(path, "pt") as file:
            assert not [name for name in file.keys() if "ref" in name.split(".")]  # noqa: SIM118 (it is no mapping)
    wanted = sorted(path.name for path in (run.path / "prefer/checkpoints/step_4").iterdir())
    assert wanted == [
        "adapter_config.json", "adapter_model.safetensors", "kept.json", "optimizer.pt", "preferences.json",
        "rng_state.pth", "scheduler.pt", "trainer_state.json",
    ]  # fmt: skip
    counts = []
    for folder in (tmp_path / "zip", run.path / "prefer/adapter"):
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            counts.append(len(list(file.keys())))
    assert counts[0] == counts[1] > 0


KILLED = """
import os, signal
from grpo_kit import config
from grpo_kit.evaluation import evaluate
from grpo_kit.runs.run import find_run
from grpo_kit.submission.package import package_adapter
from grpo_kit.training.preferences.prefer import prefer
def kill(row):
    if row["step"] == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
prefer(config.load_config(["tiny"], {overrides}), find_run({name!r}, {root!r}), on_step=kill)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("step", "kept"), [(1, []), (3, ["step_2"])])
def test_a_killed_training_resumes_to_the_same_bytes(trained, undisturbed, tmp_path, step, kept):
    _, other, _ = undisturbed
    chosen, run = open_copy(trained, tmp_path)
    words = KILLED.format(step=step, overrides=[*SMALL, *DPO], name=run.name, root=str(run.root))
    child = start_python(["-W", "ignore", "-c", words], os.environ | {"PYTHONPATH": str(ROOT)})
    output, _ = child.communicate(timeout=300)
    assert child.returncode == -signal.SIGKILL, output
    files, others = run.stage_files("prefer"), other.stage_files("prefer")
    assert sorted(path.name for path in files.checkpoints.glob("step_*")) == kept and "prefer" not in run.stages()
    reference = (files.folder / "reference.json").read_bytes()
    prefer(chosen, run)
    assert figures(files.metrics) == figures(others.metrics)
    assert hash_of(files.adapter) == hash_of(others.adapter)
    assert hash_of(files.probe) == hash_of(others.probe)
    assert (
        (files.folder / "reference.json").read_bytes() == reference == (others.folder / "reference.json").read_bytes()
    )


@pytest.mark.slow
def test_a_finished_training_goes_on_to_more_steps_like_one_long_training(trained, undisturbed, tmp_path):
    _, other, _ = undisturbed
    chosen, run = open_copy(trained, tmp_path, "dpo.max_steps=2")
    prefer(chosen, run)
    longer = replace(chosen, dpo=replace(chosen.dpo, max_steps=4))
    assert prefer(longer, run)["step"] == 4
    assert figures(run.stage_files("prefer").metrics) == figures(other.stage_files("prefer").metrics)
    assert hash_of(run.stage_files("prefer").adapter) == hash_of(other.stage_files("prefer").adapter)


def test_evaluation_says_what_the_pairs_changed(trained, tmp_path, math_reward):
    chosen, run = open_copy(trained, tmp_path)
    prefer(chosen, run)
    evaluate.measure(chosen, run, "after_prefer", math_reward)
    report = compare(run)
    assert [row["measurement"] for row in report["stages"]] == ["before", "after", "after_prefer"]
    (sentence,) = report["calls"]  # nobody calls a tool, and so nothing is said of that
    assert sentence.startswith("Learning from pairs changed accuracy by ") and "on 60 problems." in sentence
    assert report["after"]["calls"] == {
        "undeclared": {"value": 0.0, "ci95": pytest.approx([0, 0.06], abs=0.01), "n": 60}
    }


def stopped(trained, folder):
    """A run whose training was stopped after two steps of four."""
    chosen, run = open_copy(trained, folder)
    rows = []
    prefer(chosen, run, on_step=rows.append, should_stop=lambda: len(rows) == 2)
    assert run.stages()["prefer"]["steps"] == 2
    return chosen, run, run.path / "prefer/reference.json"


@pytest.mark.slow
def test_a_training_that_goes_on_takes_no_other_reference(trained, tmp_path):
    chosen, run, reference = stopped(trained, tmp_path)
    kept = reference.read_text()
    changed = json.loads(kept)
    changed["chosen"][0] += 1.0
    # A value that was changed by hand: the stage's own hash shows it.
    reference.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="reference.json is not as stage 'prefer' wrote it"):
        prefer(chosen, run)
    # The same before anything was recorded: the checkpoint knows which one it was.
    note = json.loads(run.notes.read_text())
    record = note["stages"].pop("prefer")
    run.notes.write_text(json.dumps(note))
    shutil.rmtree(run.path / "prefer/adapter")
    with pytest.raises(ValueError, match="step_2 was trained with log-probs of another reference"):
        prefer(chosen, run)
    for text, message in (
        (json.dumps(changed | {"made_from": {"adapter": "0" * 64}}), "is of another policy or of other pairs"),
        (None, "is gone, and the steps so far were taken with it"),
        (json.dumps(json.loads(kept) | {"chosen": [0.0]}), "is damaged: it has other log-probs than"),
        ("{", "is damaged"),
        ("{}", "is damaged: it lacks 'made_from'"),
        (
            json.dumps(json.loads(kept) | {"rejected": [float("nan")] * len(changed["chosen"])}),
            "finite ones for each side",
        ),
    ):
        reference.unlink(missing_ok=True)
        if text is not None:
            reference.write_text(text)
        with pytest.raises(ValueError, match=message):
            prefer(chosen, run)
    reference.write_text(kept)
    assert prefer(chosen, run)["step"] == 4 and record["steps"] == 2


def rewrite(run, change):
    """Rewrite the completions of a run; its record then names another sha256, as if they had been written so."""
    lines = [change(line) for line in read_lines(run.completions)]
    run.completions.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_whose_groups_are_all_flat_has_nothing_to_learn(trained, tmp_path, capsys):
    chosen, run = open_copy(trained, tmp_path)
    rewrite(run, lambda line: line | {"rewards": dict.fromkeys(line["rewards"], 1.0)})
    result = prefer(chosen, run)
    assert list(result) == ["nothing_to_learn"]
    assert result["nothing_to_learn"].startswith("Nothing to learn: of ") and "harder prompts" in str(result)
    assert "prefer" not in run.stages() and not (run.path / "prefer/pairs.jsonl").exists()
    assert not (run.path / ".lock").exists()
    stages.learn_preferences(chosen, run)  # as the command does
    output = capsys.readouterr().out
    assert "Nothing to learn: of " in output and "done" not in output and "Traceback" not in output


@pytest.mark.slow
def test_a_repetition_with_nothing_to_learn_leaves_the_trained_stage_as_it_is(undisturbed, trained, tmp_path):
    chosen, run = open_copy(trained, tmp_path)
    prefer(chosen, run)
    kept = hash_of(run.path / "prefer")
    nothing = replace(forced(chosen), dpo=replace(chosen.dpo, max_length=5))
    assert "nothing_to_learn" in prefer(nothing, run) and hash_of(run.path / "prefer") == kept


def test_calls_that_nobody_offered_are_rejected(trained, tmp_path):
    chosen, run = open_copy(trained, tmp_path)

    def change(line):  # all are right; those with an even length call a tool
        calls = len(line["completion"]) % 2 == 0
        completion = f"<function=add>{line['completion'][-5:]}" if calls else line["completion"]
        return line | {"rewards": dict.fromkeys(line["rewards"], 1.0), "completion": completion}

    rewrite(run, change)
    pairs, rows, summary = stage.find_pairs(chosen, run)
    assert set(summary["kinds"]) == {"call"} and len(rows) == len(pairs) > 0
    assert all(pair.rejected.startswith("<function=add>") and "<function" not in pair.chosen for pair in pairs)


def test_pairs_that_do_not_fit_are_left_out_with_their_number_and_nothing_is_cut(trained, tmp_path):
    chosen, run = open_copy(trained, tmp_path)
    pairs, rows, _ = stage.find_pairs(chosen, run)
    lengths = [len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows]
    tokenizer = stage.load_tokenizer(chosen.policy)
    for pair, row in zip(pairs, rows, strict=True):
        assert tokenizer.decode(row["chosen_ids"]) == pair.chosen + tokenizer.eos_token
        assert tokenizer.decode(row["rejected_ids"]) == pair.rejected + tokenizer.eos_token
    limit = sorted(lengths)[len(lengths) // 2]
    shorter = replace(chosen, dpo=replace(chosen.dpo, max_length=limit))
    kept, rows, summary = stage.find_pairs(shorter, run)
    assert all(
        len(row["prompt_ids"]) + len(row[key]) <= limit for row in rows for key in ("chosen_ids", "rejected_ids")
    )
    assert len(kept) == sum(length <= limit for length in lengths)
    assert summary["left_out"][f"longer than {limit} tokens"] > 0
    assert re.search(r"The longest has (\d+); raise dpo.max_length", summary["words"])
    none, _, summary = stage.find_pairs(replace(chosen, dpo=replace(chosen.dpo, max_length=5)), run)
    assert none == [] and summary["words"].startswith("Nothing to learn: every pair is longer than 5 tokens")


def test_a_reply_that_does_not_fit_takes_the_place_of_none_that_does(trained, tmp_path, monkeypatch):
    chosen, run = open_copy(trained, tmp_path)
    row = read_lines(run.data_file("train"))[0]
    verdicts = {"1 " * 40: "right", "2 " * 40: "wrong", "3 " * 5: "right", "4 " * 9: "wrong"}
    tokenizer = stage.load_tokenizer(chosen.policy)
    replies = [Reply(text, verdict, stage._count_tokens(tokenizer, text) + 1) for text, verdict in verdicts.items()]
    monkeypatch.setattr(stage, "read_groups", lambda *_: ([Group(row, 1, replies)], {}))
    limit = len(encode_prompt(tokenizer, row["prompt"], chosen.policy.enable_thinking)) + replies[-1].tokens
    dpo = replace(chosen.dpo, max_length=limit, pairs_per_prompt=1)
    (pair,), _, summary = stage.find_pairs(replace(chosen, dpo=dpo), run)
    assert (pair.chosen, pair.rejected) == ("3 " * 5, "4 " * 9)
    assert summary["left_out"] == {f"longer than {limit} tokens": 2}
    monkeypatch.setattr(stage, "read_groups", lambda *_: ([Group(row, 1, [replies[0], replies[2]])], {}))
    none, _, summary = stage.find_pairs(replace(chosen, dpo=dpo), run)
    assert none == [] and "of 1 groups 1 are all right" in summary["words"]  # the long one is not the reason


def test_wrong_beginnings_are_refused_in_a_sentence(trained, tmp_path, monkeypatch):
    chosen, run = open_copy(trained, tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"dpo.source is 'pairs.jsonl', which is no file. Write completions for"
    ):
        prefer(replace(chosen, dpo=replace(chosen.dpo, source="pairs.jsonl")), run)
    monkeypatch.setattr(stage.processes, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="There are 2 processes; learning from pairs takes one"):
        prefer(chosen, run)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="goes on from the adapter of stage 'train', which was made with different"):
        prefer(replace(chosen, lora=replace(chosen.lora, r=4)), run)
    run.completions.unlink()
    with pytest.raises(FileNotFoundError, match="completions.jsonl, written by stage 'train', is gone"):
        prefer(chosen, run)
    shutil.rmtree(run.path)
    with pytest.raises(FileNotFoundError, match="has no finished stage 'data'"):
        prefer(chosen, run)
