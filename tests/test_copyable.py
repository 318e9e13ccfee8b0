"""Every reward file can be pasted into an empty notebook cell and then behaves the same, called as TRL calls it."""

from pathlib import Path

import pytest

FILES = sorted(Path(__file__).resolve().parents[1].glob("grpo_kit/rewards/[a-z]*.py"))
REPLIES = ["7+8=15\n</think>\n\\boxed{85}", "looks like 84\n</think>\n\\boxed{84}", "cut while think", ""]
BROKEN = "from grpo_kit.prompts import text_of\n\ndef broken_reward(completions, **kwargs):\n    return [len(text_of(c)) for c in completions]\n"


def pasted(source):
    """The functions that a cell with this source would define, run with no package of ours in reach."""
    namespace = {"__name__": "__main__", "__builtins__": {**vars(__import__("builtins")), "__import__": only_outside}}
    exec(compile(source, "<cell>", "exec"), namespace)  # a test of our own files
    return {name: thing for name, thing in namespace.items() if name.endswith("_reward") and callable(thing)}


def only_outside(name, *args, **kwargs):
    if name.split(".")[0] == "grpo_kit":
        raise ImportError("a pasted reward has no grpo_kit")
    return __import__(name, *args, **kwargs)


def call_as_trl_does(reward, completions):
    return reward(
        prompts=[[{"role": "user", "content": "What is 47 + 38?"}]] * len(completions), completions=completions,
        completion_ids=[[1, 2]] * len(completions), answer=["85"] * len(completions), source=["x"] * len(completions),
        id=["y"] * len(completions), trainer_state=object(), log_extra=lambda *_: None, log_metric=lambda *_: None,
    )  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_pasted_reward_pays_the_same(path):
    from grpo_kit.reward_files import load_reward

    rewards = pasted(path.read_text())
    assert rewards, f"{path.name} defines no *_reward"
    for name, reward in rewards.items():
        for completions in (REPLIES, [[{"role": "assistant", "content": text}] for text in REPLIES]):
            paid = call_as_trl_does(reward, completions)
            assert paid == call_as_trl_does(load_reward(f"{path}:{name}"), completions)
            assert len(paid) == len(REPLIES) and all(p is None or isinstance(p, float) for p in paid)


def test_the_control_that_imports_from_the_kit_fails():
    with pytest.raises(ImportError, match="no grpo_kit"):
        pasted(BROKEN)
