"""The sections of a configuration: frozen dataclasses with defaults, each checked when it is made.

Keys have the names that TRL, PEFT and transformers use, so a person who knows `GRPOConfig` knows `grpo` (in
`config.grpo`). OmegaConf checks the types; what it cannot know (a rank above 32, a share above 1) is checked here.
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
from grpo_kit.config.grpo import Grpo
from grpo_kit.config.judge import Judge
from grpo_kit.config.protocols import MAX_LORA_RANK, apply_protocol
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


ALL_LINEAR = "all-linear"  # PEFT's word for all linear layers but the output layer


def is_pattern(target: str) -> bool:
    """Whether a target module is a regular expression and not a name."""
    return bool(re.search(r"[\\^$*+?()\[\]{}|]", target))


def compile_target(target: str) -> re.Pattern[str]:
    """The regular expression of a target module; ValueError for one that cannot be read."""
    try:
        return re.compile(target)
    except re.error as error:
        raise ValueError(
            f"lora.target_modules is {target!r}, which is not a regular expression ({error}). Correct it, or list "
            "names."
        ) from None


def split_targets(text: str) -> list[str]:
    """The target modules in one text: names with commas between them, `all-linear`, or a regular expression.

    >>> split_targets("q_proj, v_proj"), split_targets(".*[qv]_proj")
    (['q_proj', 'v_proj'], ['.*[qv]_proj'])
    """
    return [text] if is_pattern(text) else [name.strip() for name in text.split(",") if name.strip()]


@dataclass(frozen=True)
class Lora:
    """PEFT's LoRA. `target_modules` are endings of module names, regular expressions, or `all-linear`.

    Each must match a module of the model. One text, also with commas, stands for a list.
    """

    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])

    def __post_init__(self) -> None:
        require_at_least("lora.r", self.r, 1, "a LoRA update has at least rank 1")
        require(
            self.r <= MAX_LORA_RANK,
            f"lora.r is {self.r}; the challenge's scorer accepts ranks up to {MAX_LORA_RANK}. "
            f"Set lora.r to {MAX_LORA_RANK} or less.",
        )
        require(
            bool(self.target_modules),
            "lora.target_modules is empty; without a target nothing is trained. Name at least one module.",
        )
        for target in filter(is_pattern, self.target_modules):
            compile_target(target)


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
class Evaluation:
    """How accuracy on held-out problems is measured. A `protocol` fixes the settings that it publishes."""

    sets: list[str] = field(default_factory=lambda: ["test"])  # the run's own test split; recipes, files, Hub ids
    protocol: str | None = None  # challenge: its scorer's sampling, prompt and verifier replace the other keys
    use_vllm: bool = True  # if it can be imported and gives the same answers as transformers; else transformers
    num_problems: int | None = None  # of each set; None: all
    num_generations: int = 1  # samples per problem
    max_completion_length: int = 512  # tokens
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0
    batch_size: int = 64  # completions that are sampled at a time
    verifier: str = "math_answer.py:math_reward"
    # Measured besides: on, off, 128 (a budget that the prompt states), cut128 (thoughts are closed by force)
    modes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        apply_protocol(self)
        self._check_modes()
        problems = 1 if self.num_problems is None else self.num_problems
        require_at_least("evaluation.num_problems", problems, 1, "an accuracy needs a problem")
        require_at_least("evaluation.num_generations", self.num_generations, 1, "each problem is tried at least once")
        length = self.max_completion_length
        require_at_least("evaluation.max_completion_length", length, 1, "a completion has at least one token")
        require_at_least("evaluation.batch_size", self.batch_size, 1, "a batch has at least one completion")
        require(self.temperature >= 0, f"evaluation.temperature is {self.temperature}; it must be 0 (greedy) or more.")

    def _check_modes(self) -> None:
        words = {"True": "on", "False": "off"}  # what YAML reads these two words as
        self.modes[:] = [words.get(mode, mode) for mode in self.modes]
        for mode in self.modes:
            require(
                bool(re.fullmatch(r"on|off|(cut)?[1-9]\d{0,8}", mode)) and self.modes.count(mode) == 1,
                f"evaluation.modes has {mode!r}; a mode is on, off, a budget in tokens such as 128, or cut128 for one "
                "that is kept by force, and each is named once. Correct the list.",
            )
            length = self.max_completion_length
            require(
                not mode.isdigit() or int(mode) < length,
                f"evaluation.modes has {mode} and evaluation.max_completion_length is {length}; no thought could "
                f"exceed that budget and be answered. Name budgets below {length}, or set the length higher.",
            )
        require(
            not (self.modes and self.protocol),
            f"evaluation.protocol is {self.protocol!r}, which fixes how the policy thinks, and evaluation.modes is "
            f"{self.modes}. Leave one of them out.",
        )

    def identity(self) -> dict[str, Any]:
        """The settings that decide a measurement; `modes`, which are measured besides, are left out."""
        return {key: value for key, value in asdict(self).items() if key != "modes"}


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
