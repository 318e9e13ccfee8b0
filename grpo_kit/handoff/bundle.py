"""What every engine receives: the run's rows, adapter and settings, and the folder to write."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from grpo_kit.config import RunConfig
from grpo_kit.config.lora import ALL_LINEAR, is_pattern
from grpo_kit.data import curriculum, gold_answers
from grpo_kit.data.splits import SPLITS
from grpo_kit.environments.worlds.loading import load_worlds
from grpo_kit.evaluation import screening
from grpo_kit.nemotron import tiny
from grpo_kit.policy.chat import make_token_counter, prompts_open_thinking
from grpo_kit.policy.load import load_tokenizer
from grpo_kit.policy.model_source import base_model_name
from grpo_kit.rewards.tools.calling import reward_name
from grpo_kit.rewards.tools.loading import find_reward, load_reward
from grpo_kit.rewards.tools.routing import environment_of
from grpo_kit.runs.files import write_text
from grpo_kit.runs.metrics import read_metrics
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import Run
from grpo_kit.training.grpo.environment_sampler import EnvironmentSampler


class Part(NamedTuple):
    """The part of a run that one start of an engine trains: the whole run, or one of `grpo.stages`.

    Attributes:
        name: empty for the whole run.
        length: longest completion in tokens; for a stage, prompt and completion together.
        steps: number of training steps.
    """

    name: str
    length: int
    steps: int
    beta: float
    epsilon_high: float
    learning_rate: float


@dataclass(frozen=True)
class Bundle:
    """Everything that is written for an engine.

    Attributes:
        out: the final folder; the paths inside the files point to it.
        folder: the temporary folder that is filled first.
        merge: whether the folder contains the merged model.
        rows: {train, val, test: rows}, as the run trained on them.
        prompt_tokens: number of tokens of the longest prompt.
    """

    config: RunConfig
    run: Run
    out: Path
    folder: Path
    merge: bool
    rows: dict[str, list[dict[str, Any]]]
    tokenizer: Any
    prompt_tokens: int

    @property
    def completions_per_step(self) -> int:
        """Number of completions in a step."""
        return self.config.grpo.per_device_train_batch_size * self.config.grpo.gradient_accumulation_steps

    @property
    def prompts_per_step(self) -> int:
        """Number of prompts in a step."""
        return self.completions_per_step // self.config.grpo.num_generations

    @property
    def gpus(self) -> int:
        """Largest number of GPUs, at most 8, that share a step's completions evenly."""
        return max(count for count in range(1, 9) if self.completions_per_step % count == 0)

    @property
    def micro_batch(self) -> int:
        """Completions in one forward pass: the largest divisor of both the run's number and each GPU's share."""
        return math.gcd(self.config.grpo.per_device_train_batch_size, self.completions_per_step // self.gpus)

    @property
    def keeps_order(self) -> bool:
        """Whether the engine must keep the order of the training rows."""
        draw = self.config.grpo.draw
        if len(self.run.environments()) > 1:  # each step has its shares in this order
            return True
        return draw == "in_order" or (draw == "useful" and screening.is_screened(self.run))

    @property
    def base_model(self) -> str:
        """The base model as an engine loads it, a folder or a Hub id. The tiny policy is copied into the bundle."""
        name = base_model_name(self.config.policy)
        if self.config.policy.model in tiny.FOLDERS:
            return str(self.out / "base")
        return str(Path(name).absolute()) if Path(name).is_dir() else name

    @property
    def verifier(self) -> tuple[Path, str]:
        """(file, function) of the first reward, which says whether an answer is right."""
        return self.rewards()[0]

    def rewards(self) -> list[tuple[Path, str]]:
        """(file, function) of each of `grpo.reward_funcs`, in their order."""
        functions = []
        for spec in self.config.grpo.reward_funcs:
            name, colon, function = spec.rpartition(":")
            if not colon or spec.endswith(".py"):
                name, function = spec, reward_name(load_reward(spec))
            functions.append((find_reward(name), function))
        return functions

    @property
    def target_modules(self) -> list[str]:
        """`lora.target_modules`, as the adapter has them where they are no names but expressions or `all-linear`."""
        targets = self.config.lora.target_modules
        if not any(target == ALL_LINEAR or is_pattern(target) for target in targets):
            return targets
        return json.loads((self.folder / "adapter" / "adapter_config.json").read_text())["target_modules"]

    def prompts_open_thinking(self, split: str) -> list[bool]:
        """For each row, whether its prompt ends inside an open `<think>`."""
        return prompts_open_thinking(self.tokenizer, self.rows[split], self.config.policy.enable_thinking)

    def count_epochs(self, steps: int) -> int:
        """Number of epochs over the training rows that `steps` steps need; an engine stops after its last epoch."""
        rows = len(self.rows["train"])
        return -(-steps * self.prompts_per_step // (rows - rows % self.prompts_per_step or rows))

    def parts(self) -> list[Part]:
        """The whole run, or its stages. A stage without `steps` gets those that the run took in it, or the rest."""
        grpo = self.config.grpo
        if not grpo.stages:
            return [
                Part("", grpo.max_completion_length, grpo.max_steps, grpo.beta, grpo.clip_above(), grpo.learning_rate)
            ]
        parts, left = [], grpo.max_steps
        taken = Counter(row.get("stage") for row in read_metrics(self.run.metrics))
        for number, stage in enumerate(grpo.stages, 1):
            steps = stage.steps or taken[number - 1] or max(1, left)
            left -= steps
            length = stage.max_completion_length
            label = f"{length // 1024}K" if length % 1024 == 0 else str(length)
            beta = grpo.beta if stage.beta is None else stage.beta
            rate = grpo.learning_rate if stage.learning_rate is None else stage.learning_rate
            parts.append(Part(f"stage{number}_{label}", length, steps, beta, grpo.clip_above(stage), rate))
        return parts


def collect_bundle(config: RunConfig, run: Run, out: Path, folder: Path, merge: bool) -> Bundle:
    """Read a run for an engine, and copy its adapter (and the tiny policy, if that is the base) into `folder`.

    Args:
        config: the run's configuration.
        run: the trained run.
        out: the final folder.
        folder: the temporary folder to fill.
        merge: whether the merged model will be in it.
    """
    rows = {split: read_lines(run.data_file(split)) for split in SPLITS}
    if screening.is_screened(run):
        screened = read_lines(run.screened)
        rows["train"] = curriculum.order_rows(screened, len(screened), config.screening.sigma, config.run.seed)
    environments = [environment_of(row) for row in rows["train"]]
    if len(set(environments)) > 1:
        rows["train"] = _mix_rows(config, rows["train"], environments)
    tokenizer = load_tokenizer(config.policy)
    count, worlds = make_token_counter(config.policy), load_worlds(config, set(environments))
    asked = [(row, row["prompt"]) for of in rows.values() for row in of]
    longest = max(max(count(*worlds.open_prompts(part))) for part in _batches(asked))
    shutil.copytree(run.result.adapter, folder / "adapter")
    bundle = Bundle(config, run, out, folder, merge, rows, tokenizer, longest)
    if config.policy.model in tiny.FOLDERS:
        shutil.copytree(tiny.FOLDERS[config.policy.model], folder / "base")
    name = {"base_model_name_or_path": bundle.base_model}
    path = folder / "adapter" / "adapter_config.json"
    write_text(path, json.dumps(json.loads(path.read_text()) | name, indent=2) + "\n")
    return bundle


def _mix_rows(config: RunConfig, rows: list[dict[str, Any]], environments: list[str]) -> list[dict[str, Any]]:
    """The rows of all steps in an order in which each step has every environment's share, as the run drew them."""
    grpo = config.grpo
    per_step = grpo.per_device_train_batch_size * grpo.gradient_accumulation_steps // grpo.num_generations
    sampler = EnvironmentSampler(
        environments, config.data.mix, [None] * len(rows), grpo.num_generations, config.run.seed, "in_order"
    )
    return [rows[number] for _ in range(grpo.max_steps) for number in sampler.draw(per_step)]


def reference_answer(row: dict[str, Any]) -> str:
    """The row's reference answer as text, without the dollar signs or `\\( \\)` around it."""
    return gold_answers.strip_delimiters(str(row["answer"]).strip())


def chat_turns(row: dict[str, Any]) -> list[dict[str, str]]:
    """The row's conversation, with roles and texts only."""
    return [{"role": turn["role"], "content": turn["content"]} for turn in row["prompt"]]


def _batches(items: list[Any], size: int = 1000) -> Iterator[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
