"""vLLM is used where it gives the results of transformers, and nowhere else.

vLLM itself is not installed where these tests run. A stand-in with the part of its API that is used answers with the
same policy, correctly or with one of the faults that were reported of vLLM. Its behaviour on a GPU is not covered.
"""

import json
import sys
import types
from dataclasses import replace
from http.server import BaseHTTPRequestHandler

import pytest
import torch

from grpo_kit import config
from grpo_kit.adapters.lora import attach_adapter
from grpo_kit.data.preparation import prepare
from grpo_kit.evaluation import evaluate
from grpo_kit.policy import generate, vllm_engine
from grpo_kit.policy.chat import encode_prompt
from grpo_kit.policy.load import Path, load_policy
from grpo_kit.policy.model_source import policy_source
from grpo_kit.runs.run import find_run
from tests.helpers.loopback import Server

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
        self.model, _ = load_policy(config.Policy())
        self.attached = False

    def generate(self, prompts, sampling_params, lora_request, use_tqdm):
        assert use_tqdm is False and len(prompts) == len(sampling_params)
        if lora_request and not self.attached and StandIn.fault != "no adapter":
            self.model, self.attached = attach_adapter(self.model, lora_request.path), True
        return [self._answer(p["prompt_token_ids"], params) for p, params in zip(prompts, sampling_params, strict=True)]

    def _answer(self, ids, params):
        sampling = {"do_sample": params.temperature > 0}
        if params.temperature > 0:
            torch.manual_seed(params.seed)
            sampling |= {"temperature": params.temperature, "top_p": params.top_p, "top_k": params.top_k}
        inputs = torch.tensor([ids])
        sequence = self.model.requires_grad_(False).generate(
            inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=params.max_tokens,
            eos_token_id=params.stop_token_ids, pad_token_id=0, **sampling,
        )  # fmt: skip
        tokens = sequence[0, len(ids) :].tolist()
        logits = self.model(sequence).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        off = 0.3 if StandIn.fault == "other numbers" else 0.0
        logprobs = [
            {t: types.SimpleNamespace(logprob=float(row[t]) + off)} for t, row in zip(tokens, logits, strict=True)
        ]
        output = types.SimpleNamespace(token_ids=tokens, logprobs=None if params.logprobs is None else logprobs)
        return types.SimpleNamespace(outputs=[output])


@pytest.fixture
def vllm(monkeypatch):
    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams, module.__version__ = StandIn, SamplingParams, "0.17.1"
    request = types.ModuleType("vllm.lora.request")
    request.LoRARequest = lambda name, number, path: types.SimpleNamespace(name=name, number=number, path=Path(path))
    for name, fake in (("vllm", module), ("vllm.lora", types.ModuleType("vllm.lora")), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, fake)
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
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": 10 * settings["lora_alpha"]}))
    return folder


@pytest.mark.slow
def test_a_faithful_vllm_is_used_and_answers_as_transformers_does(vllm, tiny_policy):
    engine, reason = vllm_engine.open_engine(chosen(temperature=0.0), None, 300)
    assert (engine.name, reason) == ("vllm 0.17.1", "")
    assert vllm.opened == [{"enable_lora": False, "max_lora_rank": 8, "max_model_len": 300}]
    ids = [encode_prompt(tiny_policy[1], messages, True) for messages in ASKED]
    expected = generate.TransformersEngine(*tiny_policy, chosen(temperature=0.0).evaluation)(ids, 1)
    assert engine(ids, 1) == expected


@pytest.mark.slow
def test_each_request_is_drawn_from_its_own_seed(vllm, tiny_policy):
    engine, _ = vllm_engine.open_engine(chosen(), None)
    ids = [encode_prompt(tiny_policy[1], ASKED[0], True)] * 4
    first = engine(ids, 7)
    assert first == engine(ids, 7) != engine(ids, 8) and len({s.text for s in first}) > 1
    assert len(engine(ids[:2], 2**63 - 1)) == 2  # the largest seed has no successor


@pytest.mark.slow
def test_the_adapter_is_on_while_vllm_is_tried(vllm, strong_adapter):
    engine, reason = vllm_engine.open_engine(chosen(), strong_adapter)
    assert (engine.name, reason) == ("vllm 0.17.1", "") and vllm.opened[0]["enable_lora"]
    assert vllm.opened[0]["max_lora_rank"] == 16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("crash", "vLLM failed: RuntimeError: CUDA error: an illegal memory access"),
        ("no adapter", "vLLM"),
        ("other numbers", "log-probabilities differ from those of transformers by 0.30, 0.30"),
    ],
)
def test_a_vllm_at_fault_is_left_for_transformers_and_the_reason_said(
    vllm, strong_adapter, monkeypatch, fault, message
):
    monkeypatch.setattr(vllm, "fault", fault)
    engine, reason = vllm_engine.open_engine(chosen(), strong_adapter)
    assert engine.name.startswith("transformers ") and message in reason


@pytest.mark.parametrize(
    ("expected", "answer", "message"),
    [
        (([1, 2], [-0.1, -0.2]), ([1, 2], [-0.15, -0.2]), ""),
        (([1, 2], [-0.1, -0.2]), ([1, 2], [-0.1, -0.31]), "0.00, 0.11 nats"),
        (([1, 2], [-0.1, -0.2]), ([1, 3], [-0.1, -0.2]), "another token than transformers, at 2 of 2"),
        (([1, 2], [-0.1, -0.2]), ([1], [-0.1]), "at 2 of 2"),  # it ended early
        (([1, 2], [-0.1, -0.2]), ([1, 2], [-0.1, float("nan")]), "0.00, nan nats"),
    ],
)
def test_what_counts_as_the_same_result(expected, answer, message):
    difference = vllm_engine.describe_difference(vllm_engine.Continuation(*expected), vllm_engine.Continuation(*answer))
    assert message in difference and bool(message) == bool(difference)


def test_vllm_is_not_tried_where_it_cannot_serve_or_is_not_wanted(vllm, monkeypatch):
    assert vllm_engine.open_engine(chosen(use_vllm=False), None)[1] == "evaluation.use_vllm is false"
    four_bit = replace(chosen(), policy=config.Policy(load_in_4bit=True))
    assert "4 bit" in vllm_engine.open_engine(four_bit, None)[1]
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not installed
    assert vllm_engine.open_engine(chosen(), None)[1] == "vLLM does not import (ModuleNotFoundError)"
    assert vllm.opened == []


@pytest.mark.slow
def test_an_evaluation_says_what_drew_it(vllm, tmp_path, math_reward):
    settings = config.load_config(["tiny"], ["data.limit=20", "data.test_size=6", "data.val_size=2"])
    run = find_run("r", tmp_path / "runs")
    prepare(settings, run)
    report = evaluate.measure(settings, run, "before", math_reward)
    assert (report["sampling"]["engine"], report["sampling"]["engine_why"]) == ("vllm 0.17.1", "")


# --- Who draws a training's completions


def training(mode):
    return replace(config.load_config(["tiny"]), grpo=replace(config.load_config(["tiny"]).grpo, vllm=mode))


@pytest.mark.slow
def test_a_faithful_vllm_in_the_same_process_draws_for_the_training(vllm, tmp_path):
    from grpo_kit.training.trl_settings import make_trl_config

    arguments, reason = vllm_engine.choose_trainer_engine(training("colocate"))
    assert (arguments, reason) == ({"use_vllm": True, "vllm_mode": "colocate"}, "")
    args = make_trl_config(training("colocate"), tmp_path, **arguments)
    assert args.use_vllm and args.vllm_mode == "colocate" and not make_trl_config(training(None), tmp_path).use_vllm
    assert vllm_engine.choose_trainer_engine(training(None)) == ({}, "")


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "message"), [("crash", "vLLM failed: RuntimeError"), ("other numbers", "0.30 nats")])
def test_one_at_fault_does_not(vllm, monkeypatch, fault, message):
    monkeypatch.setattr(vllm, "fault", fault)
    arguments, reason = vllm_engine.choose_trainer_engine(training("colocate"))
    assert arguments == {} and message in reason


@pytest.mark.slow
def test_where_vllm_is_missing_transformers_draws_and_the_reason_is_said(tmp_path, monkeypatch):
    from grpo_kit.training import train
    from tests.helpers.settings import SMALL

    monkeypatch.setitem(sys.modules, "vllm", None)
    settings = config.load_config(["tiny"], [*SMALL, "grpo.vllm=server"])
    run = find_run("r", tmp_path)
    prepare(settings, run)
    with pytest.warns(UserWarning, match=r"grpo.vllm=server is not used \(vLLM does not import.*transformers draws"):
        trainer = train.make_trainer(settings, run, [lambda completions, **_: [0.0] * len(completions)] * 2)
    assert not trainer.use_vllm


@pytest.fixture
def server(tiny_policy, monkeypatch):
    """The two answers of `vllm serve` that are used, on loopback; `fault` as StandIn's, or another model's name."""
    state = types.SimpleNamespace(fault=None, model=policy_source(config.Policy()))

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            self.say({"data": [{"id": state.model}]} if self.path == "/v1/models" else {})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            tokens, logprobs = vllm_engine.continue_with_transformers(*tiny_policy, body["prompt"])
            assert body["max_tokens"] == vllm_engine.PROBE_TOKENS and body["temperature"] == 0
            off = 0.3 if state.fault == "other numbers" else 0.0
            answer = {"tokens": [f"token_id:{t}" for t in tokens], "token_logprobs": [p + off for p in logprobs]}
            self.say({"choices": [{"logprobs": answer}]})

        def say(self, what):
            self.send_response(500 if state.fault == "crash" else 200)
            self.end_headers()
            self.wfile.write(json.dumps(what).encode())

        def log_message(self, *args):
            pass

    served = Server(Answers)
    monkeypatch.setattr(vllm_engine.VllmServer.__init__, "__defaults__", (served.url,))
    yield state
    served.close()


@pytest.mark.slow
def test_a_faithful_server_draws_for_the_training(vllm, server):
    assert vllm_engine.choose_trainer_engine(training("server")) == ({"use_vllm": True, "vllm_mode": "server"}, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "model", "message"),
    [
        ("other numbers", None, "0.30 nats"),
        ("crash", None, "vLLM failed: HTTPError: 500"),
        (None, "another/model", "the server has another/model, not"),
    ],
)
def test_another_server_does_not(vllm, server, fault, model, message):
    server.fault, server.model = fault, model or server.model
    arguments, reason = vllm_engine.choose_trainer_engine(training("server"))
    assert arguments == {} and message in reason


@pytest.mark.slow
def test_no_server_at_all_is_a_reason(vllm, monkeypatch):
    monkeypatch.setattr(vllm_engine.VllmServer.__init__, "__defaults__", ("http://127.0.0.1:1",))
    arguments, reason = vllm_engine.choose_trainer_engine(training("server"))
    assert arguments == {} and "vLLM failed: ConnectionError" in reason
