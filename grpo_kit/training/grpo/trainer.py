"""GRPO's trainer: it draws prompts by pass rate, replaces groups and skips completions that have no gradient.

TRL's GRPOTrainer does the rest; its private methods are overridden in `trl_internals` only.
"""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import set_seed

from grpo_kit.config import Grpo, Policy
from grpo_kit.environments.worlds.episode import NO_WORLD, finish
from grpo_kit.environments.worlds.loading import Worlds
from grpo_kit.rewards.tools.routing import environment_of
from grpo_kit.rewards.tools.verdicts import RIGHT
from grpo_kit.runs import activity, processes
from grpo_kit.runs.files import to_json
from grpo_kit.training.grpo.advantages import compute_advantages, is_flat
from grpo_kit.training.grpo.batches import (
    LEFT_PADDED,
    Batch,
    drop_rows_without_gradient,
    gather_groups,
    has_gradient,
    join_batches,
    loss_mask,
    pad_columns,
    take_groups,
)
from grpo_kit.training.grpo.environment_figures import Groups, call_figures, environment_figures
from grpo_kit.training.grpo.environment_sampler import EnvironmentSampler
from grpo_kit.training.grpo.modes import Modes
from grpo_kit.training.grpo.prompt_sampler import PromptSampler
from grpo_kit.training.shared_prompts import share_prompts
from grpo_kit.training.trl_internals.grpo import OpenGRPOTrainer
from grpo_kit.training.trl_internals.versions import find_untested

ENOUGH = 0.85  # share of a step's groups with a gradient from which sampling further groups costs more than it brings
SAMPLER_FILE = "drawing.json"  # of a checkpoint; the name is that of the first version, whose runs can be resumed


class GroupTrainer(OpenGRPOTrainer):
    """A GRPOTrainer whose prompts come from `prompt_sampler`.

    Args:
        grpo: `advantage`, `normalize_rewards` and `resample_budget`.
        rows: the training rows with all columns. TRL's data set has only those that TRL needs, because a table would
            force one type on a column of several environments.
        prompt_sampler: draws the prompts.
        verifiers: for each environment the place of its verifier among the reward functions: a completion that it
            pays RIGHT counts as a pass. None where a judge compares answers; nothing is noted of the prompts there.
        worlds: of the environments that have one.
        policy: `thinking_budget` and `enable_thinking`.
    """

    def __init__(
        self,
        *args: Any,
        grpo: Grpo,
        rows: Sequence[dict[str, Any]],
        prompt_sampler: PromptSampler | EnvironmentSampler,
        verifiers: Mapping[str, int | None],
        worlds: Worlds,
        policy: Policy,
        **kwargs: Any,
    ) -> None:
        if worlds.classes:  # TRL takes one for every environment; a row of math may name none
            all_rows = {None: NO_WORLD, **dict.fromkeys(verifiers, NO_WORLD), **worlds.classes}
            kwargs["environment_factory"] = all_rows
        super().__init__(*args, **kwargs)
        self.worlds, self.max_tool_calling_iterations = worlds, worlds.most_turns
        self.calls: list[dict[str, float]] = []  # the figures of each completion's calls, of the batch last sampled
        self.grpo, self.rows, self.prompt_sampler, self.verifiers = grpo, rows, prompt_sampler, verifiers
        self.policy, self.cuts_thoughts = policy, policy.thinking_budget is not None
        self.modes = Modes(self.processing_class, rows, self.cuts_thoughts)
        self.sampling_round = 0  # within a step
        self.before_batch: tuple[int, dict[str, Any]] | None = None  # (steps, what was known of the prompts) before it
        if not find_untested():  # in another version the layout might not reach the mixers
            share_prompts(self._base_model())

    def _base_model(self) -> Any:
        return self.accelerator.unwrap_model(self.model).get_base_model()

    def budget_of(self, row: dict[str, Any]) -> int | None:
        """Tokens of thinking after which the row's thought is closed by force; None: none is."""
        return self.policy.budget_of(row)

    def make_batch(self, rows: list[dict[str, Any]]) -> Batch:
        """A generation batch of drawn prompts; groups without a gradient are replaced as far as the budget goes.

        One round samples as many groups as are likely to give the step's number with a gradient, and one standard
        deviation more: sampling takes as long as its longest completion, so one large round costs less than two. Of
        `rows` only the number counts.
        """
        self.before_batch = (self.state.global_step, self.prompt_sampler.state())
        groups = len(rows) * processes.process_count() // self.num_generations
        budget = round(self.grpo.resample_budget * groups)
        self.sampling_round = 0
        spare = 0
        if self.prompt_sampler.mixed_share() < ENOUGH:
            spare = min(budget, self._groups_needed(groups) - groups)
        drawn = self.prompt_sampler.draw(groups)
        activity.announce(f"sampling step {self.state.global_step + 1}")
        if spare:
            drawn += self.prompt_sampler.draw_more(spare, drawn)
        batch, prompts, flat, causes = self._sample_groups(drawn)
        first_round = {name: list(values) for name, values in self.figures.items()}

        def choose() -> torch.Tensor:
            return torch.tensor(self.prompt_sampler.choose(prompts, flat.tolist(), groups), device=flat.device)

        chosen = choose()
        while (missing := int(flat[chosen].sum())) > (1 - ENOUGH) * groups and len(flat) - groups < budget:
            count = min(self._groups_needed(missing), groups + budget - len(flat))
            replaced = [prompts[place] for place in chosen.tolist() if flat[place]]
            more, more_prompts, more_flat, _ = self._sample_groups(self.prompt_sampler.draw_more(count, replaced))
            batch = join_batches(batch, more, self.processing_class.pad_token_id)
            prompts, flat = prompts + more_prompts, torch.cat([flat, more_flat])
            chosen = choose()
        batch = take_groups(batch, chosen, self.num_generations)
        mine = processes.local_slice(groups * self.num_generations)
        # TRL's figures describe the first round only: what replaced its groups was chosen by the rewards.
        self.figures.clear()
        self.figures.update(first_round)
        shares = {f"groups/{cause}": share for cause, share in causes.items()} | {
            "groups/with_gradient": 1 - flat[chosen].float().mean().item(),
            "groups/replaced": (chosen >= groups).float().mean().item(),
            "groups/sampled": len(flat) / groups,
        }
        for name, share in shares.items():
            self.figures[name].append(share)
        activity.announce(f"training on step {self.state.global_step + 1}")
        return {name: value[mine] if value.ndim else value for name, value in batch.items()}

    def _groups_needed(self, mixed: int) -> int:
        """How many groups to sample so that `mixed` of them are likely to have a gradient."""
        share = self.prompt_sampler.mixed_share()
        return math.ceil((mixed + math.sqrt(mixed * (1 - share))) / share)

    def _sample_groups(self, prompts: list[int]) -> tuple[Batch, list[int], torch.Tensor, dict[str, float]]:
        """Sample and score a group for each of `prompts`, numbers of rows.

        Every process samples its part and has the whole batch afterwards. Every round has random numbers of its own,
        from the seed, the step and the round, so that they do not depend on how long the earlier rounds were.

        Returns:
            TRL's batch with the kit's advantages; the prompts, with those that fill up the processes; `(groups,)` bool,
            whether a group is flat; the share of groups by the cause that makes them flat.
        """
        if short := processes.groups_to_pad(len(prompts), self.num_generations):
            prompts = prompts + self.prompt_sampler.draw_more(short)
        rows = [copy.deepcopy(self.rows[prompt]) for prompt in prompts for _ in range(self.num_generations)]
        seeds = np.random.SeedSequence([self.args.seed, self.state.global_step, self.sampling_round])
        set_seed(int(seeds.generate_state(1)[0]))
        self.sampling_round += 1
        mine = processes.local_slice(len(rows))
        base = self._base_model()
        base.part_of = (mine.start, len(rows)) if processes.process_count() > 1 else None
        base.keep_logps, base.last_sampling = True, None
        try:
            batch = self.sample_batch(rows[mine])
        finally:  # others sample from this model too
            base.keep_logps, base.part_of = False, None
        if base.last_sampling is not None and not self.tools:  # None: vLLM or transformers' own loop sampled
            width = batch["completion_ids"].shape[1]
            batch["sampled_logps"] = pad_columns(base.last_sampling.logps[:, :width], width, 0, left=False)
        batch = self._gather_batch(batch)
        flat, causes = self._judge_groups(batch, prompts)
        return batch, prompts, flat, causes

    def _judge_groups(self, batch: Batch, prompts: list[int]) -> tuple[torch.Tensor, dict[str, float]]:
        """Put advantages into `batch` and note the pass rates; returns which groups are flat, and by what cause."""
        n, table = self.num_generations, self.reward_table
        unjudged = table.isnan().all(dim=1)
        rewards = (table * self.reward_weights.to(table.device)).nansum(dim=1).masked_fill(unjudged, torch.nan)
        flat = is_flat(rewards, n)
        advantages = compute_advantages(rewards, n, self.grpo.advantage, self.grpo.normalize_rewards)
        batch["advantages"] = advantages.masked_fill(flat.repeat_interleave(n), 0)
        # Of each completion one at most, its environment's.
        verdicts = table[:, [place for place in self.verifiers.values() if place is not None]]
        passed, judged = (verdicts == RIGHT).any(1).view(-1, n), (~verdicts.isnan()).any(1).view(-1, n)
        for prompt, right, tried in zip(prompts, passed.sum(1).tolist(), judged.sum(1).tolist()):
            if tried:
                self.prompt_sampler.learn(prompt, right, tried)
        ended = processes.all_gather([bool(ids) and ids[-1] in self.eos_token_ids for ids in self.scored_ids])
        is_cut = ~torch.tensor(ended, device=flat.device).view(-1, n)
        truncated = is_cut.all(1)
        figures: dict[str, float] = {}
        names = [environment_of(self.rows[prompt]) for prompt in prompts]
        if self.tools:
            calls = processes.all_gather(self.calls)
            figures |= call_figures(names, n, calls, [name for name in self.verifiers if name in self.worlds.classes])
        if len(self.verifiers) > 1 or self.tools:
            lengths = torch.tensor(processes.all_gather([len(ids) for ids in self.scored_ids]), dtype=torch.float32)
            groups = Groups(rewards.view(-1, n), passed, judged, flat, lengths.view(-1, n), is_cut)
            figures |= environment_figures(names, self.verifiers, groups)
        figures |= self.modes.figures(prompts, n, self.scored_ids, passed, judged, self.budget_of)
        for name, value in figures.items():
            self.figures[name].append(value)
        none_judged, all_right = unjudged.view(-1, n).all(1), passed.all(1)
        causes = {
            "unjudged": none_judged,
            "truncated": flat & truncated & ~none_judged,
            "all_right": flat & all_right & ~truncated & ~none_judged,
            "all_wrong": flat & ~all_right & ~truncated & ~none_judged,
        }
        return flat, {cause: groups.float().mean().item() for cause, groups in causes.items()}

    def judge_episodes(self, completions: list[list[dict[str, Any]]]) -> None:
        """Count the calls of each completion, and tell its world which of them were wrong."""
        if self.environments:
            most = self.max_tool_calling_iterations
            self.calls = [finish(*pair, most) for pair in zip(self.environments, completions, strict=True)]

    def _gather_batch(self, batch: Batch) -> Batch:
        """The batch of all processes, where each has its part: rows in their order, padded to one width."""
        if processes.process_count() == 1:
            return batch
        gathered = {}
        for name, value in batch.items():
            if value.ndim == 2:
                fill = self.processing_class.pad_token_id if name.endswith("_ids") else 0
                value = self.accelerator.pad_across_processes(value, 1, fill, pad_first=name in LEFT_PADDED)
            if value.ndim:
                gathered[name] = self.accelerator.gather(value.contiguous())
        return gathered

    def arrange(self, micro_batches: list[Batch]) -> list[Batch]:
        """TRL's micro-batches with groups side by side. Only `bnpo` weighs a row by the micro-batch that it is in."""
        return micro_batches if self.loss_type == "bnpo" else gather_groups(micro_batches)

    def compute_loss(self, model: Any, inputs: Batch, *args: Any, **kwargs: Any) -> torch.Tensor:
        """TRL's loss; completions without a gradient do not change it and are not passed through the model.

        Notes `sampling/logp_gap`, the mean absolute difference in nats per token between the log-probs that the sampler
        and the trainer give to the sampled tokens.
        """
        factor = 1.0
        if model.training and self.beta == 0:  # with a KL term every completion has a gradient
            inputs, factor = drop_rows_without_gradient(inputs, self.loss_type, self._rows_of_busiest(inputs))
            if inputs is None:  # a gradient of zeros
                return 0 * sum(value.sum() for value in model.parameters() if value.requires_grad)
        loss = factor * super().compute_loss(model, inputs, *args, **kwargs)
        sampled = inputs.get("sampled_logps", inputs.get("sampling_per_token_logps"))  # the kit's, or vLLM's
        if sampled is not None:
            gap = (self.trained_logps - sampled).abs()[loss_mask(inputs).bool()]
            mean = self.accelerator.gather(gap.mean() if len(gap) else gap.new_zeros(())).mean()
            self.figures["sampling/logp_gap"].append(mean.item())
        return loss

    def _rows_of_busiest(self, inputs: Batch) -> int:
        """How many rows each of several processes must pass through the model: they wait for each other's gradients."""
        if processes.process_count() == 1:
            return 0
        return max(1, int(self.accelerator.gather(has_gradient(inputs).sum()).max()))

    def undo_step(self) -> None:
        """Forget the prompts drawn and judged for a step that was not taken; it is sampled again."""
        if self.before_batch and self.before_batch[0] == self.state.global_step:
            self.prompt_sampler.restore(self.before_batch[1])

    def save_extra(self, folder: Path) -> None:
        """Write the pass rates of the prompts."""
        (folder / SAMPLER_FILE).write_text(to_json(self.prompt_sampler.state()))

    def load_extra(self, folder: Path) -> None:
        """Read the pass rates of the prompts."""
        self.prompt_sampler.restore(json.loads((folder / SAMPLER_FILE).read_text()))
