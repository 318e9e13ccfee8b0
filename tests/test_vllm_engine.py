"""vLLM is used where it says what transformers says, and nowhere else.

vLLM itself is not installed where these tests run: a stand-in with the part of its API that is used answers through the
same policy, faithfully or with one of the faults that have been reported of it. What it does on a GPU is not covered.
"""

import sys
import types
from dataclasses import replace

import pytest
import torch

from grpo_kit import config, evaluate, generate, policy, vllm_engine
from grpo_kit.adapter import attach_adapter

ASKED = [[{"role": "user", "content": text}] for text in ("What is 47 + 38?", "What is 90 - 12?", "What is 5 + 6?")]


class SamplingParams:
    def __init__(self, temperature, max_tokens, stop_token_ids, top_p=1.0, top_k=0, seed=None, logprobs=None):
        self.__dict__.update(locals())


class StandIn:
    """`vllm.LLM` by transformers. `fault`: None, "crash", "no adapter", "other numbers"."""

    fault = None
    opened = []

    def __init__(self, model, revision, dtype, max_model_len, seed, enable_lora, max_lora_rank):
        if StandIn.fault == "crash":
            raise RuntimeError("CUDA error: an illegal\nmemory access")
        StandIn.opened.append(
            {"enable_lora": enable_lora, "max_lora_rank": max_lora_rank, "max_model_len": max_model_len}
        )
        self.model, _ = policy.load_policy(config.Policy())
        self.attached = False

    def generate(self, prompts, sampling_params, lora_request, use_tqdm):
        assert use_tqdm is False and len(prompts) == len(sampling_params)
        if lora_request and not self.attached and StandIn.fault != "no adapter":
            self.model, self.attached = attach_adapter(self.model, lora_request.path), True
        return [self._answer(p["prompt_token_ids"], how) for p, how in zip(prompts, sampling_params, strict=True)]

    def _answer(self, ids, how):
        drawing = {"do_sample": how.temperature > 0}
        if how.temperature > 0:
            torch.manual_seed(how.seed)
            drawing |= {"temperature": how.temperature, "top_p": how.top_p, "top_k": how.top_k}
        asked = torch.tensor([ids])
        whole = self.model.requires_grad_(False).generate(
            asked, attention_mask=torch.ones_like(asked), max_new_tokens=how.max_tokens, eos_token_id=how.stop_token_ids,
            pad_token_id=0, **drawing,
        )  # fmt: skip
        tokens = whole[0, len(ids) :].tolist()
        logits = self.model(whole).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        off = 0.3 if StandIn.fault == "other numbers" else 0.0
        logprobs = [
            {t: types.SimpleNamespace(logprob=float(row[t]) + off)} for t, row in zip(tokens, logits, strict=True)
        ]
        told = types.SimpleNamespace(token_ids=tokens, logprobs=None if how.logprobs is None else logprobs)
        return types.SimpleNamespace(outputs=[told])


@pytest.fixture
def vllm(monkeypatch):
    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams, module.__version__ = StandIn, SamplingParams, "0.17.1"
    request = types.ModuleType("vllm.lora.request")
    request.LoRARequest = lambda name, number, path: types.SimpleNamespace(
        name=name, number=number, path=policy.Path(path)
    )
    for name, found in (("vllm", module), ("vllm.lora", types.ModuleType("vllm.lora")), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, found)
    monkeypatch.setattr(StandIn, "fault", None)
    monkeypatch.setattr(StandIn, "opened", [])
    return StandIn


def chosen(**evaluation):
    return config.RunConfig(evaluation=config.Evaluation(max_completion_length=40, **evaluation))


@pytest.fixture
def strong_adapter(trained, tmp_path):
    """The trained adapter with its updates ten times as large, so that leaving it out is plain to see."""
    import json
    import shutil

    folder = shutil.copytree(trained[1].adapter, tmp_path / "adapter")
    told = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(told | {"lora_alpha": 10 * told["lora_alpha"]}))
    return folder


def test_a_faithful_vllm_is_used_and_answers_as_transformers_does(vllm, tiny_policy):
    engine, why = vllm_engine.open_engine(chosen(temperature=0.0), None, 300)
    assert (engine.name, why) == ("vllm 0.17.1", "")
    assert vllm.opened == [{"enable_lora": False, "max_lora_rank": 8, "max_model_len": 300}]
    ids = generate.encode(tiny_policy[1], generate.render(tiny_policy[1], ASKED, True))
    expected = generate.Transformers(*tiny_policy, chosen(temperature=0.0).evaluation)(ids, 1)
    assert engine(ids, 1) == expected


def test_each_request_is_drawn_from_its_own_seed(vllm, tiny_policy):
    engine, _ = vllm_engine.open_engine(chosen(), None)
    ids = generate.encode(tiny_policy[1], generate.render(tiny_policy[1], ASKED[:1] * 4, True))
    first = engine(ids, 7)
    assert first == engine(ids, 7) != engine(ids, 8) and len({s.text for s in first}) > 1
    assert len(engine(ids[:2], 2**63 - 1)) == 2  # the largest seed has no successor


def test_the_adapter_is_on_while_vllm_is_tried(vllm, strong_adapter):
    engine, why = vllm_engine.open_engine(chosen(), strong_adapter)
    assert (engine.name, why) == ("vllm 0.17.1", "") and vllm.opened[0]["enable_lora"]
    assert vllm.opened[0]["max_lora_rank"] == 16


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("crash", "vLLM failed: RuntimeError: CUDA error: an illegal memory access"),
        ("no adapter", "vLLM"),
        ("other numbers", "log-probabilities are not those of transformers: 0.30, 0.30"),
    ],
)
def test_a_vllm_at_fault_is_left_for_transformers_and_the_reason_said(vllm, strong_adapter, monkeypatch, fault, said):
    monkeypatch.setattr(vllm, "fault", fault)
    engine, why = vllm_engine.open_engine(chosen(), strong_adapter)
    assert engine.name.startswith("transformers ") and said in why


@pytest.mark.parametrize(
    ("expected", "told", "said"),
    [
        (([1, 2], [-0.1, -0.2]), ([1, 2], [-0.15, -0.2]), ""),
        (([1, 2], [-0.1, -0.2]), ([1, 2], [-0.1, -0.31]), "0.00, 0.11 nats away"),
        (([1, 2], [-0.1, -0.2]), ([1, 3], [-0.1, -0.2]), "another token than transformers, at 2 of 2"),
        (([1, 2], [-0.1, -0.2]), ([1], [-0.1]), "at 2 of 2"),  # it ended early
        (([1, 2], [-0.1, -0.2]), ([1, 2], [-0.1, float("nan")]), "0.00, nan nats away"),
    ],
)
def test_what_counts_as_saying_the_same(expected, told, said):
    found = vllm_engine.differs(expected, told)
    assert said in found and bool(said) == bool(found)


def test_vllm_is_not_tried_where_it_cannot_serve_or_is_not_wanted(vllm, monkeypatch):
    assert vllm_engine.open_engine(chosen(use_vllm=False), None)[1] == "evaluation.use_vllm is false"
    four_bit = replace(chosen(), policy=config.Policy(load_in_4bit=True))
    assert "4 bit" in vllm_engine._unfit(four_bit)
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not installed
    assert vllm_engine.open_engine(chosen(), None)[1] == "vLLM does not import (ModuleNotFoundError)"
    assert vllm.opened == []


def test_an_evaluation_says_what_drew_it(vllm, tmp_path, math_reward):
    from tests.test_evaluate import fresh

    settings, run = fresh(tmp_path)
    found = evaluate.before(settings, run, math_reward)
    assert (found["sampling"]["engine"], found["sampling"]["engine_why"]) == ("vllm 0.17.1", "")
