"""Completions by vLLM where it is installed and says what transformers says; the only file that knows vLLM.

vLLM is many times faster on the GPUs it is made for, and on others it has been seen to leave LoRA modules out or to
crash. So it is asked one short question first, greedily, with the adapter on, and is used only where it draws the same
tokens with the same log-probabilities as transformers does. Written for vLLM 0.17's public API, which could not be
installed where this was written: no figure of it has been measured, and the tests put a stand-in in its place.
"""

import gc
import json
import math
from pathlib import Path
from typing import Any

import requests
import torch

from grpo_kit.adapters.lora import attach_adapter
from grpo_kit.config import RunConfig
from grpo_kit.policy import generate
from grpo_kit.policy.chat import build_messages, encode_prompt
from grpo_kit.policy.load import load_policy, policy_source

PROBE = build_messages("What is 12 + 34?")
PROBE_TOKENS = 16
SERVER, TIMEOUT = "http://127.0.0.1:8000", 60.0  # where TRL looks for one; seconds for an answer
CLOSE = 0.1  # largest difference of a log-probability, in nats, that 16-bit arithmetic in another order may make


class VllmEngine:
    """Draws by vLLM. Called with the token ids of one batch and its seed, gives a `generate.Sample` for each."""

    def __init__(
        self, config: RunConfig, adapter: Path | None, tokenizer: Any, ends: list[int], max_model_len: int | None
    ) -> None:
        import vllm
        from vllm.lora.request import LoRARequest

        self.tokenizer, self.ends, self.evaluation, self.max_model_len = (
            tokenizer,
            ends,
            config.evaluation,
            max_model_len,
        )
        self.name, self.params = f"vllm {vllm.__version__}", vllm.SamplingParams
        rank = json.loads((adapter / "adapter_config.json").read_text())["r"] if adapter else 0
        self.lora = LoRARequest("adapter", 1, str(adapter)) if adapter else None
        self.llm = vllm.LLM(
            model=policy_source(config.policy), revision=config.policy.revision, dtype=config.policy.dtype,
            max_model_len=max_model_len, seed=config.run.seed, enable_lora=bool(adapter),
            max_lora_rank=max(8, 2 ** math.ceil(math.log2(rank or 1))),
        )  # fmt: skip

    def __call__(self, ids: list[list[int]], seed: int) -> list[generate.Sample]:
        how, left = self.evaluation, generate.completion_limits(ids, self.evaluation, self.max_model_len)
        asked = [
            {"temperature": how.temperature, "top_p": how.top_p, "top_k": how.top_k, "seed": (seed + i) % 2**63, "max_tokens": most}
            for i, most in enumerate(left)
        ]  # fmt: skip
        return [generate.make_sample(self.tokenizer, tokens, self.ends) for tokens, _ in self._ask(ids, asked)]

    def greedy(self, ids: list[int], count: int) -> tuple[list[int], list[float]]:
        """(tokens, their log-probabilities) of the likeliest completion, at most `count` tokens."""
        return self._ask([ids], [{"temperature": 0.0, "max_tokens": count, "logprobs": 0}])[0]

    def _ask(self, ids: list[list[int]], asked: list[dict[str, Any]]) -> list[tuple[list[int], list[float]]]:
        done = self.llm.generate(
            [{"prompt_token_ids": prompt} for prompt in ids],
            [self.params(stop_token_ids=self.ends, **how) for how in asked], lora_request=self.lora, use_tqdm=False,
        )  # fmt: skip
        told = [request.outputs[0] for request in done]
        return [
            (list(t.token_ids), [step[token].logprob for token, step in zip(t.token_ids, t.logprobs or [])])
            for t in told
        ]


class VllmServer:
    """A running `trl vllm-serve` or `vllm serve`, asked by its public completions API; raises what `requests` raises."""

    def __init__(self, url: str = SERVER) -> None:
        self.url = url
        self.model = self._told(requests.get(f"{url}/v1/models", timeout=TIMEOUT))["data"][0]["id"]

    def greedy(self, ids: list[int], count: int) -> tuple[list[int], list[float]]:
        """(tokens, their log-probabilities) of the likeliest completion, at most `count` tokens."""
        asked = {
            "model": self.model, "prompt": ids, "max_tokens": count, "temperature": 0, "logprobs": 0,
            "return_tokens_as_token_ids": True,
        }  # fmt: skip
        told = self._told(requests.post(f"{self.url}/v1/completions", json=asked, timeout=TIMEOUT))
        found = told["choices"][0]["logprobs"]
        return [int(name.removeprefix("token_id:")) for name in found["tokens"]], found["token_logprobs"]

    @staticmethod
    def _told(answer: requests.Response) -> Any:
        answer.raise_for_status()
        return answer.json()


def choose_trainer_engine(config: RunConfig) -> tuple[dict[str, Any], str]:
    """(what `GRPOConfig` is to be told so that vLLM draws a training's completions, or nothing; why nothing, or "").

    Asked and held against transformers with the base as it is: that the adapter's updates arrive later is what the training's
    own `sampling/logp_gap` shows.
    """
    mode = config.grpo.vllm
    if mode is None:
        return {}, ""
    if why := _missing(config):
        return {}, why
    model, tokenizer = load_policy(config.policy)
    ids = encode_prompt(tokenizer, PROBE, config.policy.enable_thinking)
    expected, ends = _greedy(model, tokenizer, ids), generate.find_end_tokens(model, tokenizer)
    del model
    _free()
    try:
        engine = VllmServer() if mode == "server" else VllmEngine(config, None, tokenizer, ends, None)
        if mode == "server" and engine.model != policy_source(config.policy):
            return {}, f"the server has {engine.model}, not {policy_source(config.policy)}"
        why = describe_difference(expected, engine.greedy(ids, PROBE_TOKENS))
    except Exception as error:  # a library, or a server, that fails in ways of its own
        why = f"vLLM failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    engine = None
    _free()
    return ({}, why) if why else ({"use_vllm": True, "vllm_mode": mode}, "")


def open_engine(
    config: RunConfig, adapter: Path | None, max_model_len: int | None = None
) -> tuple[generate.TransformersEngine | VllmEngine, str]:
    """(what draws completions of the policy, with the adapter if one is given; why that is not vLLM, or "")."""
    model, tokenizer = _load(config, adapter)
    why = _unfit(config)
    if not why:
        ids = encode_prompt(tokenizer, PROBE, config.policy.enable_thinking)
        expected, ends = _greedy(model, tokenizer, ids), generate.find_end_tokens(model, tokenizer)
        del model  # the card holds one of the two at a time
        _free()
        try:
            engine = VllmEngine(config, adapter, tokenizer, ends, max_model_len)
            why = describe_difference(expected, engine.greedy(ids, PROBE_TOKENS))
        except Exception as error:  # a library that fails in ways of its own; what it says is kept as the reason
            why = f"vLLM failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if not why:
            return engine, ""
        engine = None
        _free()
        model, tokenizer = _load(config, adapter)
    return generate.TransformersEngine(model, tokenizer, config.evaluation, max_model_len), why


def describe_difference(expected: tuple[list[int], list[float]], told: tuple[list[int], list[float]]) -> str:
    """In what vLLM's greedy (tokens, log-probabilities) are not those of transformers; "" where they agree."""
    if expected[0] != told[0]:
        pairs = zip(expected[0], told[0])
        at = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(expected[0]), len(told[0])))
        return f"vLLM draws another token than transformers, at {at + 1} of {len(expected[0])}"
    apart = [abs(a - b) for a, b in zip(expected[1], told[1], strict=True)]
    if all(nats <= CLOSE for nats in apart):  # NaN is not
        return ""
    return f"vLLM's log-probabilities are not those of transformers: {', '.join(f'{nats:.2f}' for nats in apart)} nats away"


def _unfit(config: RunConfig) -> str:
    return _missing(config) if config.evaluation.use_vllm else "evaluation.use_vllm is false"


def _missing(config: RunConfig) -> str:
    if config.policy.load_in_4bit:
        return "the policy is in 4 bit as transformers loads it"
    try:
        import vllm  # noqa: F401
    except Exception as error:  # it may be missing, or be there without a library of its own
        return f"vLLM does not import ({type(error).__name__})"
    return ""


def _load(config: RunConfig, adapter: Path | None) -> tuple[Any, Any]:
    model, tokenizer = load_policy(config.policy)
    return (attach_adapter(model, adapter) if adapter else model), tokenizer


def _greedy(model: Any, tokenizer: Any, ids: list[int]) -> tuple[list[int], list[float]]:
    asked, ends = torch.tensor([ids], device=model.device), generate.find_end_tokens(model, tokenizer)
    with torch.inference_mode():
        whole = model.generate(
            asked, attention_mask=torch.ones_like(asked), do_sample=False, max_new_tokens=PROBE_TOKENS,
            eos_token_id=ends, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        logits = model(whole).logits[0, len(ids) - 1 : -1].float().log_softmax(-1)
    tokens = whole[0, len(ids) :]
    return tokens.tolist(), logits.gather(1, tokens[:, None])[:, 0].tolist()


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
