"""What a run can be told: frozen sections with defaults, each checked as soon as it is made.

The keys are the names TRL, PEFT and transformers use, so a person who knows `GRPOConfig` knows `grpo`. OmegaConf checks
types; what it cannot know (groups of one, a batch that groups do not divide) is checked here.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from grpo_kit.config.checks import require, require_at_least, require_one_of, require_share
from grpo_kit.config.protocols import apply_protocol

DTYPES = ("float32", "float16", "bfloat16")
LOSSES = ("dapo", "grpo", "dr_grpo", "bnpo", "gspo", "cispo")


@dataclass(frozen=True)
class Policy:
    """The model that is trained. `model` is `tiny` (embedded), a local folder, or a Hub id."""

    model: str = "tiny"
    revision: str | None = None
    dtype: str = "float32"  # of the frozen weights; LoRA itself stays in float32
    load_in_4bit: bool = False  # NF4 with double quantisation, routed experts included
    experts_on_host: float = 0.0  # share of the routed experts kept in host memory, with load_in_4bit
    experts_overflow: str = "host"  # where that share lies instead: cuda:1, a second GPU
    routing: str | None = None  # what `calibrate` counted, to keep the coldest there; None: beside the NF4 checkpoint
    nf4_folder: str | None = None  # where a streamed model's NF4 checkpoint lies; None: beside the runs
    enable_thinking: bool = True  # passed to the chat template: the prompt then ends in an open <think>

    def __post_init__(self) -> None:
        require_one_of("policy.dtype", self.dtype, DTYPES)
        require_one_of("policy.experts_overflow", self.experts_overflow, ("host", "cuda:1"))
        require_share("policy.experts_on_host", self.experts_on_host)

    def identity(self) -> dict[str, Any]:
        """What decides the policy's answers; where its bytes lie on this machine is left out."""
        places = ("experts_on_host", "experts_overflow", "routing", "nf4_folder")
        return {key: value for key, value in asdict(self).items() if key not in places}


@dataclass(frozen=True)
class Lora:
    """PEFT's LoRA. `target_modules` are endings of module names; each must match something in the model."""

    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])

    def __post_init__(self) -> None:
        require_at_least("lora.r", self.r, 1, "a LoRA update has at least rank 1")
        require(
            self.r <= 32, f"lora.r is {self.r}; the challenge's scorer takes ranks up to 32. Set lora.r to 32 or less."
        )
        require(
            bool(self.target_modules),
            "lora.target_modules is empty; without a target nothing is trained. Name at least one module.",
        )


def check_row_options(no_thinking: float, budgeted: float, token_budgets: list[int]) -> None:
    """Raise ValueError unless the shares leave room for each other and there are budgets to draw from."""
    require_share("data.no_thinking", no_thinking)
    require_share("data.budgeted", budgeted)
    require(
        no_thinking + budgeted <= 1,
        f"data.no_thinking {no_thinking} and data.budgeted {budgeted} are more than all rows together; a row is of one kind. "
        "Lower one of them.",
    )
    require(
        not budgeted or bool(token_budgets),
        f"data.budgeted is {budgeted} and data.token_budgets is empty; a budget is drawn from it. Set "
        "data.token_budgets=[128,256,512], in tokens.",
    )
    for tokens in token_budgets:
        require_at_least("data.token_budgets", tokens, 1, "a budget is a number of tokens")


def check_band(band: list[float]) -> None:
    """Raise ValueError unless `data.pass_rate` is [low, high] within [0, 1]."""
    require(
        len(band) == 2 and 0 <= band[0] <= band[-1] <= 1,
        f"data.pass_rate is {band}; it is the lowest and the highest pass rate to keep, from 0 to 1. Set "
        "data.pass_rate=[0.1,0.9].",
    )


@dataclass(frozen=True)
class Screening:
    """How often each training prompt is tried before training, and how strictly easy ones come first."""

    num_generations: int = 16  # samples a prompt at most; fewer where its interval decides earlier
    samples_per_round: int = 4  # of each prompt, before its interval is looked at
    sigma: float = 0.1  # standard deviation of the pass rate aimed at; 0: strictly from easy to hard

    def __post_init__(self) -> None:
        require_at_least("screening.num_generations", self.num_generations, 1, "a prompt is tried at least once")
        require_at_least("screening.samples_per_round", self.samples_per_round, 1, "a round tries something")
        require(self.sigma >= 0, f"screening.sigma is {self.sigma}; a standard deviation is 0 or more. Set it so.")


@dataclass(frozen=True)
class Columns:
    """Column names in the source; None: the first usual name that exists (see `grpo_kit.data.preparation`)."""

    prompt: str | None = None
    answer: str | None = None


@dataclass(frozen=True)
class Data:
    """Where problems come from and how they are split. Sizes are rows; the rest is for training."""

    source: str = "tiny-sums"  # recipes, file paths, Hub ids, tiny-sums, puzzles; several separated by commas
    paths: dict[str, str] = field(default_factory=dict)  # recipe: local file or folder, as in data.paths.gsm8k=...
    subset: str | None = None  # the Hub dataset's configuration, where it has several
    split: str = "train"  # the Hub dataset's split
    columns: Columns = field(default_factory=Columns)
    system_prompt: str = ""
    prompt_suffix: str = ""
    limit: int | None = None  # read at most this many rows of each source
    max_prompt_tokens: int | None = None  # longer ones are dropped, counted with the policy's tokenizer and template
    decontaminate: list[str] | None = None  # evaluation sets to keep out; None: all that can be had, []: none
    no_thinking: float = 0.0  # share of the training rows asked for an answer without thinking
    budgeted: float = 0.0  # share of the training rows that state a budget, drawn from token_budgets
    token_budgets: list[int] = field(default_factory=list)
    pass_rate: list[float] = field(default_factory=lambda: [0.1, 0.9])  # what `screen` keeps
    val_size: int = 100
    test_size: int = 300

    def __post_init__(self) -> None:
        check_row_options(self.no_thinking, self.budgeted, self.token_budgets)
        check_band(self.pass_rate)
        require_at_least("data.limit", 1 if self.limit is None else self.limit, 1, "at least one row is needed")
        tokens = 1 if self.max_prompt_tokens is None else self.max_prompt_tokens
        require_at_least("data.max_prompt_tokens", tokens, 1, "a prompt has at least one token")
        require_at_least("data.val_size", self.val_size, 0, "a split cannot hold fewer than no rows")
        require_at_least("data.test_size", self.test_size, 1, "before and after are measured on held-out rows")

    def identity(self) -> dict[str, Any]:
        """What decides the rows; which of them are trained on later is left out."""
        return {key: value for key, value in asdict(self).items() if key != "pass_rate"}


@dataclass(frozen=True)
class Stage:
    """A part of a run with a context length of its own, `steps` long or until the next one's `enter` rule holds.

    None, of the last three, is what `grpo` says.
    """

    max_completion_length: int = 512
    steps: int | None = None
    enter: str = "steps"  # when the stage before is over; or earlier: clipped, plateau (see `stages.stage_of`)
    beta: float | None = None  # the KL's weight; its reference stays the policy before training
    epsilon_high: float | None = None
    learning_rate: float | None = None  # what the schedule multiplies

    def __post_init__(self) -> None:
        beta, rate = self.beta or 0.0, 1.0 if self.learning_rate is None else self.learning_rate
        require(beta >= 0, f"grpo.stages' beta is {beta}; a weight of the KL is 0 or more. Set it so.")
        require(rate > 0, f"grpo.stages' learning_rate is {rate}; it must be above 0. Set it so.")
        require_at_least(
            "grpo.stages' max_completion_length", self.max_completion_length, 1, "a completion has a token"
        )
        require_one_of("grpo.stages' enter", self.enter, ("steps", "clipped", "plateau"))


@dataclass(frozen=True)
class Grpo:
    """TRL's `GRPOConfig`, the part of it a run on one GPU turns. Lengths are tokens, batches are completions.

    `loss_type` is one of LOSSES; `gspo` is TRL's grpo with importance weights by sequence. What TRL has not: `advantage`
    and `normalize_rewards` (`advantages`), `draw` (`drawing`), `stages`, and `resample_budget`, by how many more groups a
    step may replace those that came out all alike, as a share of its groups. `epsilon_high` is how far above 1 a ratio is
    clipped, whatever the loss (TRL's own is the bound itself for `cispo`); None: as far as `epsilon` is below.
    """

    max_steps: int = 100
    num_generations: int = 8
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    max_completion_length: int = 512
    learning_rate: float = 1e-5
    lr_scheduler_type: str = "constant"
    warmup_steps: int = 0
    max_grad_norm: float = 1.0
    optim: str = "adamw_torch"
    loss_type: str = "dapo"
    advantage: str = "group"
    normalize_rewards: bool = True
    draw: str = "useful"
    resample_budget: float = 1.0
    stages: list[Stage] = field(default_factory=list)
    save_steps: int = 10
    eval_steps: int = 0  # measure accuracy on the validation rows every so many steps; 0: never
    on_alarm: str = "warn"  # or stop
    beta: float = 0.0
    epsilon: float = 0.2
    epsilon_high: float | None = 0.28  # clip higher, DAPO (arXiv:2503.14476)
    num_iterations: int = 1
    mask_truncated_completions: bool = True
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    gradient_checkpointing: bool = False
    fp16: bool = False
    bf16: bool = False
    vllm: str | None = (
        None  # colocate or server (at its usual address): who draws completions, once it has proved itself
    )
    # FILE.py:function; a bare file name is looked for in the working folder first, then among the kit's own rewards
    reward_funcs: list[str] = field(
        default_factory=lambda: ["math_answer.py:math_reward", "reasoning_format.py:reasoning_format_reward"]
    )
    reward_weights: list[float] = field(default_factory=lambda: [1.0, 0.1])

    def __post_init__(self) -> None:
        require_at_least("grpo.max_steps", self.max_steps, 1, "training takes at least one step")
        require_at_least(
            "grpo.per_device_train_batch_size", self.per_device_train_batch_size, 1, "a batch holds something"
        )
        require_at_least(
            "grpo.gradient_accumulation_steps", self.gradient_accumulation_steps, 1, "one batch is one step"
        )
        require_at_least(
            "grpo.max_completion_length", self.max_completion_length, 1, "a completion has at least one token"
        )
        require_at_least("grpo.num_generations", self.num_generations, 2, "GRPO compares the answers within a group")
        batch = self.per_device_train_batch_size * self.gradient_accumulation_steps
        require(
            batch % self.num_generations == 0,
            f"grpo.num_generations is {self.num_generations} and a step holds {batch} completions "
            f"({self.per_device_train_batch_size} x {self.gradient_accumulation_steps}); whole groups must fit into a "
            f"step. Set grpo.per_device_train_batch_size to a multiple of {self.num_generations}.",
        )
        require_one_of("grpo.loss_type", self.loss_type, LOSSES)
        require_one_of("grpo.advantage", self.advantage, ("group", "leave_one_out"))
        require_one_of("grpo.draw", self.draw, ("useful", "shuffled", "in_order"))
        require_one_of("grpo.on_alarm", self.on_alarm, ("warn", "stop"))
        require_one_of("grpo.vllm", self.vllm or "server", ("colocate", "server"))
        require_at_least("grpo.save_steps", self.save_steps, 1, "a checkpoint follows a step")
        require_at_least("grpo.eval_steps", self.eval_steps, 0, "0 means never")
        require(
            self.resample_budget >= 0,
            f"grpo.resample_budget is {self.resample_budget}; it is a share of a step's groups, 0 or more. Set it so.",
        )
        require(
            all(stage.steps for stage, after in zip(self.stages, self.stages[1:]) if after.enter == "steps"),
            "A stage of grpo.stages has no steps and the next one's enter is 'steps'; it would never begin. Give it steps.",
        )
        require(self.learning_rate > 0, f"grpo.learning_rate is {self.learning_rate}; it must be above 0.")
        require(
            self.temperature > 0,
            f"grpo.temperature is {self.temperature}; sampling a group needs one above 0. Set grpo.temperature to 1.0.",
        )
        require(
            bool(self.reward_funcs),
            "grpo.reward_funcs is empty; GRPO needs at least one reward. Name one as FILE.py:function.",
        )
        require(
            len(self.reward_weights) == len(self.reward_funcs),
            f"grpo.reward_weights has {len(self.reward_weights)} entries and grpo.reward_funcs {len(self.reward_funcs)}; "
            "each reward has one weight. Give both the same length.",
        )
        require(not (self.fp16 and self.bf16), "grpo.fp16 and grpo.bf16 are both true; one can be. Set one to false.")

    def clip_above(self, stage: Stage | None = None) -> float:
        """How far above 1 a ratio is clipped, in a stage of the run by the stage's own `epsilon_high`, where it has one."""
        own = (stage.epsilon_high if stage else None, self.epsilon_high, self.epsilon)
        return next(value for value in own if value is not None)


@dataclass(frozen=True)
class Evaluation:
    """How held-out accuracy is measured, before and after, on the same problems. A `protocol` fixes what it publishes."""

    sets: list[str] = field(default_factory=lambda: ["test"])  # the run's own test split; recipes, files, Hub ids
    protocol: str | None = None  # challenge: its scorer's sampling, prompt and verifier, whatever else is set
    use_vllm: bool = True  # where it imports and answers as transformers does; else transformers
    num_problems: int | None = None  # of each set; None: all
    num_generations: int = 1  # samples per problem
    max_completion_length: int = 512
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0
    batch_size: int = 64
    verifier: str = "math_answer.py:math_reward"

    def __post_init__(self) -> None:
        apply_protocol(self)
        problems = 1 if self.num_problems is None else self.num_problems
        require_at_least("evaluation.num_problems", problems, 1, "an accuracy needs a problem")
        require_at_least("evaluation.num_generations", self.num_generations, 1, "a problem is tried at least once")
        require_at_least("evaluation.max_completion_length", self.max_completion_length, 1, "a completion has a token")
        require_at_least("evaluation.batch_size", self.batch_size, 1, "a batch holds something")
        require(self.temperature >= 0, f"evaluation.temperature is {self.temperature}; it must be 0 (greedy) or more.")


@dataclass(frozen=True)
class Run:
    """Which run this is. `root` None: Drive on Colab, /kaggle/working on Kaggle, ./runs elsewhere."""

    name: str = "default"
    seed: int = 3407
    root: str | None = None
    force: bool = False  # repeat a stage that is done already
    report_to: list[str] = field(default_factory=lambda: ["tensorboard"])  # also wandb, trackio; or none
    time_limit: str | None = None  # such as 3h30m, of the session; None: Kaggle's 12 h there, none elsewhere


@dataclass(frozen=True)
class RunConfig:
    """Everything a run was told. Built by `load_config`, written to the run's `config.yaml`."""

    policy: Policy = field(default_factory=Policy)
    lora: Lora = field(default_factory=Lora)
    data: Data = field(default_factory=Data)
    grpo: Grpo = field(default_factory=Grpo)
    evaluation: Evaluation = field(default_factory=Evaluation)
    screening: Screening = field(default_factory=Screening)
    run: Run = field(default_factory=Run)
