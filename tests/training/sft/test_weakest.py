"""The lowest log-prob of each text, and its place, beside what the model's own logits say."""

import torch

from grpo_kit.config import Policy
from grpo_kit.policy.load import load_tokenizer
from grpo_kit.training.sft import weakest
from grpo_kit.training.sft.rows import Row


class Scorer:
    """A trainer whose policy is the embedded one, and whose scores come from plain logits."""

    def __init__(self, model, tokenizer):
        self.model, self.processing_class = model, tokenizer

    @torch.no_grad()
    def score_tokens(self, ids, labels):
        logits = self.model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        target = torch.tensor(ids[1:])
        scores = logits.gather(1, target[:, None])[:, 0]
        return scores.masked_fill(torch.tensor(labels[1:]) == -100, 0), logits.argmax(-1) == target


def made(tokenizer, reply, place="line 1"):
    prompt = tokenizer.encode("<|im_start|>user\nWhat is 84 - 37?<|im_end|>\n<|im_start|>assistant\n<think>\n")
    return Row(prompt + tokenizer.encode(reply + "<|im_end|>"), len(prompt), place)


def test_the_place_of_the_least_likely_token_is_shown(tiny_policy):
    scorer = Scorer(*tiny_policy)
    rows = [made(scorer.processing_class, "looks like 47\n</think>\n\\boxed{47}"),
            made(scorer.processing_class, "looks like Z7\n</think>\n\\boxed{Z7}", "line 2")]  # fmt: skip
    found = weakest.find_weakest(scorer, rows, seed=1)
    worst = found["rows"][0]
    assert worst["place"] == "line 2" and worst["text"].startswith("looks like |Z|7\\n</think>\\n\\boxed{Z7}")
    assert worst["token"] == 12 and worst["logprob"] < -5 and not worst["greedy"]
    assert found["texts"] == 2 and found["rows"][1]["logprob"] > worst["logprob"] and found["greedy"] <= 0.5
    lengths = [len(row.input_ids) - row.prompt_length for row in rows]
    assert [row["tokens"] for row in found["rows"]] == lengths[::-1]


def test_of_many_texts_some_are_drawn_by_the_seed(tiny_policy, monkeypatch):
    scorer = Scorer(*tiny_policy)
    monkeypatch.setattr(weakest, "SCORED", 3)
    rows = [made(scorer.processing_class, f"{i}", f"line {i}") for i in range(9)]
    places = [{row["place"] for row in weakest.find_weakest(scorer, rows, seed)["rows"]} for seed in (1, 1, 2)]
    assert len(places[0]) == 3 and places[0] == places[1] != places[2]


def test_long_texts_are_cut_around_the_place():
    tokenizer = load_tokenizer(Policy())
    ids = tokenizer.encode("a" * 50 + "X" + "b" * 50)
    assert weakest.show_place(tokenizer, ids, 50) == "..." + "a" * 30 + "|X|" + "b" * 30 + "..."
    assert weakest.show_place(tokenizer, ids, 0) == "|a|" + "a" * 30 + "..."
