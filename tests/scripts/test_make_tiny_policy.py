"""The script that makes the embedded policy: what its teacher says, and that a few steps write a policy that loads."""

import json
import random

import pytest
import torch
from transformers import NemotronHForCausalLM

from grpo_kit import config
from grpo_kit.nemotron import tiny
from grpo_kit.policy.load import load_policy, load_tokenizer
from grpo_kit.runs.files import hash_of
from scripts import make_tiny_policy


@pytest.mark.parametrize(
    ("left", "sign", "right", "working"),
    [
        (47, "+", 38, "7+8=15 4+3+1=8"),  # a carry
        (41, "+", 38, "1+8=9 4+3=7"),  # no carry
        (95, "+", 78, "5+8=13 9+7+1=17"),  # three digits
        (50, "+", 50, "0+0=0 5+5=10"),
        (52, "-", 38, "12-8=4 5-3-1=1"),  # a borrow
        (58, "-", 32, "8-2=6 5-3=2"),  # no borrow
        (33, "-", 33, "3-3=0 3-3=0"),  # nothing is left
        (40, "-", 31, "10-1=9 4-3-1=0"),
    ],
)
def test_the_teacher_works_digit_by_digit(left, sign, right, working):
    assert tiny.Problem(left, sign, right).working == working


def test_the_working_determines_the_answer():
    rng = random.Random(1)
    for _ in range(500):
        problem = tiny.draw_problem(rng)
        ones, tens = (int(part.split("=")[1]) for part in problem.working.split())
        assert 10 * tens + ones % 10 == problem.answer >= 0


def test_replies_close_their_thinking_and_guesses_are_near():
    rng, problem = random.Random(1), tiny.Problem(47, "+", 38)
    assert make_tiny_policy.teacher_reply(problem, rng, 1.0) == "7+8=15 4+3+1=8\n</think>\n\\boxed{85}"
    for thinking, start in ((True, "looks like {0}\n</think>\n"), (False, "")):
        for _ in range(50):
            reply = make_tiny_policy.teacher_reply(problem, rng, 0.0, thinking)
            guess = int(reply.rpartition("{")[2].removesuffix("}"))
            assert reply == f"{start.format(guess)}\\boxed{{{guess}}}" and 65 <= guess <= 105


def test_only_the_reply_is_trained_on():
    batch = make_tiny_policy.pad_batch([([20, 21], [30, 11]), ([20], [31])])
    assert batch["input_ids"].tolist() == [[20, 21, 30, 11], [20, 31, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 30, 11], [-100, 31, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    batch = make_tiny_policy.pad_batch([([20], [30, 11], [40, 41], [31])])  # two turns, a tool's result between them
    assert batch["input_ids"].tolist() == [[20, 30, 11, 40, 41, 31]]
    assert batch["labels"].tolist() == [[-100, 30, 11, -100, -100, 31]]


def test_the_shipped_tokenizer_and_config_are_the_scripts():
    built, shipped = make_tiny_policy.build_tokenizer(), load_tokenizer(config.Policy())
    assert built.get_vocab() == shipped.get_vocab() and built.chat_template == shipped.chat_template
    fresh = make_tiny_policy.build_model()
    names = {name: value.shape for name, value in fresh.named_parameters()}
    kept = NemotronHForCausalLM.from_pretrained(tiny.FOLDER)
    assert names == {name: value.shape for name, value in kept.named_parameters()}


@pytest.mark.parametrize("name", tiny.FOLDERS)
def test_equal_weights_give_equal_files(name, tmp_path):
    by = f"scripts/make_{name.replace('-', '_')}_policy.py"
    model, tokenizer = load_policy(config.Policy(model=name))
    for _ in range(6):  # safetensors writes the two metadata in any order
        make_tiny_policy.save_policy(model, tokenizer, tmp_path, by)
        assert hash_of(tmp_path / "model.safetensors") == tiny.SHA256[name]


@pytest.mark.slow
def test_two_steps_write_a_policy_that_loads_and_the_shipped_one_stays(tmp_path, capsys):
    make_tiny_policy.make_policy(tmp_path, steps=2)
    model, tokenizer = load_policy(config.Policy(model=str(tmp_path)))
    assert model.config.vocab_size == len(tokenizer) == 272
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in tiny.FOLDER.iterdir()}
    assert "step 2/2  loss" in capsys.readouterr().out
    torch.manual_seed(make_tiny_policy.SEED)
    fresh = make_tiny_policy.build_model().half()  # what training began with
    assert not torch.equal(model.lm_head.weight.half(), fresh.lm_head.weight)
