"""What a user would write with TRL and PEFT alone, on the rows, rewards and sizes of a run of the kit."""

import datasets
from transformers import PrinterCallback, set_seed

from grpo_kit.adapters import lora
from grpo_kit.policy.load import load_policy
from grpo_kit.runs.reading import read_lines
from grpo_kit.training.trl_settings import make_trl_config


def trainer(settings, run, rewards, args=None):
    """A plain GRPOTrainer; `args` are the run's own settings, or a GRPOConfig."""
    from trl import GRPOTrainer

    model, tokenizer = load_policy(settings.policy)
    rows = [{"prompt": row["prompt"], "answer": row["answer"]} for row in read_lines(run.data_file("train"))]
    del model.generate  # the kit's loop; transformers' own comes to light
    set_seed(settings.run.seed)
    bare_trainer = GRPOTrainer(
        # PEFT itself refuses out_proj of a Mamba layer, so the kit adds the LoRA.
        model=lora.add_lora(model, settings.lora, settings.run.seed), reward_funcs=rewards,
        args=args or make_trl_config(settings, run.path / "bare"), train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )  # fmt: skip
    bare_trainer.remove_callback(PrinterCallback)
    return bare_trainer


def defaults(settings, run):
    """TRL's own defaults for all that is not a size."""
    from trl import GRPOConfig

    grpo = settings.grpo
    return GRPOConfig(
        output_dir=str(run.path / "bare"), max_steps=grpo.max_steps, num_generations=grpo.num_generations,
        per_device_train_batch_size=grpo.per_device_train_batch_size, max_completion_length=grpo.max_completion_length,
        seed=settings.run.seed, bf16=False, report_to="none", logging_steps=1, save_strategy="no", disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
