"""TRL's GRPOTrainer, told which prompts to ask, what an answer is worth beside its group, and how to be interrupted.

Overridden are methods of TRL 1.16 and transformers 5.23 (`tests/test_trainer.py` notices when they move): where a generation
batch is made (prompts are drawn when they are needed, groups without a difference replaced), where rewards are counted and
log-probs computed, and where a checkpoint is written and read.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import set_seed
from trl import GRPOTrainer

from grpo_kit.adapters import lora
from grpo_kit.config import Grpo
from grpo_kit.runs import processes
from grpo_kit.training.advantages import compute_advantages, is_flat
from grpo_kit.training.prompt_sampler import PromptSampler

Batch = dict[str, torch.Tensor]
ENOUGH = 0.85  # share of a step's groups that teach, from which asking further ones costs more than they bring
ON_THE_LEFT = ("prompt_ids", "prompt_mask")  # padded there; everything else that is a row of tokens on the right


class GroupTrainer(GRPOTrainer):
    """A GRPOTrainer whose batches come from `book`; `grpo` holds `advantage`, `normalize_rewards` and `resample_budget`.

    The first reward function is taken for the verifier: above 0.5 it counts as a pass.
    """

    def __init__(self, *args: Any, grpo: Grpo, book: PromptSampler, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.grpo, self.book = grpo, book
        self.paid: torch.Tensor | None = None  # (completions, reward functions) of the batch last scored
        self.cut: list[bool] = []  # which of its completions ended at the limit
        self.trained_logps: torch.Tensor | None = None  # of the micro-batch last passed through the model
        self._base().keep_logps = True
        self.round = 0  # of asking, within a step
        self.keep: Callable[[], None] = lambda: None  # writes a checkpoint, wherever the run keeps them

    def _base(self) -> Any:
        return self.accelerator.unwrap_model(self.model).get_base_model()

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        self.paid = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self.cut = processes.all_gather([not ids or ids[-1] not in self.eos_token_ids for ids in completion_ids_list])
        return self.paid

    def _generate_and_score_completions(self, inputs):
        """A generation batch of prompts from the book; groups that teach nothing are replaced as far as the budget goes.

        As many are asked at once as are likely to bring a step's groups that teach, by one standard deviation more: sampling
        takes as long as its longest completion, so one large round costs less than two.
        """
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        asked = len(inputs) * processes.process_count() // self.num_generations
        spare = round(self.grpo.resample_budget * asked)
        self.round = 0

        def likely(wanted: int) -> int:
            share = self.book.likely_useful()
            return math.ceil((wanted + math.sqrt(wanted * (1 - share))) / share)

        more = min(spare, likely(asked) - asked) if self.book.likely_useful() < ENOUGH else 0
        drawn = self.book.draw(asked)
        batch, flat, why = self._ask(drawn + (self.book.draw_more(more) if more else []))
        figures = {name: list(values) for name, values in self._metrics["train"].items()}
        while (missing := asked - int((~flat).sum())) > (1 - ENOUGH) * asked and len(flat) - asked < spare:
            count = min(likely(missing), asked + spare - len(flat))
            again, again_flat, _ = self._ask(self.book.draw_more(count))
            batch = _join(batch, again, self.processing_class.pad_token_id)
            flat = torch.cat([flat, again_flat])
        chosen = flat.long().argsort(stable=True)[:asked]  # those that teach, then the others, as they were drawn
        batch = _groups_of(batch, chosen, self.num_generations)
        mine = processes.local_slice(asked * self.num_generations)
        batch = {name: value[mine] if value.ndim else value for name, value in batch.items()}
        metrics = self._metrics["train"]
        metrics.clear()  # TRL's figures are to be of the first round, which nothing had chosen
        metrics.update(figures)
        noted = {f"groups/{name}": share for name, share in why.items()}
        noted |= {
            "groups/with_gradient": 1 - flat[chosen].float().mean().item(),
            "groups/replaced": (chosen >= asked).float().mean().item(),
            "groups/sampled": len(flat) / asked,
        }
        for name, value in noted.items():
            metrics[name].append(value)
        return batch

    def _ask(self, drawn: list[int]) -> tuple[Batch, torch.Tensor, dict[str, float]]:
        """(TRL's batch of a group a prompt, `(prompts,)` whether each is flat, share of groups by why they are).

        Each process answers its part and has the whole afterwards. Every round has random numbers of its own, from the seed,
        the step and the round, so that they do not depend on how long others drew.
        """
        if short := processes.groups_to_pad(len(drawn), self.num_generations):
            drawn += self.book.draw_more(short)
        rows = [self.train_dataset[i] for i in drawn for _ in range(self.num_generations)]
        seed = np.random.SeedSequence([self.args.seed, self.state.global_step, self.round]).generate_state(1)
        set_seed(int(seed[0]))
        self.round += 1
        mine = processes.local_slice(len(rows))
        self._base().part_of = (mine.start, len(rows)) if processes.process_count() > 1 else None
        self._base().last_sampling = None
        batch = super()._generate_and_score_completions(rows[mine])
        self._base().part_of = None
        last, width = self._base().last_sampling, batch["completion_ids"].shape[1]
        if last is not None:  # None: vLLM or transformers' own loop drew
            batch["sampled_logps"] = _widen(last.logps[:, :width], width, 0, left=False)
        batch = self._whole(batch)
        n, paid = self.num_generations, self.paid
        unjudged = paid.isnan().all(dim=1)
        rewards = (paid * self.reward_weights.to(paid.device)).nansum(dim=1).masked_fill(unjudged, torch.nan)
        flat, passed = is_flat(rewards, n), (paid[:, 0] > 0.5).view(-1, n)
        worth = compute_advantages(rewards, n, self.grpo.advantage, self.grpo.normalize_rewards)
        batch["advantages"] = worth.masked_fill(flat.repeat_interleave(n), 0)
        known = (~paid[:, 0].isnan()).view(-1, n).sum(1)
        for prompt, right, tried in zip(drawn, passed.sum(1).tolist(), known.tolist()):
            if tried:
                self.book.learn(prompt, right, tried)
        cut = torch.tensor(self.cut, device=flat.device).view(-1, n).all(1)
        none = unjudged.view(-1, n).all(1)
        right = passed.all(1)
        causes = {
            "unjudged": none, "truncated": flat & cut & ~none, "all_right": flat & right & ~cut & ~none,
            "all_wrong": flat & ~right & ~cut & ~none,
        }  # fmt: skip
        return batch, flat, {name: cause.float().mean().item() for name, cause in causes.items()}

    def _whole(self, batch: Batch) -> Batch:
        """The batch of all processes, where each has its part: rows in their order, padded to one width."""
        if processes.process_count() == 1:
            return batch
        pad, gather = self.processing_class.pad_token_id, self.accelerator.gather
        whole = {}
        for name, value in batch.items():
            if value.ndim == 2:
                fill = pad if name.endswith("_ids") else 0
                value = self.accelerator.pad_across_processes(value, 1, fill, pad_first=name in ON_THE_LEFT)
            if value.ndim:
                whole[name] = gather(value.contiguous())
        return whole

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self.trained_logps = found[0].detach()
        return found

    def compute_loss(self, model, inputs, *args, **kwargs):
        """TRL's loss, of the completions that have a gradient; the others cost no pass through the model and change nothing.

        Beside it, by how much the log-probs of what was sampled differ between sampler and trainer.
        """
        if model.training and self.beta == 0:
            inputs, share = _that_teach(inputs, self.loss_type, self._least(inputs))
            if inputs is None:  # all alike, all cut: a gradient of zeros
                return 0 * sum(value.sum() for value in model.parameters() if value.requires_grad)
        else:
            share = 1.0
        loss = share * super().compute_loss(model, inputs, *args, **kwargs)
        if (
            sampled := inputs.get("sampled_logps", inputs.get("sampling_per_token_logps"))
        ) is not None:  # ours, or vLLM's
            mask = inputs["completion_mask"].bool()
            gap = (self.trained_logps - sampled).abs()[mask]
            mean = self.accelerator.gather(gap.mean() if len(gap) else gap.new_zeros(())).mean()
            self._metrics["train"]["sampling/logp_gap"].append(mean.item())
        return loss

    def _least(self, inputs: Batch) -> int:
        """How many rows must go through the model: of several processes as many in each, for they wait for each other."""
        if processes.process_count() == 1:
            return 0
        return max(1, int(self.accelerator.gather(_teach(inputs).sum()).max()))

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """The adapter by our own reader (PEFT's would stack the experts' pairs), and what the book knew."""
        lora.load_adapter_values(self.accelerator.unwrap_model(model or self.model), Path(resume_from_checkpoint))
        kept = json.loads(Path(resume_from_checkpoint, "drawing.json").read_text())
        self.book.restore(kept)

    def restore(self, step: int, folder: Path) -> None:
        """Take over what a checkpoint holds of the policy, without a step."""
        self._load_from_checkpoint(folder)
        self.state.global_step = step

    def _save_checkpoint(self, model, trial):
        self.keep()

    def write_checkpoint(self, folder: Path, base: str) -> None:
        """All that going on takes, into `folder`: adapter, optimiser, schedule, scaler, random numbers, book, state."""
        lora.save_adapter(self.accelerator.unwrap_model(self.model), folder, base)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        (folder / "drawing.json").write_text(json.dumps(self.book.state()))
        self.state.save_to_json(str(folder / "trainer_state.json"))


def _join(batch: Batch, more: Batch, pad: int) -> Batch:
    """Both batches as one, the narrower one padded; what is not by row goes."""
    done = {}
    for name, value in batch.items():
        other = more[name]
        if value.ndim == 2:
            width, fill = max(value.shape[1], other.shape[1]), pad if name.endswith("_ids") else 0
            value, other = (_widen(t, width, fill, name in ON_THE_LEFT) for t in (value, other))
        if value.ndim:
            done[name] = torch.cat([value, other])
    return done


def _groups_of(batch: Batch, groups: torch.Tensor, n: int) -> Batch:
    """The rows of `groups`, numbers in the order wanted, and TRL's count of their tokens."""
    rows = (groups[:, None] * n + torch.arange(n, device=groups.device)).flatten()
    done = {name: value[rows] for name, value in batch.items() if value.ndim}
    return done | {"num_items_in_batch": done["completion_mask"].sum().float()}


def _teach(batch: Batch) -> torch.Tensor:
    """`(rows,)` whether a row has an advantage and a token that counts."""
    return (batch["advantages"] != 0) & batch["completion_mask"].bool().any(1)


def _that_teach(batch: Batch, loss_type: str, least: int) -> tuple[Batch | None, float]:
    """(the rows of a micro-batch that teach, and others where those are fewer than `least`, without columns that are padding
    in all of them; by what a mean over those rows is to be multiplied to be one over all). (None, 0) for no row."""
    mask, teach = batch["completion_mask"].bool(), _teach(batch)
    kept = (~teach).long().argsort(stable=True)[: max(least, int(teach.sum()))].sort().values
    if not len(kept):
        return None, 0.0
    last = int(mask[kept].any(0).nonzero()[-1]) + 1 if mask[kept].any() else 1
    first = int(batch["prompt_mask"][kept].any(0).nonzero()[0])
    found = {name: value[kept] if value.ndim else value for name, value in batch.items()}
    for name, value in found.items():
        if value.ndim == 2:
            found[name] = value[:, first:] if name in ON_THE_LEFT else value[:, :last]
    # dapo and cispo divide by the tokens of the whole batch, which `num_items_in_batch` holds.
    tokens, rows = mask[kept].sum() / mask.sum().clamp(min=1), len(kept) / len(mask)
    return found, {"dapo": 1.0, "cispo": 1.0, "bnpo": float(tokens)}.get(loss_type, rows)


def _widen(value: torch.Tensor, width: int, fill: int, left: bool) -> torch.Tensor:
    missing = width - value.shape[1]
    return torch.nn.functional.pad(value, (missing, 0) if left else (0, missing), value=fill)
