"""Whether a configuration fits a machine: adds up the rows of `memory` and places the routed experts in what is free.

Each place must have room for its largest phase. As many routed experts as fit stay on the first GPU. The others go to
a second GPU, or to the host if there is no second GPU or it is too small.
"""

from dataclasses import dataclass
from typing import NamedTuple

from grpo_kit.config import RunConfig
from grpo_kit.planning.machines import GIB, Bandwidths, Device
from grpo_kit.planning.memory import PHASES, PLACES, RESERVE, Row, Workload, context_row, count_rows
from grpo_kit.planning.model_size import Architecture
from grpo_kit.planning.storage import Storage, assess_storage


class Need(NamedTuple):
    """Bytes that a place must hold in its largest `phase`, and the bytes it `has` (None: unknown)."""

    nbytes: float
    has: float | None
    phase: str


class Seconds(NamedTuple):
    """Seconds of a step's sampling and training, and of one evaluation, where every completion has full length.

    `sampling_all` is the sampling where all groups that may replace others (`grpo.resample_budget`) are sampled in the
    same round; in `sampling` no group is replaced.
    """

    sampling: float
    sampling_all: float
    training: float
    evaluation: float


class StepTimes(NamedTuple):
    """What a step and an evaluation take (`step_time`).

    Attributes:
        device: by bytes and products alone.
        host: by the processor's own work alone: Python, PyTorch, launches; 0 where it is not counted.
        beside: whether the two are two processors, which work beside each other in part.
    """

    device: Seconds
    host: Seconds
    beside: bool

    @property
    def least(self) -> Seconds:
        """Where the two always work beside each other: the larger of the two; without a GPU their sum."""
        return Seconds(*map(max, self.device, self.host)) if self.beside else self.most

    @property
    def most(self) -> Seconds:
        """Where each always waits for the other: their sum. Bandwidths that are not reached add to that."""
        return Seconds(*(device + host for device, host in zip(self.device, self.host)))


@dataclass(frozen=True)
class Plan:
    """What a configuration needs of a machine.

    For several processes the figures are those of one of them, except that the host's rows are for all.

    Attributes:
        config: the configuration planned for.
        device: the machine planned for.
        prompt_tokens: length of the prompts in tokens.
        rows: what needs memory; the rows that are `at_peak` of a place sum to its `needs`.
        needs: {place: what it must hold in its largest phase}.
        experts: {place: how many routed experts lie there}.
        share_off_gpu: the share of each layer's routed experts, in [0, 1], that are not on the first GPU.
        fits: whether every place holds what it must, and the GPU has the policy's number type.
        largest: for each of `plan.KEYS` the largest value that fits with the others as configured, 0 for none; empty
            without a search.
        bandwidths: those that `times` were computed from, or None.
        verdict: one sentence: how it fits, or what is short and what to change.
        storage: what loading the policy has yet to download and to write.
        times: the seconds of a step and of an evaluation; None without bandwidths.
    """

    config: RunConfig
    device: Device
    prompt_tokens: int
    rows: list[Row]
    needs: dict[str, Need]
    experts: dict[str, int]
    share_off_gpu: float
    fits: bool
    largest: dict[str, int]
    bandwidths: Bandwidths | None
    verdict: str
    storage: Storage
    times: StepTimes | None = None

    @property
    def seconds(self) -> tuple[float, float] | None:
        """(sampling, training) of a step at least, with no group replaced; None where `times` is."""
        return self.times and (self.times.least.sampling, self.times.least.training)

    def at_peak(self, place: str) -> list[Row]:
        """The rows that are there when `place` is fullest."""
        return _rows_during(self.rows, place, self.needs[place].phase)


def assess_fit(
    model: Architecture, config: RunConfig, device: Device, prompt_tokens: int, storage: Storage | None = None
) -> Plan:
    """The plan before any search or measurement: its rows, the places of the experts, and whether everything fits.

    `storage` is that of the same policy and device, where it has been looked up before.
    """
    storage = storage or assess_storage(model, config.policy, device)
    rows = count_rows(Workload(model, config, device, prompt_tokens, storage))
    # With one process per GPU, the second GPU has its own copy of the policy and no room for the first one's experts.
    second_gpu = device.usable(1) if device.processes == 1 else 0.0
    capacity = {"GPU": device.usable() * GIB, "second GPU": second_gpu * GIB}
    capacity |= {"host": None if device.host is None else device.host * GIB, "disk": storage.free}
    capacity |= {"disk for downloads": storage.shard_free}
    per_layer = model.config.n_routed_experts if model.routed else 0
    placed = _place_experts(model, config, device, rows, capacity)
    rows += _expert_rows(model, config, device, placed)
    rows = [_for_all_processes(row, device.processes) for row in rows if row.nbytes]
    needs = {
        place: _largest_need(rows, place, capacity[place])
        for place in PLACES
        if any(row.place == place for row in rows)
    }
    holds = all(need.has is None or need.nbytes <= need.has for need in needs.values())
    return Plan(
        config,
        device,
        prompt_tokens,
        rows,
        needs,
        experts={place: count * model.kinds.get("moe", 0) for place, count in placed.items() if count},
        share_off_gpu=1 - next(iter(placed.values())) / per_layer if per_layer else 0.0,
        fits=holds and not lacks_bf16(config, device),
        largest={},
        bandwidths=None,
        verdict="",
        storage=storage,
    )


def lacks_bf16(config: RunConfig, device: Device) -> bool:
    """Whether the policy wants bfloat16 and the machine's GPU has none."""
    return config.policy.dtype == "bfloat16" and device.gpu > 0 and not device.triton


def _place_experts(
    model: Architecture, config: RunConfig, device: Device, rows: list[Row], capacity: dict[str, float | None]
) -> dict[str, int]:
    """{place: routed experts of each layer that lie there}, the place where the policy computes first."""
    count = model.config.n_routed_experts if model.routed else 0
    if not (config.policy.load_in_4bit and device.gpu and count):
        return {"GPU" if device.gpu else "host": count}
    nbytes = model.nbytes("routed experts", config.policy) / count  # one expert of every layer
    free = capacity["GPU"] - _largest_need(rows, "GPU").nbytes
    near = max(0, min(count, int(free // nbytes)))
    away = "second GPU" if (count - near) * nbytes <= capacity["second GPU"] - RESERVE else "host"
    return {"GPU": near, away: count - near}


def _expert_rows(model: Architecture, config: RunConfig, device: Device, placed: dict[str, int]) -> list[Row]:
    rows, layers = [], model.kinds.get("moe", 0)
    for place, count in placed.items():
        if not count:
            continue
        if place == "second GPU":
            rows.append(context_row(place))
        nbytes = count * model.nbytes("routed experts", config.policy) / model.config.n_routed_experts
        pinned = place == "host" and device.gpu > 0  # from loading on, when converting is over
        source = f"{count * layers:,} of {model.routed:,}"
        rows.append(Row(place, "routed experts", nbytes, source, ("load",) if pinned else ()))
    return rows


def _for_all_processes(row: Row, count: int) -> Row:
    """What `count` processes need of the host: `count` times a row, except converting, which one does for all."""
    if count == 1 or row.place != "host" or "convert" in row.phases:
        return row
    return row._replace(nbytes=count * row.nbytes, source=f"{count} processes: {row.source}")


def _rows_during(rows: list[Row], place: str, phase: str) -> list[Row]:
    return [row for row in rows if row.place == place and (not row.phases or phase in row.phases)]


def _largest_need(rows: list[Row], place: str, capacity: float | None = None) -> Need:
    sums = {phase: sum(row.nbytes for row in _rows_during(rows, place, phase)) for phase in PHASES}
    phase = max(sums, key=sums.__getitem__)
    return Need(sums[phase], capacity, phase)
