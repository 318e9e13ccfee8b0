"""Completions by vLLM, where it is installed and gives the same results as transformers. Only this file imports vLLM.

vLLM is many times faster on the GPUs it supports. On others it has been seen to ignore LoRA modules or to crash. So it
first answers one short prompt greedily, with the adapter, and is used only if tokens and log-probabilities agree with
those of transformers. This is written for the public API of vLLM 0.17, which could not be installed here: the tests use
a stand-in, and nothing was measured with vLLM itself.
"""

import gc
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import requests
import torch

from grpo_kit.adapters.lora import attach_adapter
from grpo_kit.config import RunConfig
from grpo_kit.policy import generate
from grpo_kit.policy.chat import build_messages, encode_prompt
from grpo_kit.policy.load import load_policy
from grpo_kit.policy.model_source import policy_source
from grpo_kit.runs.installation import require_no_old_torchao

PROBE = build_messages("What is 12 + 34?")
PROBE_TOKENS = 16
SERVER_URL = "http://127.0.0.1:8000"  # where TRL expects a vLLM server
TIMEOUT = 60.0  # seconds to wait for the server's answer
LARGEST_GAP = 0.1  # nats; 16-bit arithmetic in another order may change a log-probability by that much


class Continuation(NamedTuple):
    """A greedy completion: its token ids and their log-probabilities in nats."""

    tokens: list[int]
    logprobs: list[float]


class VllmEngine:
    """Samples completions with vLLM in this process. `counts_thinking` is that of `TransformersEngine`.

    Args:
        config: the policy, the sampling settings and the seed.
        adapter: folder of the LoRA adapter to use; None for the base model.
        tokenizer: the policy's tokenizer.
        ends: ids of the tokens that end a completion.
        max_model_len: tokens that prompt and completion may have together; None for the model's own limit.
    """

    def __init__(
        self, config: RunConfig, adapter: Path | None, tokenizer: Any, ends: list[int], max_model_len: int | None
    ) -> None:
        import vllm
        from vllm.lora.request import LoRARequest

        self.tokenizer, self.ends, self.counts_thinking = tokenizer, ends, False
        self.evaluation, self.max_model_len = config.evaluation, max_model_len
        self.name, self.sampling_params = f"vllm {vllm.__version__}", vllm.SamplingParams
        rank = json.loads((adapter / "adapter_config.json").read_text())["r"] if adapter else 0
        self.lora = LoRARequest("adapter", 1, str(adapter)) if adapter else None
        self.llm = vllm.LLM(
            model=policy_source(config.policy),
            revision=config.policy.revision,
            dtype=config.policy.dtype,
            max_model_len=max_model_len,
            seed=config.run.seed,
            enable_lora=bool(adapter),
            max_lora_rank=max(8, 2 ** math.ceil(math.log2(rank or 1))),
        )

    def __call__(self, prompt_ids: list[list[int]], seed: int) -> list[generate.Sample]:
        """Sample one completion for each prompt of a batch; completion i is sampled with seed `seed` + i."""
        settings = self.evaluation
        sampling = [
            {
                "temperature": settings.temperature,
                "top_p": settings.top_p,
                "top_k": settings.top_k,
                "seed": (seed + i) % 2**63,
                "max_tokens": limit,
            }
            for i, limit in enumerate(generate.completion_limits(prompt_ids, settings, self.max_model_len))
        ]
        completions = [completion.tokens for completion in self._generate(prompt_ids, sampling)]
        samples = [generate.make_sample(self.tokenizer, ids, self.ends) for ids in completions]
        if self.counts_thinking:
            return generate.add_thinking(self.tokenizer, samples, prompt_ids, completions)
        return samples

    def continue_greedily(self, prompt_ids: list[int], count: int) -> Continuation:
        """The most likely completion of a prompt, of at most `count` tokens."""
        return self._generate([prompt_ids], [{"temperature": 0.0, "max_tokens": count, "logprobs": 0}])[0]

    def _generate(self, prompt_ids: list[list[int]], sampling: list[dict[str, Any]]) -> list[Continuation]:
        """One completion for each prompt, sampled with the settings at the same place in `sampling`."""
        answers = self.llm.generate(
            [{"prompt_token_ids": ids} for ids in prompt_ids],
            [self.sampling_params(stop_token_ids=self.ends, **settings) for settings in sampling],
            lora_request=self.lora,
            use_tqdm=False,
        )
        continuations = []
        for output in (answer.outputs[0] for answer in answers):
            steps = zip(output.token_ids, output.logprobs or [])
            continuations.append(Continuation(list(output.token_ids), [step[token].logprob for token, step in steps]))
        return continuations


class VllmServer:
    """A running `trl vllm-serve` or `vllm serve`, called through its public completions API.

    Its methods raise what `requests` raises.
    """

    def __init__(self, url: str = SERVER_URL) -> None:
        self.url = url
        self.model = self._read_json(requests.get(f"{url}/v1/models", timeout=TIMEOUT))["data"][0]["id"]

    def continue_greedily(self, prompt_ids: list[int], count: int) -> Continuation:
        """The most likely completion of a prompt, of at most `count` tokens."""
        body = {
            "model": self.model,
            "prompt": prompt_ids,
            "max_tokens": count,
            "temperature": 0,
            "logprobs": 0,
            "return_tokens_as_token_ids": True,
        }
        answer = self._read_json(requests.post(f"{self.url}/v1/completions", json=body, timeout=TIMEOUT))
        logprobs = answer["choices"][0]["logprobs"]
        tokens = [int(name.removeprefix("token_id:")) for name in logprobs["tokens"]]
        return Continuation(tokens, logprobs["token_logprobs"])

    @staticmethod
    def _read_json(response: requests.Response) -> Any:
        response.raise_for_status()
        return response.json()


def choose_trainer_engine(config: RunConfig) -> tuple[dict[str, Any], str]:
    """Decide whether vLLM samples a training's completions.

    vLLM is compared with transformers on the base model. Whether the adapter's updates reach it later is shown by the
    training's own metric `sampling/logp_gap`.

    Args:
        config: `grpo.vllm` is `colocate`, `server` or None.

    Returns:
        (arguments for `GRPOConfig`, empty if transformers samples; the reason why vLLM is not used, or "").
    """
    mode = config.grpo.vllm
    if mode is None:
        return {}, ""
    if reason := _find_obstacle(config):
        return {}, reason
    model, tokenizer = load_policy(config.policy)
    prompt_ids = encode_prompt(tokenizer, PROBE, config.policy.enable_thinking)
    expected, ends = (
        continue_with_transformers(model, tokenizer, prompt_ids),
        generate.find_end_tokens(model, tokenizer),
    )
    del model
    _free_memory()
    try:
        engine = VllmServer() if mode == "server" else VllmEngine(config, None, tokenizer, ends, None)
        if mode == "server" and engine.model != policy_source(config.policy):
            return {}, f"the server has {engine.model}, not {policy_source(config.policy)}"
        reason = describe_difference(expected, engine.continue_greedily(prompt_ids, PROBE_TOKENS))
    except Exception as error:  # vLLM and servers fail with exceptions of their own
        reason = _describe_failure(error)
    engine = None
    _free_memory()
    return ({}, reason) if reason else ({"use_vllm": True, "vllm_mode": mode}, "")


def open_engine(
    config: RunConfig, adapter: Path | None, max_model_len: int | None = None
) -> tuple[generate.TransformersEngine | VllmEngine, str]:
    """Load the policy into the engine that samples an evaluation's completions.

    Args:
        config: the policy and the sampling settings; `evaluation.use_vllm` allows vLLM.
        adapter: folder of the LoRA adapter to use; None for the base model.
        max_model_len: tokens that prompt and completion may have together; None for no such limit.

    Returns:
        (the engine, the reason why it is not vLLM or "").
    """
    _free_memory()  # of an engine that the caller has let go
    model, tokenizer = _load_with_adapter(config, adapter)
    reason = _find_obstacle(config) if config.evaluation.use_vllm else "evaluation.use_vllm is false"
    if not reason:
        prompt_ids = encode_prompt(tokenizer, PROBE, config.policy.enable_thinking)
        expected = continue_with_transformers(model, tokenizer, prompt_ids)
        ends = generate.find_end_tokens(model, tokenizer)
        del model  # the GPU has room for one of the two at a time
        _free_memory()
        try:
            engine = VllmEngine(config, adapter, tokenizer, ends, max_model_len)
            reason = describe_difference(expected, engine.continue_greedily(prompt_ids, PROBE_TOKENS))
        except Exception as error:  # vLLM fails with exceptions of its own; the message is kept as the reason
            reason = _describe_failure(error)
        if not reason:
            return engine, ""
        engine = None
        _free_memory()
        model, tokenizer = _load_with_adapter(config, adapter)
    return generate.TransformersEngine(model, tokenizer, config.evaluation, max_model_len), reason


def describe_difference(transformers: Continuation, vllm: Continuation) -> str:
    """How vLLM's greedy completion differs from that of transformers; "" if they agree.

    They agree if the tokens are equal and no log-probability differs by more than `LARGEST_GAP` nats.
    """
    expected, tokens = transformers.tokens, vllm.tokens
    if expected != tokens:
        different = (at for at, (a, b) in enumerate(zip(expected, tokens)) if a != b)
        at = next(different, min(len(expected), len(tokens)))
        return f"vLLM generates another token than transformers, at {at + 1} of {len(expected)}"
    gaps = [abs(a - b) for a, b in zip(transformers.logprobs, vllm.logprobs, strict=True)]
    if all(gap <= LARGEST_GAP for gap in gaps):  # false for NaN
        return ""
    listed = ", ".join(f"{gap:.2f}" for gap in gaps)
    return f"vLLM's log-probabilities differ from those of transformers by {listed} nats"


def continue_with_transformers(model: Any, tokenizer: Any, prompt_ids: list[int]) -> Continuation:
    """The most likely completion of a prompt by transformers, of at most `PROBE_TOKENS` tokens."""
    inputs = torch.tensor([prompt_ids], device=model.device)
    with torch.inference_mode():
        sequence = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            do_sample=False,
            max_new_tokens=PROBE_TOKENS,
            eos_token_id=generate.find_end_tokens(model, tokenizer),
            pad_token_id=tokenizer.pad_token_id,
        )
        logprobs = model(sequence).logits[0, len(prompt_ids) - 1 : -1].float().log_softmax(-1)
    tokens = sequence[0, len(prompt_ids) :]
    return Continuation(tokens.tolist(), logprobs.gather(1, tokens[:, None])[:, 0].tolist())


def _find_obstacle(config: RunConfig) -> str:
    """Why vLLM cannot be tried at all; "" if it can."""
    if config.policy.load_in_4bit:
        return "the policy is in 4 bit as transformers loads it"
    try:
        import vllm  # noqa: F401 (only whether it can be imported)
    except Exception as error:  # vLLM may be missing, or a library that it needs
        return f"vLLM does not import ({type(error).__name__})"
    return ""


def _load_with_adapter(config: RunConfig, adapter: Path | None) -> tuple[Any, Any]:
    if adapter:
        require_no_old_torchao()  # before minutes of loading
    model, tokenizer = load_policy(config.policy)
    return (attach_adapter(model, adapter) if adapter else model), tokenizer


def _describe_failure(error: Exception) -> str:
    return f"vLLM failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
