"""One resolved configuration per run: preset, then YAML files, then `key=value`, checked before anything starts.

The keys are the names TRL, PEFT and transformers use, so a person who knows `GRPOConfig` knows `grpo`. OmegaConf
merges and checks types; what it cannot know (groups of one, a batch that groups do not divide) is checked here.
"""

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from grpo_kit import curriculum, protocols, row_options
from grpo_kit.checks import at_least as _at_least
from grpo_kit.checks import nearest as _nearest
from grpo_kit.checks import one_of as _one_of
from grpo_kit.checks import require as _require
from grpo_kit.checks import share as _share

PRESETS = Path(__file__).with_name("presets")
DTYPES = ("float32", "float16", "bfloat16")


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
        _one_of("policy.dtype", self.dtype, DTYPES)
        _one_of("policy.experts_overflow", self.experts_overflow, ("host", "cuda:1"))
        _share("policy.experts_on_host", self.experts_on_host)

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
        _at_least("lora.r", self.r, 1, "a LoRA update has at least rank 1")
        _require(
            self.r <= 32, f"lora.r is {self.r}; the challenge's scorer takes ranks up to 32. Set lora.r to 32 or less."
        )
        _require(
            bool(self.target_modules),
            "lora.target_modules is empty; without a target nothing is trained. Name at least one module.",
        )


@dataclass(frozen=True)
class Columns:
    """Column names in the source; None: the first usual name that exists (see `grpo_kit.data`)."""

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
        row_options.check(self.no_thinking, self.budgeted, self.token_budgets)
        curriculum.check_band(self.pass_rate)
        _at_least("data.limit", 1 if self.limit is None else self.limit, 1, "at least one row is needed")
        tokens = 1 if self.max_prompt_tokens is None else self.max_prompt_tokens
        _at_least("data.max_prompt_tokens", tokens, 1, "a prompt has at least one token")
        _at_least("data.val_size", self.val_size, 0, "a split cannot hold fewer than no rows")
        _at_least("data.test_size", self.test_size, 1, "before and after are measured on held-out rows")

    def identity(self) -> dict[str, Any]:
        """What decides the rows; which of them are trained on later is left out."""
        return {key: value for key, value in asdict(self).items() if key != "pass_rate"}


@dataclass(frozen=True)
class Grpo:
    """TRL's `GRPOConfig`, the part of it a run on one GPU turns. Lengths are tokens, batches are completions."""

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
    scale_rewards: str = "group"
    beta: float = 0.0
    epsilon: float = 0.2
    epsilon_high: float | None = None
    num_iterations: int = 1
    mask_truncated_completions: bool = True
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    gradient_checkpointing: bool = False
    fp16: bool = False
    bf16: bool = False
    # FILE.py:function; a bare file name is looked for in the working folder first, then among the kit's own rewards
    reward_funcs: list[str] = field(
        default_factory=lambda: ["math_answer.py:math_reward", "reasoning_format.py:reasoning_format_reward"]
    )
    reward_weights: list[float] = field(default_factory=lambda: [1.0, 0.1])

    def __post_init__(self) -> None:
        _at_least("grpo.max_steps", self.max_steps, 1, "training takes at least one step")
        _at_least("grpo.per_device_train_batch_size", self.per_device_train_batch_size, 1, "a batch holds something")
        _at_least("grpo.gradient_accumulation_steps", self.gradient_accumulation_steps, 1, "one batch is one step")
        _at_least("grpo.max_completion_length", self.max_completion_length, 1, "a completion has at least one token")
        _at_least("grpo.num_generations", self.num_generations, 2, "GRPO compares the answers within a group")
        batch = self.per_device_train_batch_size * self.gradient_accumulation_steps
        _require(
            batch % self.num_generations == 0,
            f"grpo.num_generations is {self.num_generations} and a step holds {batch} completions "
            f"({self.per_device_train_batch_size} x {self.gradient_accumulation_steps}); whole groups must fit into a "
            f"step. Set grpo.per_device_train_batch_size to a multiple of {self.num_generations}.",
        )
        _require(self.learning_rate > 0, f"grpo.learning_rate is {self.learning_rate}; it must be above 0.")
        _require(
            self.temperature > 0,
            f"grpo.temperature is {self.temperature}; sampling a group needs one above 0. Set grpo.temperature to 1.0.",
        )
        _require(
            bool(self.reward_funcs),
            "grpo.reward_funcs is empty; GRPO needs at least one reward. Name one as FILE.py:function.",
        )
        _require(
            len(self.reward_weights) == len(self.reward_funcs),
            f"grpo.reward_weights has {len(self.reward_weights)} entries and grpo.reward_funcs {len(self.reward_funcs)}; "
            "each reward has one weight. Give both the same length.",
        )
        _require(not (self.fp16 and self.bf16), "grpo.fp16 and grpo.bf16 are both true; one can be. Set one to false.")


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
        protocols.impose(self)
        if self.num_problems is not None:
            _at_least("evaluation.num_problems", self.num_problems, 1, "an accuracy needs a problem")
        _at_least("evaluation.num_generations", self.num_generations, 1, "a problem is tried at least once")
        _at_least("evaluation.max_completion_length", self.max_completion_length, 1, "a completion has a token")
        _at_least("evaluation.batch_size", self.batch_size, 1, "a batch holds something")
        _require(self.temperature >= 0, f"evaluation.temperature is {self.temperature}; it must be 0 (greedy) or more.")


@dataclass(frozen=True)
class Run:
    """Which run this is. `root` None: Drive on Colab, /kaggle/working on Kaggle, ./runs elsewhere."""

    name: str = "default"
    seed: int = 3407
    root: str | None = None
    force: bool = False  # repeat a stage that is done already


@dataclass(frozen=True)
class RunConfig:
    """Everything a run was told. Built by `load_config`, written to the run's `config.yaml`."""

    policy: Policy = field(default_factory=Policy)
    lora: Lora = field(default_factory=Lora)
    data: Data = field(default_factory=Data)
    grpo: Grpo = field(default_factory=Grpo)
    evaluation: Evaluation = field(default_factory=Evaluation)
    screening: curriculum.Screening = field(default_factory=curriculum.Screening)
    run: Run = field(default_factory=Run)


def load_config(
    sources: list[str] | tuple[str, ...] = ("tiny",), overrides: list[str] | tuple[str, ...] = ()
) -> RunConfig:
    """Merge presets and YAML files left to right, then `key=value` overrides, and check the result.

    `sources`: preset names (`tiny`, `t4`, `t4x2`, `24gb`, `80gb`) or paths of YAML files.
    Raises ValueError for an unknown preset, key or unfit value, FileNotFoundError for a missing file.

    >>> load_config(["tiny"], ["grpo.num_generations=16"]).grpo.num_generations
    16
    """
    layers = [_read_layer(source) for source in sources] + [_read_override(text) for text in overrides]
    for layer in layers:
        _refuse_unknown_keys(layer)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), *layers)
        return OmegaConf.to_object(merged)
    except ValidationError as error:
        key = f"{error.full_key} " if error.full_key else ""
        raise ValueError(
            f"{key}does not fit: {str(error).splitlines()[0]}. Give a value of the type the preset shows."
        ) from None
    except OmegaConfBaseException as error:
        raise ValueError(f"The configuration cannot be merged: {str(error).splitlines()[0]}.") from None


def settle(config: RunConfig, finished: list[dict[str, Any]], overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """`config` with the sections that finished stages were made with, save where an override names another value.

    `finished`: the settings of those stages, as `asdict` gave them; keys that are no section are passed over.
    """
    known = {f.name for f in fields(RunConfig)}
    sections = [{name: values for name, values in settings.items() if name in known} for settings in finished]
    merged = OmegaConf.merge(OmegaConf.structured(config), *sections, OmegaConf.from_dotlist(list(overrides)))
    return OmegaConf.to_object(merged)


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration as YAML, every key in a fixed order; `run.force`, meant for one command, stays out."""
    whole = asdict(config)
    del whole["run"]["force"]
    return OmegaConf.to_yaml(OmegaConf.create(whole))


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def _read_layer(source: str) -> Any:
    path = PRESETS / f"{source}.yaml"
    if source not in preset_names():
        path = Path(source)
        if path.suffix not in (".yaml", ".yml"):
            near = _nearest(source, preset_names())
            raise ValueError(
                f"{source!r} is neither a preset nor a .yaml file; the presets are {', '.join(preset_names())}.{near}"
            )
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist; -c takes a preset ({', '.join(preset_names())}) or an existing YAML file."
            )
    try:
        layer = OmegaConf.load(path)
    except Exception as error:  # YAML's own errors have no common built-in base
        raise ValueError(f"{path} is not readable YAML: {' '.join(str(error).split())}. Correct it.") from None
    if not OmegaConf.is_dict(layer):
        raise ValueError(
            f"{path} holds no mapping; a configuration is sections with keys, such as 'grpo:'. Correct it."
        )
    return layer


def _read_override(text: str) -> Any:
    key, equals, _ = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(
            f"{text!r} is not an override; overrides are written key=value, such as grpo.num_generations=16."
        )
    try:
        return OmegaConf.from_dotlist([text])
    except Exception as error:  # YAML's scanner and OmegaConf's grammar raise unrelated types
        raise ValueError(f"{text!r} cannot be read: {' '.join(str(error).split())}. Quote the value.") from None


def _refuse_unknown_keys(layer: Any, schema: type = RunConfig, prefix: str = "") -> None:
    known = get_type_hints(schema)
    for key in layer:
        name = f"{prefix}{key}"
        if key not in known:
            near = _nearest(name, _all_keys())
            raise ValueError(
                f"{name} is not a key of the configuration.{near or ' `grpo-kit train --dry-run` prints them all.'}"
            )
        if is_dataclass(known[key]):
            inner = layer._get_node(key)
            if not OmegaConf.is_dict(inner):
                raise ValueError(f"{name} is a section; it takes keys, such as {name}.{fields(known[key])[0].name}=...")
            _refuse_unknown_keys(inner, known[key], f"{name}.")


def _all_keys(schema: type = RunConfig, prefix: str = "") -> list[str]:
    keys = []
    for name, kind in get_type_hints(schema).items():
        keys += _all_keys(kind, f"{prefix}{name}.") if is_dataclass(kind) else [f"{prefix}{name}"]
    return keys
