"""Rows without thinking and rows with a budget: how many, which, their prompts, and their rewards."""

import pytest

from grpo_kit import config
from grpo_kit.data import splits
from grpo_kit.data.preparation import prepare
from grpo_kit.rewards.tools.loading import load_reward
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from grpo_kit.training import train
from tests.helpers.settings import SMALL

BOTH = ["data.no_thinking=0.3", "data.budgeted=0.2", "data.token_budgets=[8,16]"]


def row(number, **more):
    return {"id": f"r{number}", "prompt": [{"role": "user", "content": f"q{number}"}], "answer": "4", **more}


def make_rows(*overrides, count=2000, seed=1):
    settings = config.load_config(["tiny"], overrides).data
    return [splits.add_row_option(row(i), settings, seed) for i in range(count)]


def test_by_default_a_row_is_left_as_it_is():
    assert make_rows(count=3) == [row(0), row(1), row(2)]


def test_the_shares_are_those_asked_for_and_a_row_is_of_one_kind():
    rows = make_rows(*BOTH)
    bare, budgeted = [r for r in rows if not r["enable_thinking"]], [r for r in rows if r["token_budget"]]
    assert len(bare) / len(rows) == pytest.approx(0.3, abs=0.03)
    assert len(budgeted) / len(rows) == pytest.approx(0.2, abs=0.03)
    assert not any(r["token_budget"] for r in bare)
    assert {r["token_budget"] for r in budgeted} == {8, 16}


def test_a_budget_is_stated_at_the_end_of_the_prompt_and_nothing_else_is_changed():
    for given, changed in zip(map(row, range(200)), make_rows(*BOTH, count=200), strict=True):
        sentence = f"\nThink for at most {changed['token_budget']} tokens." if changed["token_budget"] else ""
        assert changed["prompt"] == [{"role": "user", "content": given["prompt"][0]["content"] + sentence}]


def test_the_choice_of_rows_depends_on_seed_and_id_alone():
    assert make_rows(*BOTH, count=50) == make_rows(*BOTH, count=100)[:50]
    assert make_rows(*BOTH, count=50, seed=1) != make_rows(*BOTH, count=50, seed=2)


def test_only_training_rows_have_options(tmp_path):
    settings = config.load_config(["tiny"], [*SMALL, *BOTH])
    run = find_run("r", tmp_path)
    prepare(settings, run)
    assert all("enable_thinking" in r for r in read_lines(run.data_file("train")))
    assert not any("enable_thinking" in r for split in ("val", "test") for r in read_lines(run.data_file(split)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.no_thinking=1.5"], r"data\.no_thinking is 1\.5; it is a share"),
        (["data.budgeted=-1"], r"data\.budgeted is -1\.0; it is a share"),
        (["data.no_thinking=0.6", "data.budgeted=0.6", "data.token_budgets=[8]"], "more than all rows together"),
        (["data.budgeted=0.5"], r"data\.token_budgets is empty.*data\.token_budgets=\["),
        (["data.budgeted=0.5", "data.token_budgets=[8,0]"], r"data\.token_budgets is 0"),
    ],
)
def test_invalid_shares_and_budgets_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        config.load_config(["tiny"], overrides)


@pytest.mark.slow
def test_training_passes_row_options_to_the_template_and_the_rewards(tmp_path):
    """TRL 1.16 knows one set of template keywords for all rows; the end of its prompts is read from their tokens."""
    settings = config.load_config(["tiny"], [*SMALL, *BOTH, "grpo.max_steps=3"])
    run = find_run("r", tmp_path)
    prepare(settings, run)
    batches, texts = [], []

    def watching_reward(**batch):
        batches.append(batch)
        return [float(i % 2) for i in range(len(batch["completions"]))]

    trainer = train.make_trainer(settings, run, [watching_reward, load_reward("reasoning_format.py")])
    tokenizer, template = trainer.processing_class, trainer.processing_class.apply_chat_template

    def reading(conversation, **options):
        encoded = template(conversation, **options)
        texts.append([tokenizer.decode(ids) for ids in encoded["input_ids"]])
        return encoded

    tokenizer.apply_chat_template = reading
    trainer.train()
    thinks = [word for batch in batches for word in batch["enable_thinking"]]
    assert {True, False} == set(thinks) and len(texts) == len(batches) == 3
    for batch, prompts in zip(batches, texts, strict=True):
        assert batch["prompt_opened_think"] == batch["enable_thinking"]
        assert [text.endswith("<think>\n") for text in prompts] == batch["enable_thinking"]
        assert [text.endswith("<think></think>") for text in prompts] == [not word for word in batch["enable_thinking"]]
        for text, budget in zip(prompts, batch["token_budget"], strict=True):
            assert (f"Think for at most {budget} tokens." in text) == (budget is not None)


def test_a_bare_answer_is_paid_only_on_rows_with_thinking_off(math_reward):
    completions = [[{"role": "assistant", "content": "\\boxed{4}"}]] * 2
    columns = {"prompt_opened_think": [True, False], "enable_thinking": [True, False]}
    assert math_reward(completions=completions, answer=["4", "4"], **columns) == [0.0, 1.0]
    assert load_reward("reasoning_format.py")(completions=completions, answer=["4", "4"], **columns) == [0.0, 1.0]
