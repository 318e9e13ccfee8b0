"""What every engine is handed: the run's rows, policy and settings as they were resolved, and where the folder will lie."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from grpo_kit.config import RunConfig
from grpo_kit.data import curriculum, gold_answers
from grpo_kit.data.preparation import SPLITS
from grpo_kit.evaluation import screening
from grpo_kit.nemotron import tiny
from grpo_kit.policy.chat import make_token_counter, prompts_open_thinking
from grpo_kit.policy.load import base_name, load_tokenizer
from grpo_kit.rewards.tools.loading import find_reward, load_reward
from grpo_kit.runs.files import read_lines, write_text
from grpo_kit.runs.metrics import read_metrics
from grpo_kit.runs.run import Run


class Part(NamedTuple):
    """A part of the run that an engine is started once for: the whole of it, or one of `grpo.stages`."""

    name: str  # "" for the whole
    length: int  # tokens of a completion; of a stage, of prompt and completion
    steps: int
    beta: float
    epsilon_high: float
    learning_rate: float


@dataclass(frozen=True)
class Bundle:
    """A run on its way out. Files are written into `aside`; what they say of paths is where they will lie, in `out`."""

    config: RunConfig
    run: Run
    out: Path
    aside: Path
    merge: bool
    rows: dict[str, list[dict[str, Any]]]  # of train, val, test; as the run trained on them
    tokenizer: Any
    prompt_tokens: int  # of the longest prompt

    @property
    def batch(self) -> int:
        """Completions of a step."""
        return self.config.grpo.per_device_train_batch_size * self.config.grpo.gradient_accumulation_steps

    @property
    def prompts(self) -> int:
        """Prompts of a step."""
        return self.batch // self.config.grpo.num_generations

    @property
    def gpus(self) -> int:
        """GPUs of a node, at most 8, among which a step's completions can be shared out evenly."""
        return max(count for count in range(1, 9) if self.batch % count == 0)

    @property
    def micro_batch(self) -> int:
        """Completions passed through the model at once: the run's number, as far as each GPU's share is a multiple of it."""
        return math.gcd(self.config.grpo.per_device_train_batch_size, self.batch // self.gpus)

    @property
    def in_order(self) -> bool:
        """Whether the training rows are to come in the order they lie in."""
        draw = self.config.grpo.draw
        return draw == "in_order" or (draw == "useful" and screening.is_screened(self.run))

    @property
    def base(self) -> str:
        """The base as an engine loads it: a folder, or a Hub id. The embedded policy travels in the bundle."""
        name = base_name(self.config.policy)
        if self.config.policy.model == "tiny":
            return str(self.out / "base")
        return str(Path(name).absolute()) if Path(name).is_dir() else name

    @property
    def verifier(self) -> tuple[Path, str]:
        """(file, function) of the first reward, which says right or wrong."""
        return self.rewards()[0]

    def rewards(self) -> list[tuple[Path, str]]:
        """(file, function) of each of `grpo.reward_funcs`, in their order."""
        found = []
        for spec in self.config.grpo.reward_funcs:
            name, colon, function = spec.rpartition(":")
            if not colon or spec.endswith(".py"):
                name, function = spec, load_reward(spec).__name__
            found.append((find_reward(name), function))
        return found

    def opened_think(self, split: str) -> list[bool]:
        """For each row, whether its prompt ends inside an open `<think>`."""
        return prompts_open_thinking(self.tokenizer, self.rows[split], self.config.policy.enable_thinking)

    def epochs(self, steps: int) -> int:
        """How often the training rows are gone through in so many steps; engines stop at the end of the last."""
        rows = len(self.rows["train"])
        return -(-steps * self.prompts // (rows - rows % self.prompts or rows))

    def parts(self) -> list[Part]:
        """The whole run, or its stages; one without `steps` has as many as the run took there, or else what is left."""
        grpo = self.config.grpo
        if not grpo.stages:
            return [
                Part("", grpo.max_completion_length, grpo.max_steps, grpo.beta, grpo.clip_above(), grpo.learning_rate)
            ]
        found, left = [], grpo.max_steps
        taken = Counter(row.get("stage") for row in read_metrics(self.run.metrics))
        for number, stage in enumerate(grpo.stages, 1):
            steps = stage.steps or taken[number - 1] or max(1, left)
            left -= steps
            length = stage.max_completion_length
            label = f"{length // 1024}K" if length % 1024 == 0 else str(length)
            beta = grpo.beta if stage.beta is None else stage.beta
            rate = grpo.learning_rate if stage.learning_rate is None else stage.learning_rate
            found.append(Part(f"stage{number}_{label}", length, steps, beta, grpo.clip_above(stage), rate))
        return found


def collect(config: RunConfig, run: Run, out: Path, aside: Path, merge: bool) -> Bundle:
    """The run's `Bundle`, with its adapter (and the embedded policy, where that is the base) copied into `aside`."""
    rows = {split: read_lines(run.data_file(split)) for split in SPLITS}
    if screening.is_screened(run):
        screened = read_lines(run.screened)
        rows["train"] = curriculum.order_rows(screened, len(screened), config.screening.sigma, config.run.seed)
    tokenizer = load_tokenizer(config.policy)
    count = make_token_counter(config.policy)
    longest = max(max(count(part)) for part in _batches([row["prompt"] for of in rows.values() for row in of]))
    shutil.copytree(run.adapter, aside / "adapter")
    bundle = Bundle(config, run, out, aside, merge, rows, tokenizer, longest)
    if config.policy.model == "tiny":
        shutil.copytree(tiny.FOLDER, aside / "base")
    name = {"base_model_name_or_path": bundle.base}
    path = aside / "adapter" / "adapter_config.json"
    write_text(path, json.dumps(json.loads(path.read_text()) | name, indent=2) + "\n")
    return bundle


def gold(row: dict[str, Any]) -> str:
    """The row's gold as text, without the dollar signs or `\\( \\)` around it."""
    return gold_answers.strip_delimiters(str(row["answer"]).strip())


def turns(row: dict[str, Any]) -> list[dict[str, str]]:
    """The row's conversation, roles and texts only."""
    return [{"role": turn["role"], "content": turn["content"]} for turn in row["prompt"]]


def _batches(items: list[Any], size: int = 1000) -> Iterator[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
