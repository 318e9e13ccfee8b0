"""A rehearsed score uses the scorer's prompts and settings, and no row that the run was trained on."""

import csv
import hashlib
import json
import shutil
import warnings
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from grpo_kit import config
from grpo_kit.config.protocols import PROTOCOLS
from grpo_kit.data import cleaning, puzzles
from grpo_kit.data.preparation import prepare
from grpo_kit.evaluation import evaluate, rehearsal
from grpo_kit.policy.generate import Sample
from grpo_kit.runs.files import write_lines
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from grpo_kit.submission import package
from tests.helpers.submissions import config as submission_config
from tests.helpers.submissions import submission, tensors


@pytest.fixture
def file(tmp_path):
    """A train.csv of sixty generated puzzles, ten per family, and its rows."""
    rows = puzzles.make_rows(60, seed=5)
    path = tmp_path / "given" / "train.csv"
    path.parent.mkdir()
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, ["id", "prompt", "answer"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path, rows


@pytest.fixture
def short(monkeypatch):
    """The scorer's protocol with 24 tokens in place of 7,680: the tiny policy cannot solve puzzles."""
    protocol = PROTOCOLS["challenge"]
    cut = replace(protocol, evaluation=protocol.evaluation | {"max_completion_length": 24})
    monkeypatch.setitem(PROTOCOLS, "challenge", cut)


def puzzle_config(path, *overrides):
    return config.load_config(["tiny"], [f"data.paths.nemotron_challenge={path}", *overrides])


@pytest.fixture
def untrained(tmp_path):
    return find_run("r", tmp_path / "runs")


def test_a_problem_has_the_scorers_prompt(file, untrained):
    path, rows = file
    problems = rehearsal.held_out_puzzles(puzzle_config(path), untrained, 60)
    assert [p.row["id"] for p in problems] == [row["id"] for row in rows]
    assert {p.row["id"]: p.prompt for p in problems} == {
        row["id"]: [
            {
                "role": "user",
                "content": row["prompt"]
                + "\nPlease put your final answer inside `\\boxed{}`. For example: `\\boxed{your answer}`",
            }
        ]
        for row in rows
    }
    assert all(p.row["answer"] == row["answer"] and p.row["family"] == row["family"] for p, row in zip(problems, rows))


def test_every_family_is_sampled_equally_and_the_seed_decides_which_puzzles(file, untrained):
    path, _ = file
    drawn = rehearsal.held_out_puzzles(puzzle_config(path), untrained, 20)
    assert len(drawn) == 20 and set(Counter(p.row["family"] for p in drawn).values()) == {3, 4}
    assert (
        drawn
        == rehearsal.held_out_puzzles(puzzle_config(path), untrained, 20)
        != rehearsal.held_out_puzzles(puzzle_config(path, "run.seed=1"), untrained, 20)
    )
    assert (
        len(rehearsal.held_out_puzzles(puzzle_config(path), untrained, 1)) == 1
        and len(rehearsal.held_out_puzzles(puzzle_config(path), untrained, 999)) == 60
    )


def test_rows_used_for_training_are_not_scored(file, untrained):
    path, rows = file
    chosen = puzzle_config(
        path, "data.source=nemotron_challenge", "data.test_size=20", "data.val_size=10", "data.prompt_suffix=' Think.'"
    )
    prepare(chosen, untrained, "challenge.py")
    trained = {row["id"] for row in read_lines(untrained.data_file("train"))}
    problems = rehearsal.held_out_puzzles(chosen, untrained, 999)
    assert len(trained) == 30 and len(problems) == 30
    assert not {cleaning.normalise_text(p.prompt[-1]["content"]) for p in problems} & {
        cleaning.normalise_text(row["prompt"][-1]["content"]) for row in read_lines(untrained.data_file("train"))
    }
    # Rows with other ids, as in a user's file, are recognised by their text.
    lines = [
        {
            "id": "mine",
            "prompt": [{"role": "user", "content": row["prompt"].upper() + PROTOCOLS["challenge"].prompt_suffix}],
        }
        for row in rows[:25]
    ]
    untrained.notes.unlink()  # its record would name another sha256
    write_lines(untrained.data_file("train"), lines)
    assert {p.row["id"] for p in rehearsal.held_out_puzzles(puzzle_config(path), untrained, 999)} == {
        row["id"] for row in rows[25:]
    }
    write_lines(untrained.data_file("train"), [{"id": "x", "prompt": row["prompt"]} for row in rows])
    with pytest.raises(ValueError, match="every row"):
        rehearsal.held_out_puzzles(puzzle_config(path), untrained, 5)


@pytest.fixture
def scored(trained, tmp_path, file, short):
    """(config, a copy of the trained run) that can be scored."""
    chosen, run = trained
    shutil.copytree(run.path, tmp_path / "runs" / run.name)
    return replace(chosen, data=puzzle_config(file[0]).data), find_run(run.name, tmp_path / "runs")


@pytest.mark.slow
def test_the_trained_policy_is_scored_by_family(scored):
    chosen, run = scored
    report = rehearsal.rehearse_score(chosen, run, 12)
    assert report == json.loads((run.evaluation / "score.json").read_text())
    assert report["n"] == 12 and set(report["by"]["family"]) == set(puzzles.FAMILIES)
    for part in (report, *report["by"]["family"].values()):
        low, high = part["ci95"]
        assert 0 <= low <= part["pass@1"] <= high <= 1
    assert report["sampling"]["temperature"] == 0 and report["sampling"]["max_model_len"] == 8192
    assert report["sampling"]["protocol"] == "challenge" and report["prompt"]["enable_thinking"] is True
    assert report["prompt"]["rendered"].endswith("<|im_start|>assistant\n<think>\n")
    assert "protocol: null" in run.config.read_text()  # a rehearsal does not change how the run is measured
    assert not list(run.evaluation.glob("score.partial*"))


@pytest.mark.slow
def test_a_score_is_reused_until_one_of_its_inputs_changes(scored, monkeypatch):
    chosen, run = scored
    first = rehearsal.rehearse_score(chosen, run, 6)
    monkeypatch.setattr(evaluate.vllm_engine, "open_engine", lambda *_: pytest.fail("it was drawn again"))
    assert rehearsal.rehearse_score(chosen, run, 6) == first
    with pytest.raises(ValueError, match="--force"):
        rehearsal.rehearse_score(chosen, run, 7)


def test_the_score_is_that_of_version_15_of_the_metric(scored, monkeypatch):
    """v15, not v14: an answer that ends in a brace is right, and a gold of 0s and 1s is text."""
    chosen, run = scored
    answers = {"}1": r"\boxed{}1}", "0101": r"\boxed{101}"}

    class Engine:
        name = "a stand-in"

        def __init__(self, tokenizer):
            self.tokenizer = tokenizer

        def __call__(self, ids, seed):
            texts = self.tokenizer.batch_decode(ids)
            return [
                Sample(next(answer for gold, answer in answers.items() if f"[{gold}]" in text), 3, True)
                for text in texts
            ]

    from grpo_kit.policy.load import load_tokenizer

    monkeypatch.setattr(evaluate.vllm_engine, "open_engine", lambda c, a, room: (Engine(load_tokenizer(c.policy)), ""))
    path = chosen.data.paths["nemotron_challenge"]
    with Path(path).open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["id", "prompt", "answer"])
        writer.writerows([[gold, f"what is [{gold}]", gold] for gold in answers])
    report = rehearsal.rehearse_score(chosen, run, 5)
    assert {p["id"]: p["score"] for p in report["problems"]} == {"}1": 1.0, "0101": 0.0}
    assert {p["family"] for p in report["problems"]} == {"other"}


@pytest.mark.slow
def test_a_zip_is_scored_as_the_run_it_was_packed_from(scored, tmp_path):
    chosen, run = scored
    zip_path = package.package_adapter(chosen, run, tmp_path / "s.zip")
    own = rehearsal.rehearse_score(chosen, run, 6)
    elsewhere = find_run("other", tmp_path / "elsewhere")
    report = rehearsal.rehearse_score(chosen, elsewhere, 60, zip_path)
    assert report["n"] == 60  # that run was trained on nothing
    completions = {p["id"]: p["completions"] for p in report["problems"]}
    assert all(completions[p["id"]] == p["completions"] for p in own["problems"])
    read = elsewhere.stages()["score"]["read"]
    assert read[str(zip_path)] == hashlib.sha256(zip_path.read_bytes()).hexdigest()
    assert set(read) == {str(zip_path), "data/manifest.json"}  # and no folder that is gone


@pytest.mark.slow
def test_a_score_answers_without_the_pairs_that_the_scorer_drops_and_says_so(scored, tmp_path):
    """The same q_proj with and without a LoRA on shared experts gives the same completions."""
    chosen, _ = scored
    targets = ["q_proj", "shared_experts.up_proj", "shared_experts.down_proj"]
    saved = tensors(submission_config(target_modules=targets))
    assert all(abs(value).max() > 0.4 for value in saved.values())  # large enough to change completions
    completions, messages = {}, {}
    for name, chosen_targets in (("both", targets), ("used", targets[:1])):
        path = submission(
            tmp_path / f"{name}.zip",
            {"target_modules": chosen_targets},
            lambda values: {key: saved[key] for key in values},
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            report = rehearsal.rehearse_score(chosen, find_run(name, tmp_path / "elsewhere"), 12, path)
        completions[name] = [problem["completions"] for problem in report["problems"]]
        messages[name] = [str(warning.message) for warning in caught if "vLLM 0.17.1" in str(warning.message)]
    assert completions["both"] == completions["used"]
    (message,) = messages["both"]
    assert "uses 1,024 of 5,120 LoRA parameters (20 %)" in message and message.endswith("without what it drops.")
    assert messages["used"] == []


@pytest.mark.slow
def test_a_zips_score_is_reused_until_the_zip_changes(scored, tmp_path, monkeypatch):
    chosen, run = scored
    zip_path = package.package_adapter(chosen, run, tmp_path / "s.zip")
    first = rehearsal.rehearse_score(chosen, run, 6, zip_path)

    def drawn_again(*_):
        raise RuntimeError("it was drawn again")

    monkeypatch.setattr(evaluate.vllm_engine, "open_engine", drawn_again)
    assert rehearsal.rehearse_score(chosen, run, 6, zip_path) == first
    with zipfile.ZipFile(zip_path, "a") as archive:
        archive.comment = b"packed again"
    with pytest.raises(RuntimeError, match="drawn again"):
        rehearsal.rehearse_score(chosen, run, 6, zip_path)


def test_a_zip_that_must_not_be_submitted_is_not_scored(scored, tmp_path):
    chosen, run = scored
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("adapter_config.json", "{}")
    with pytest.raises(ValueError, match=r"must not be submitted: .* `grpo-kit check"):
        rehearsal.rehearse_score(chosen, run, 5, tmp_path / "bad.zip")


def test_what_is_missing_is_named(scored, untrained, tmp_path, monkeypatch):
    chosen, run = scored
    with pytest.raises(FileNotFoundError, match="`grpo-kit train` first"):
        rehearsal.rehearse_score(chosen, untrained, 5)
    with pytest.raises(FileNotFoundError, match=r"no\.zip is not a file"):
        rehearsal.rehearse_score(chosen, untrained, 5, tmp_path / "no.zip")
    monkeypatch.delenv("GRPO_KIT_DATA", raising=False)
    nowhere = config.load_config(["tiny"])
    with pytest.raises(
        FileNotFoundError,
        match=r"train\.csv is missing.*data\.paths\.nemotron_challenge.*kaggle competitions download",
    ):
        rehearsal.rehearse_score(nowhere, run, 5)
    with pytest.raises(ValueError, match="at least one"):
        rehearsal.held_out_puzzles(chosen, run, 0)


def test_a_different_file_of_the_same_name_is_refused(untrained, tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("id,prompt\n1,x\n")
    with pytest.raises(ValueError, match="line 2 has no id, prompt, answer"):
        rehearsal.held_out_puzzles(puzzle_config(path), untrained, 5)


def test_the_real_challenge_file_gives_600_puzzles_of_all_families(shared_data, untrained):
    folder = shared_data / "nemotron_challenge"
    problems = rehearsal.held_out_puzzles(
        puzzle_config(folder), untrained, 600
    )  # the folder holds test.csv too, which has no answers
    counted = Counter(p.row["family"] for p in problems)
    assert set(counted) == set(puzzles.FAMILIES) and min(counted.values()) >= 98 and sum(counted.values()) == 600
    assert len({p.row["id"] for p in problems}) == 600
    assert sum(p.row["answer"].startswith("0") for p in problems) > 30  # bits keep their leading zeros
