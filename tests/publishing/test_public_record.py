"""What of a run's settings becomes public: numbers and known words, no path and no name of a user's file."""

import json
from dataclasses import replace

import pytest

from grpo_kit.config import Policy
from grpo_kit.publishing import run_facts
from grpo_kit.publishing.base import find_base
from grpo_kit.publishing.public_record import list_own_words, list_texts, make_record, public_settings


def test_the_record_names_no_path_and_nobody(trained):
    config, run = trained
    base = find_base(Policy(model="org/base"))
    record = make_record(run_facts.collect_facts(config, run, "ada/sums", base, {}))
    text = json.dumps(record)
    assert str(run.root) not in text and "/" not in text.replace("org/base", "")
    assert list(record) == ["base_model", "stages", "prompt", "data", "measurements"]
    settings = record["stages"]["train"]["settings"]
    assert settings["grpo"]["max_steps"] == config.grpo.max_steps and settings["lora"]["r"] == config.lora.r
    assert settings["lora"]["target_modules"] == config.lora.target_modules


# settings: what is public of them
SETTINGS = [
    ({"source": "/home/ada/x.jsonl", "max_steps": 5}, {"max_steps": 5}),
    ({"dpo": {"source": "secret.jsonl", "beta": 0.1}}, {"dpo": {"beta": 0.1}}),
    ({"policy": {"model": "/data/nemo", "revision": "x", "dtype": "float16"}}, {"policy": {"dtype": "float16"}}),
    ({"optim": "adamw_torch", "lr_scheduler_type": "/home"}, {"optim": "adamw_torch"}),
    ({"reward_funcs": ["math_answer.py:math_reward", "/home/ada/r.py:f", "r.py:f"]},
     {"reward_funcs": ["math_answer.py:math_reward", "own", "own"]}),
    ({"reward_funcs": ["../rewards/math_answer.py:math_reward"]}, {"reward_funcs": ["own"]}),
    ({"sets": ["test", "math500", "ada.csv"]}, {"sets": ["test", "math500", "own"]}),
    ({"target_modules": ["q_proj"], "stages": [{"steps": 3, "enter": "clipped"}]},
     {"target_modules": ["q_proj"], "stages": [{"steps": 3, "enter": "clipped"}]}),
    ({"target_modules": [".*(/home/ada)"]}, {}),
    ({"rewards": {"f": "a" * 64, "g": "ada"}, "verifier": "a" * 64}, {"rewards": {"f": "a" * 64}}),
    ({"system_prompt": "I am Ada", "columns": {"prompt": "ada"}}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "public"), SETTINGS, ids=lambda part: str(part)[:30])
def test_only_numbers_and_known_words_of_the_settings_are_public(settings, public):
    assert public_settings(settings) == public


# stage, source: in words
TEXTS = [
    ("sft", "traces", "traces of the kit's solvers for the run's own problems"),
    ("sft", "run:ada", "right completions of another run of the author"),
    (
        "sft",
        "org/set,/home/ada/x.jsonl,mine/x.csv",
        "`org/set` on the Hub, the author's own file, the author's own file",
    ),
    ("prefer", "completions", "pairs of the policy's own completions during GRPO, judged by their rewards"),
    ("prefer", "/home/ada/p.jsonl", "pairs of the author's own file"),
    ("train", "", ""),
]


@pytest.mark.parametrize(("stage", "source", "words"), TEXTS)
def test_what_a_stage_learned_from_names_no_file(stage, source, words):
    section = {"sft": "sft", "prefer": "dpo", "train": "grpo"}[stage]
    texts = list_texts(stage, {section: {"source": source}})
    assert ", ".join(text.words for text in texts) == words
    assert [text.hub for text in texts if text.hub] == ["org/set"] * ("org/set" in source)


def test_all_words_of_the_author_that_become_public_are_named(trained):
    config, run = trained
    facts = run_facts.collect_facts(config, run, "ada/sums", find_base(Policy(model="org/base")), {})
    assert list_own_words(facts) == {"rewards": "<lambda>"}
    data = replace(config.data, system_prompt="You are Ada's.\n", prompt_suffix=" Box it.")
    settings = {
        "lora": {"target_modules": ["q_proj", ".*ada"]},
        "grpo": {"reward_funcs": ["math_answer.py:math_reward", "/home/ada/r.py:of_ada"]},
        "rewards": {"math_reward": "0", "of_ada": "1", "code_reward": "2"},
        "environments": {"ada": {"reward_funcs": ["code_tests.py:code_reward"]}, "structured": {"reward_funcs": []}},
        "mix": {"ada": 1.0, "math": 1.0},
    }
    sft = {"sft": {"source": "traces,ada/texts,ada.jsonl"}}
    facts = facts._replace(
        config=replace(config, data=data),
        base=find_base(Policy(model="org/base", revision="v1"))._replace(is_named=True),
        records={  # the settings of the last stage have no rewards, which does not unsay those of the stage before
            "sft": {"settings": sft},
            "train": facts.records["train"] | {"settings": settings},
            "prefer": {"settings": {"lora": settings["lora"], "dpo": {"source": "run"}}},
        },
        sources=[
            run_facts.Source("ada/private", "unstated", "ada/private", 1, [], "x"),
            run_facts.Source("gsm8k", "mit", "openai/gsm8k", 1, [], "y"),
            run_facts.Source("own file 1", "unstated", None, 1, [], "ada.csv"),
        ],
    )
    assert list_own_words(facts) == {
        "data.system_prompt": "You are Ada's.\n", "data.prompt_suffix": " Box it.", "policy.revision": "v1",
        "--base": "org/base",
        "policy.model": "the tokenizer and the chat template of its folder",
        "data.source": "ada/private", "sft.source": "ada/texts",
        "lora.target_modules": ".*ada", "environments": "ada", "rewards": "of_ada",
    }  # fmt: skip
    assert make_record(facts._replace(records={}))["prompt"] == {
        "system_prompt": "You are Ada's.\n", "prompt_suffix": " Box it.", "enable_thinking": True,
    }  # fmt: skip
