"""Pass rates are applied as a band, written as a curriculum, and read by training."""

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from grpo_kit import config
from grpo_kit.cli.main import app
from grpo_kit.config import Screening
from grpo_kit.data import curriculum
from grpo_kit.data.preparation import prepare
from grpo_kit.evaluation import screening, screening_rounds
from grpo_kit.runs.files import hash_of
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from grpo_kit.training import train
from tests.helpers.screening import by_id, chance_of, prepared, right_reward, wrong_reward
from tests.helpers.settings import SMALL


@pytest.mark.slow
def test_prompts_inside_the_band_are_kept_and_the_others_get_a_reason(tmp_path, drawn):
    chosen, run = prepared(tmp_path, [0.5] * 10 + [0.0] * 3 + [1.0] * 2 + [0.5], answers={15: "none"})
    report = screening.screen(chosen, run, right_reward)
    kept, left = read_lines(run.screened), read_lines(run.left_out)
    reasons = [row["reason"] for row in left]
    assert (report["kept"], report["too hard"], report["too easy"], report["gold cannot be used"]) == (
        len(kept), reasons.count("too hard"), reasons.count("too easy"), reasons.count("gold cannot be used"),
    )  # fmt: skip
    assert len(kept) + len(left) == 16
    for row in kept:
        assert 0.1 <= row["pass_rate"] <= 0.9 and row["pass_rate"] == by_id(run)[row["id"]]["pass_rate"]
        assert list(row) == list(left[0])[: len(row)] and chance_of(row) == 0.5
    assert {(chance_of(row), row["reason"]) for row in left} >= {(0.0, "too hard"), (1.0, "too easy")}
    assert report["sources"] == {"r.jsonl": [len(kept), len(kept) + len(left)]}


@pytest.mark.slow
def test_the_kept_rows_are_in_the_order_of_a_curriculum(tmp_path, drawn):
    chosen, run = prepared(tmp_path, [0.3, 0.5, 0.7] * 10, "screening.sigma=0")
    screening.screen(chosen, run, right_reward)
    rates = [row["pass_rate"] for row in read_lines(run.screened)]
    assert rates == sorted(rates, reverse=True) and rates[0] > rates[-1]


def test_a_screened_run_is_not_screened_again(tmp_path, drawn, monkeypatch):
    chosen, run = prepared(tmp_path, [0.5] * 12 + [0.0] * 4)
    first = screening.screen(chosen, run, right_reward)
    monkeypatch.setattr(screening_rounds, "sample_completions", lambda *_: pytest.fail("sampled again"))
    assert screening.screen(chosen, run, right_reward) == first


def test_when_nothing_is_kept_the_samples_stay_and_no_stage_is_done(tmp_path, drawn):
    chosen, run = prepared(tmp_path, [0.0] * 5)
    with pytest.raises(RuntimeError, match=r"None of 5 prompts .*\(5 too hard, 0 too easy.*Widen the band"):
        screening.screen(chosen, run, right_reward)
    assert not run.screened.exists() and not run.left_out.exists() and "screen" not in run.stages()
    assert len(by_id(run)) == 5


def test_screening_without_data_names_the_missing_stage(tmp_path):
    with pytest.raises(FileNotFoundError, match="`grpo-kit data` first"):
        screening.screen(config.load_config(["tiny"]), find_run("r", tmp_path), right_reward)
    assert not (tmp_path / "r").exists()


@pytest.fixture
def screened(tmp_path, drawn):
    chosen, run = prepared(
        tmp_path, [0.3, 0.5, 0.7] * 20 + [0.0, 1.0] * 4, "grpo.max_steps=3", "grpo.per_device_train_batch_size=8",
        "grpo.num_generations=2", "grpo.max_completion_length=8", "grpo.reward_funcs=[x.py:f]",
        "grpo.reward_weights=[1.0]", "screening.sigma=0.05", "grpo.resample_budget=0",
    )  # fmt: skip
    screening.screen(chosen, run, right_reward)
    return chosen, run


@pytest.mark.slow
def test_training_takes_the_screened_rows_in_their_order_over_the_run(screened):
    chosen, run = screened
    kept = read_lines(run.screened)
    train.train(chosen, run, [wrong_reward])
    prompts = [line["prompt"] for line in read_lines(run.completions)[::2]]
    ordered = curriculum.order_rows(kept, 12, 0.05, chosen.run.seed)
    assert prompts == [row["prompt"][-1]["content"] for row in ordered]
    rates = [row["pass_rate"] for row in ordered]
    assert sum(rates[:4]) > sum(rates[4:8]) > sum(rates[8:])
    note = run.stages()["train"]
    assert set(note["read"]) == {"data/manifest.json", "data/train/screened.jsonl"}
    assert note["read"]["data/train/screened.jsonl"] == hash_of(run.screened)
    assert run.stages()["screen"]["read"] == {"data/manifest.json": hash_of(run.manifest)}
    with pytest.raises(ValueError, match=r"screening\.sigma was 0\.05, now 0\.3"):
        train.train(replace(chosen, screening=Screening(sigma=0.3)), run, [wrong_reward])


@pytest.mark.slow
def test_a_run_longer_than_its_rows_goes_from_easy_to_hard_once_not_once_per_epoch(screened):
    chosen, run = screened
    longer = replace(chosen, grpo=replace(chosen.grpo, max_steps=40, num_iterations=2))
    trainer = train.make_trainer(longer, run, [wrong_reward])
    rates = trainer.train_dataset["pass_rate"]
    assert len(rates) == 80 and not trainer.args.shuffle_dataset  # 40 steps of 4 prompts, each batch used twice
    assert sum(rates[:20]) > sum(rates[20:40]) > sum(rates[40:60]) > sum(rates[60:])


@pytest.mark.slow
def test_without_screening_training_samples_all_rows_by_their_learned_pass_rates(tmp_path):
    chosen, run = prepared(tmp_path, [0.5] * 12, "grpo.reward_funcs=[x.py:f]", "grpo.reward_weights=[1.0]")
    trainer = train.make_trainer(chosen, run, [wrong_reward])
    assert len(trainer.train_dataset) == trainer.prompt_sampler.size == 12 and trainer.prompt_sampler.kind == "useful"


@pytest.mark.slow
def test_screening_after_training_puts_the_training_out_of_date(tmp_path, drawn):
    chosen, run = prepared(
        tmp_path, [0.5] * 12, "grpo.max_steps=1", "grpo.per_device_train_batch_size=4", "grpo.num_generations=2",
        "grpo.max_completion_length=4", "grpo.reward_funcs=[x.py:f]", "grpo.reward_weights=[1.0]",
    )  # fmt: skip
    train.train(chosen, run, [wrong_reward])
    screening.screen(chosen, run, right_reward)
    with pytest.raises(ValueError, match=r"Stage 'train'.*screened\.jsonl changed since.*--force"):
        train.train(chosen, run, [wrong_reward])


@pytest.mark.slow
def test_new_data_makes_a_screening_out_of_date(screened, drawn):
    chosen, run = screened
    again = replace(chosen, data=replace(chosen.data, prompt_suffix="?"), run=replace(chosen.run, force=True))
    prepare(again, run)
    with pytest.raises(
        FileNotFoundError, match=r"screened\.jsonl, written by stage 'screen', is gone.*grpo-kit screen"
    ):
        train.train(chosen, run, [wrong_reward])
    later = replace(again, run=replace(again.run, force=False))
    with pytest.raises(ValueError, match=r"the file of training rows has changed.*--force"):
        screening.screen(later, run, right_reward)
    screening.screen(again, run, right_reward)
    assert screening.is_screened(run)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["screened", "left_out", "manifest"])
def test_a_file_changed_by_hand_is_noticed(screened, name):
    _, run = screened
    with getattr(run, name).open("a") as file:
        file.write("\n")
    sentence = r"is not as stage 'screen' wrote it.*`grpo-kit screen --force`"
    if name == "manifest":
        sentence = r"has changed since .* were screened.*`grpo-kit screen` again"
    with pytest.raises(ValueError, match=sentence):
        screening.is_screened(run)


@pytest.mark.slow
def test_on_the_command_line(tmp_path, drawn, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "right.py").write_text(
        "def right_reward(completions, **_):\n"
        "    return [float(c[0]['content'] == 'right' or 'boxed' in c[0]['content']) for c in completions]\n"
    )
    chosen, run = prepared(tmp_path, [0.5] * 10 + [0.0] * 4, "evaluation.verifier=right.py")

    def call(*words, status=0):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == status, done.output + str(done.exception)
        return " ".join(done.output.split())

    assert (
        "nothing was touched" in call("screen", "--run", "r", "--dry-run")
        and not (tmp_path / "runs/r/screening.jsonl").exists()
    )
    output = call("screen", "--run", "r")
    assert (
        "screen done" in output
        and "of 14 prompts kept, pass rate 0.1 to 0.9; left out:" in output
        and "too hard" in output
    )
    assert "0.5 to 0.6 █" in output and "of the 224 without stopping early" in output
    assert "screen skipped" in call("screen", "--run", "r")
    assert "--force" in call("screen", "--run", "r", "data.pass_rate=[0.2,0.8]", status=2)
    assert "pass rate 0.2 to 0.8" in call("screen", "--run", "r", "--force", "data.pass_rate=[0.2,0.8]")
    assert "`grpo-kit data --run nobody` first" in call("screen", "--run", "nobody", status=2)
    made = run.manifest.stat().st_mtime_ns
    prepare(
        replace(chosen, data=replace(chosen.data, pass_rate=[0.2, 0.8])), run
    )  # another band does not change the data
    assert run.manifest.stat().st_mtime_ns == made


@pytest.mark.slow
def test_estimating_pass_rates_samples_a_few_rows_and_writes_nothing(tmp_path, math_reward):
    chosen = config.load_config(["tiny"], [*SMALL, "run.name=r"])
    run = find_run("r", tmp_path)
    prepare(chosen, run)
    before = sorted(tmp_path.rglob("*"))
    rates = screening.estimate_pass_rates(chosen, run, math_reward, num_prompts=6, tries=4)
    assert len(rates) == 6 and set(rates) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert sorted(tmp_path.rglob("*")) == before


def test_estimating_pass_rates_reads_recorded_ones_and_never_loads_a_large_model(screened, monkeypatch):
    chosen, run = screened[:2]
    monkeypatch.setattr(screening, "load_policy", lambda policy: pytest.fail("loaded"))
    on_record = {line["id"]: line["pass_rate"] for line in read_lines(run.screening)[1:]}
    assert sorted(screening.estimate_pass_rates(chosen, run, right_reward)) == sorted(on_record.values())
    for path in (run.screened, run.left_out):
        path.unlink()
    large = config.load_config(["t4"])
    assert screening.estimate_pass_rates(large, run, right_reward) == []
