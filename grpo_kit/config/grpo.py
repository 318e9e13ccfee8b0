"""The section `grpo`: TRL's `GRPOConfig` as far as a run on one GPU needs it, and what the kit adds."""

from dataclasses import dataclass, field

from grpo_kit.config.checks import require, require_at_least, require_one_of, require_sampling, require_schedule
from grpo_kit.config.environments import require_rewards

LOSSES = ("dapo", "grpo", "dr_grpo", "bnpo", "gspo", "cispo")


@dataclass(frozen=True)
class Stage:
    """A part of a training with its own context length. The last three keys replace those of `grpo`; None: `grpo`'s."""

    max_completion_length: int = 512  # tokens
    steps: int | None = None  # None: until the `enter` rule of the next stage holds
    enter: str = "steps"  # begin after the steps of the stage before, or earlier: clipped, plateau (find_stage)
    beta: float | None = None  # weight of the KL; its reference is the policy before training
    epsilon_high: float | None = None
    learning_rate: float | None = None  # the scheduler multiplies it

    def __post_init__(self) -> None:
        require(
            self.beta is None or self.beta >= 0,
            f"grpo.stages has the beta {self.beta}; it is the weight of the KL. Set beta to 0 or more.",
        )
        require(
            self.learning_rate is None or self.learning_rate > 0,
            f"grpo.stages has the learning_rate {self.learning_rate}; a step must change something. Set it above 0.",
        )
        _require_clipping("epsilon_high in grpo.stages", self.epsilon_high)
        length = self.max_completion_length
        require_at_least("max_completion_length in grpo.stages", length, 1, "a completion has at least one token")
        require_at_least("steps in grpo.stages", 1 if self.steps is None else self.steps, 1, "a stage takes a step")
        require_one_of("enter in grpo.stages", self.enter, ("steps", "clipped", "plateau"))


@dataclass(frozen=True)
class Grpo:
    """How the policy is trained. Keys without a comment are TRL's, transformers' or torch's own, with their meaning.

    Lengths are tokens and batches are completions. `gspo` is TRL's loss `grpo` with importance weights for sequences.
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
    loss_type: str = "dapo"  # one of LOSSES
    advantage: str = "group"  # or leave_one_out (training.grpo.advantages)
    normalize_rewards: bool = True  # divide advantages by the group's standard deviation
    draw: str = "useful"  # prefer the prompts that teach most; or shuffled, in_order (training.grpo.prompt_sampler)
    resample_budget: float = 1.0  # groups with equal rewards that a step may replace, as a share of its groups
    stages: list[Stage] = field(default_factory=list)  # one context length after the other (training.callbacks)
    save_steps: int = 10
    eval_steps: int = 0  # steps between measurements of the accuracy on the validation rows; 0: never
    on_alarm: str = "warn"  # or stop (training.alarms)
    beta: float = 0.0
    epsilon: float = 0.2
    # How far above 1 a ratio is clipped, for every loss (TRL's is the bound itself for cispo); None: as `epsilon`.
    epsilon_high: float | None = 0.28  # "clip higher" of DAPO (arXiv:2503.14476)
    num_iterations: int = 1
    mask_truncated_completions: bool = True
    max_tool_calling_iterations: int = 8  # turns of a completion whose calls are carried out; the evaluation's too
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    gradient_checkpointing: bool = False
    fp16: bool = False
    bf16: bool = False
    vllm: str | None = None  # colocate, or server at its usual address: vLLM samples, once it agrees with transformers
    # Of math, and of every row that names no environment. FILE.py:function; a bare file name is looked for in the
    # working folder first, then among the kit's own rewards.
    reward_funcs: list[str] = field(
        default_factory=lambda: ["math_answer.py:math_reward", "reasoning_format.py:reasoning_format_reward"]
    )
    reward_weights: list[float] = field(default_factory=lambda: [1.0, 0.1])

    def __post_init__(self) -> None:
        self._check_batch()
        require_rewards("grpo", self.reward_funcs, self.reward_weights)
        require_at_least("grpo.max_steps", self.max_steps, 1, "training takes at least one step")
        length = self.max_completion_length
        require_at_least("grpo.max_completion_length", length, 1, "a completion has at least one token")
        turns = self.max_tool_calling_iterations
        require_at_least("grpo.max_tool_calling_iterations", turns, 1, "a tool is called in a turn")
        require_one_of("grpo.loss_type", self.loss_type, LOSSES)
        require_one_of("grpo.advantage", self.advantage, ("group", "leave_one_out"))
        require_one_of("grpo.draw", self.draw, ("useful", "shuffled", "in_order"))
        require_one_of("grpo.on_alarm", self.on_alarm, ("warn", "stop"))
        require_one_of("grpo.vllm", self.vllm or "server", ("colocate", "server"))
        require_at_least("grpo.save_steps", self.save_steps, 1, "a checkpoint follows a step")
        require_at_least("grpo.eval_steps", self.eval_steps, 0, "0 means never")
        require(
            self.resample_budget >= 0,
            f"grpo.resample_budget is {self.resample_budget}; it is a share of a step's groups. Set it to 0 or more.",
        )
        require(
            all(stage.steps for stage, after in zip(self.stages, self.stages[1:]) if after.enter == "steps"),
            "A stage of grpo.stages has no steps, and the enter of the next one is 'steps', so the next one would "
            "never begin. Give the stage steps.",
        )
        require_schedule("grpo", self.lr_scheduler_type, self.warmup_steps, self.max_grad_norm)
        require(self.learning_rate > 0, f"grpo.learning_rate is {self.learning_rate}; it must be above 0.")
        require(
            self.temperature > 0,
            f"grpo.temperature is {self.temperature}; at 0 all samples of a group are equal. Set it to 1.0.",
        )
        require_sampling("grpo", self.top_p, self.top_k)
        require(self.beta >= 0, f"grpo.beta is {self.beta}; it is the weight of the KL. Set grpo.beta to 0 or more.")
        _require_clipping("grpo.epsilon", self.epsilon)
        _require_clipping("grpo.epsilon_high", self.epsilon_high)
        require_at_least("grpo.num_iterations", self.num_iterations, 1, "a batch is learnt from at least once")
        require(
            not (self.fp16 and self.bf16), "grpo.fp16 and grpo.bf16 are both true; only one can be. Set one to false."
        )

    def _check_batch(self) -> None:
        size, accumulation = self.per_device_train_batch_size, self.gradient_accumulation_steps
        require_at_least("grpo.per_device_train_batch_size", size, 1, "a batch has at least one completion")
        require_at_least("grpo.gradient_accumulation_steps", accumulation, 1, "a step has at least one batch")
        require_at_least("grpo.num_generations", self.num_generations, 2, "GRPO compares the answers within a group")
        require(
            size * accumulation % self.num_generations == 0,
            f"grpo.num_generations is {self.num_generations} and a step has {size * accumulation} completions "
            f"({size} x {accumulation}); only whole groups fit into a step. "
            f"Set grpo.per_device_train_batch_size to a multiple of {self.num_generations}.",
        )

    def clip_above(self, stage: Stage | None = None) -> float:
        """How far above 1 a ratio is clipped, in `stage` if one is given and has its own `epsilon_high`."""
        values = (stage.epsilon_high if stage else None, self.epsilon_high, self.epsilon)
        return next(value for value in values if value is not None)


def _require_clipping(name: str, value: float | None) -> None:
    require(
        value is None or value >= 0,
        f"{name} is {value}; a ratio is clipped so far from 1. Set {name} to 0 or more.",
    )
