"""The sections of a configuration: frozen dataclasses with defaults, each checked when it is made.

Keys have the names that TRL, PEFT and transformers use, so a person who knows `GRPOConfig` knows `grpo` (in
`config.grpo`; the other large sections have a file each, too). OmegaConf checks the types; what it cannot know (a rank
above 32, a share above 1) is checked here.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from grpo_kit.config.arguments import require_type
from grpo_kit.config.checks import (
    parse_duration,
    require,
    require_at_least,
    require_finite,
    require_one_of,
    require_share,
)
from grpo_kit.config.dpo import Dpo
from grpo_kit.config.environments import END_STATE, KNOWN, MATH, Environment, check_environment_name, require_rewards
from grpo_kit.config.evaluation import Evaluation
from grpo_kit.config.grpo import Grpo
from grpo_kit.config.judge import Judge
from grpo_kit.config.lora import Lora
from grpo_kit.config.sft import Sft

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Policy:
    """The model that is trained.

    `tiny`, `tiny-environments` and `tiny-office` lie in the package; otherwise a local folder, or an id on the Hub.
    """

    model: str = "tiny"
    revision: str | None = None
    dtype: str = "float32"  # of the frozen weights; LoRA itself stays in float32
    load_in_4bit: bool = False  # NF4 with double quantisation, routed experts included
    experts_on_host: float = 0.0  # share of the routed experts kept in host memory, with load_in_4bit
    experts_overflow: str = "host"  # where that share is kept: host memory, or cuda:1 (a second GPU)
    routing: str | None = None  # file with the use of experts; None: the run's own, else beside the NF4 checkpoint
    nf4_folder: str | None = None  # folder of a streamed model's NF4 checkpoint; None: a finished one, or a default
    enable_thinking: bool = True  # passed to the chat template: the prompt then ends in an open <think>
    thinking_budget: str | None = None  # tokens after which a thought is closed by force; row: as the row states

    def __post_init__(self) -> None:
        require_one_of("policy.dtype", self.dtype, DTYPES)
        require_one_of("policy.experts_overflow", self.experts_overflow, ("host", "cuda:1"))
        require_share("policy.experts_on_host", self.experts_on_host)
        require(
            self.thinking_budget in (None, "row") or bool(re.fullmatch(r"[1-9]\d{0,8}", str(self.thinking_budget))),
            f"policy.thinking_budget is {self.thinking_budget!r}; it is a whole number of tokens from 1, or row for "
            "the token_budget of each row. Set it to 512, or leave it out.",
        )

    def budget_of(self, row: Mapping[str, Any] | None = None) -> int | None:
        """Tokens of thinking after which a thought is closed by force, for a data row; None: none is.

        Raises:
            ValueError: the row's `token_budget` is no whole number of at least 1.
        """
        if self.thinking_budget != "row":
            return self.thinking_budget and int(self.thinking_budget)
        budget = (row or {}).get("token_budget")
        require(
            budget is None or (type(budget) is int and budget >= 1),
            f"A row's token_budget is {budget!r}; it is a whole number of tokens from 1, or null. Correct the row.",
        )
        return budget

    def identity(self) -> dict[str, Any]:
        """The settings that decide the policy's answers; where its bytes are on this machine is left out."""
        places = ("experts_on_host", "experts_overflow", "routing", "nf4_folder")
        return {key: value for key, value in asdict(self).items() if key not in places}


def require_policy(policy: Any) -> None:
    """Raise TypeError unless `policy` is the policy section of a configuration."""
    remedy = 'Write load_config("tiny").policy, or config.policy where you have a configuration.'
    require_type("policy", policy, Policy, "the policy section of a configuration", remedy)


@dataclass(frozen=True)
class Columns:
    """Names of the columns in the source; None: the first usual name that exists (`data.columns`)."""

    prompt: str | None = None
    answer: str | None = None


@dataclass(frozen=True)
class Data:
    """Where the problems come from and how they are split. Sizes are numbers of rows."""

    # Recipes, file paths, Hub ids, or what the kit makes (data.recipes.GENERATED); several separated by commas.
    source: str = "tiny-sums"
    # environment: its share of each step's groups, 0 for one that is measured and not trained on; {}: equal shares
    mix: dict[str, float] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)  # recipe: local file or folder, as in data.paths.gsm8k=...
    subset: str | None = None  # the Hub dataset's configuration, where it has several
    split: str = "train"  # the Hub dataset's split
    columns: Columns = field(default_factory=Columns)
    system_prompt: str = ""
    prompt_suffix: str = ""
    limit: int | None = None  # read at most this many rows of each source
    max_prompt_tokens: int | None = None  # longer prompts are dropped; the chat template's tokens count
    decontaminate: list[str] | None = None  # evaluation sets to keep out; None: all that are available, []: none
    no_thinking: float = 0.0  # share of the training rows that ask for an answer without thinking
    budgeted: float = 0.0  # share of the training rows that state a budget, drawn from token_budgets
    token_budgets: list[int] = field(default_factory=list)
    pass_rate: list[float] = field(default_factory=lambda: [0.1, 0.9])  # pass rates that `screen` keeps
    val_size: int = 100
    test_size: int = 300

    def __post_init__(self) -> None:
        self._check_row_options()
        require(
            len(self.pass_rate) == 2 and 0 <= self.pass_rate[0] <= self.pass_rate[-1] <= 1,
            f"data.pass_rate is {self.pass_rate}; it must be the lowest and highest pass rate to keep, from 0 to 1. "
            "Set data.pass_rate=[0.1,0.9].",
        )
        require_at_least("data.limit", 1 if self.limit is None else self.limit, 1, "at least one row is needed")
        tokens = 1 if self.max_prompt_tokens is None else self.max_prompt_tokens
        require_at_least("data.max_prompt_tokens", tokens, 1, "a prompt has at least one token")
        for name, share in self.mix.items():
            require(
                share >= 0 and any(self.mix.values()),
                f"data.mix.{name} is {share}; a share is above 0, or 0 for an environment that is measured and not "
                "trained on, but not for all. Set it to 0 or more.",
            )
        require_at_least("data.val_size", self.val_size, 0, "a split cannot have fewer than 0 rows")
        require_at_least("data.test_size", self.test_size, 1, "before and after are measured on held-out rows")

    def _check_row_options(self) -> None:
        require_share("data.no_thinking", self.no_thinking)
        require_share("data.budgeted", self.budgeted)
        require(
            self.no_thinking + self.budgeted <= 1,
            f"data.no_thinking {self.no_thinking} and data.budgeted {self.budgeted} are more than all rows together; a "
            "row is of one kind. Lower one of them.",
        )
        require(
            not self.budgeted or bool(self.token_budgets),
            f"data.budgeted is {self.budgeted} and data.token_budgets is empty; each budget is drawn from that list. "
            "Set data.token_budgets=[128,256,512], in tokens.",
        )
        for tokens in self.token_budgets:
            require_at_least("data.token_budgets", tokens, 1, "a budget is a number of tokens")

    def identity(self) -> dict[str, Any]:
        """The settings that decide the rows; `pass_rate` and `mix`, which later choose among them, are left out."""
        return {key: value for key, value in asdict(self).items() if key not in ("pass_rate", "mix")}


@dataclass(frozen=True)
class Screening:
    """How often each training prompt is tried before training, and how strictly easy prompts come first."""

    num_generations: int = 16  # samples of a prompt, at most; fewer where its interval decides earlier
    samples_per_round: int = 4  # of each prompt, before its interval is computed
    sigma: float = 0.1  # standard deviation of the pass rate that is aimed at; 0: strictly from easy to hard

    def __post_init__(self) -> None:
        require_at_least("screening.num_generations", self.num_generations, 1, "each prompt is tried at least once")
        require_at_least("screening.samples_per_round", self.samples_per_round, 1, "a round tries each prompt")
        require(
            self.sigma >= 0,
            f"screening.sigma is {self.sigma}; it is a standard deviation. Set screening.sigma to 0 or more.",
        )


@dataclass(frozen=True)
class Run:
    """Which run this is."""

    name: str = "default"
    seed: int = 3407
    root: str | None = None  # folder of all runs; None: Drive on Colab, /kaggle/working on Kaggle, ./runs elsewhere
    force: bool = False  # repeat a stage that is already done
    report_to: list[str] = field(default_factory=lambda: ["tensorboard"])  # also wandb, trackio; or none
    time_limit: str | None = None  # of the session, such as 3h30m; None: Kaggle's 12 h on Kaggle, none elsewhere

    def __post_init__(self) -> None:
        require(
            0 <= self.seed < 2**32,
            f"run.seed is {self.seed}; random numbers start from a whole number of 32 bits. Set run.seed to a number "
            f"from 0 to {2**32 - 1}.",
        )
        if self.time_limit is not None:
            parse_duration("run.time_limit", self.time_limit)


@dataclass(frozen=True)
class RunConfig:
    """The whole configuration. `load_config` builds it, and each stage writes it to the run's `config.yaml`."""

    policy: Policy = field(default_factory=Policy)
    lora: Lora = field(default_factory=Lora)
    data: Data = field(default_factory=Data)
    grpo: Grpo = field(default_factory=Grpo)
    evaluation: Evaluation = field(default_factory=Evaluation)
    screening: Screening = field(default_factory=Screening)
    sft: Sft = field(default_factory=Sft)
    dpo: Dpo = field(default_factory=Dpo)
    environments: dict[str, Environment] = field(default_factory=dict)  # beside math; those of KNOWN need no entry
    judge: Judge = field(default_factory=Judge)
    run: Run = field(default_factory=Run)

    def __post_init__(self) -> None:
        require_finite("", self)
        require(
            not (self.grpo.vllm and self.policy.thinking_budget),
            f"grpo.vllm is {self.grpo.vllm!r} and policy.thinking_budget {self.policy.thinking_budget}; thoughts are "
            "cut where transformers draws the tokens, and vLLM is not told to. Leave one of them out.",
        )
        require(
            MATH not in self.environments,
            f"environments.{MATH} is set; the rewards of {MATH} are grpo.reward_funcs. Set those instead.",
        )
        for name, environment in self.environments.items():
            check_environment_name(name, f"environments.{name}")
            if name in KNOWN:  # what is not set is the kit's
                known = KNOWN[name]
                environment = self.environments[name] = replace(
                    environment,
                    reward_funcs=environment.reward_funcs or known.reward_funcs,
                    environment_factory=environment.environment_factory or known.environment_factory,
                )
            if environment.environment_factory and not environment.reward_funcs:  # the world itself judges
                environment = self.environments[name] = replace(environment, reward_funcs=[END_STATE])
            require_rewards(f"environments.{name}", environment.reward_funcs, environment.reward_weights)

    def world_of(self, environment: str) -> str | None:
        """The `environment_factory` of an environment; None where it has no world."""
        found = self.environments.get(environment) or KNOWN.get(environment)
        return found.environment_factory if found else None

    def rewards_of(self, environment: str) -> Environment:
        """The rewards of an environment, with their weights.

        Args:
            environment: its name, as the rows have it.

        Raises:
            ValueError: no reward is known for it.
        """
        if environment == MATH:
            return Environment(self.grpo.reward_funcs, self.grpo.reward_weights)
        found = self.environments.get(environment) or KNOWN.get(environment)
        if found is None:
            raise ValueError(
                f"There are rows of the environment {environment!r}, and no reward judges them; the kit judges "
                f"{', '.join([MATH, *KNOWN])}. Set environments.{environment}.reward_funcs=[FILE.py:function]."
            )
        return found
