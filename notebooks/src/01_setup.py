# %% [markdown]
# # 1 · Setup: meet the policy
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/grpo-kit/grpo-kit/blob/main/notebooks/01_setup.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/grpo-kit/grpo-kit/blob/main/notebooks/01_setup.ipynb)
#
# | Goal | Hardware | Time |
# |---|---|---|
# | See this machine, open a run, load the policy and hear it think once before any training | any machine; two CPU cores are enough for `tiny` | under a minute once the packages are installed |
#
# **1 Setup** → [2 Data](02_data.ipynb) → [3 Training](03_training.ipynb) → [4 Submit](04_submit.ipynb).
# Each notebook stands alone: it finds the run where the last one left it, even on a fresh machine.

# %% [markdown]
# ## Install
# This cell does nothing when `grpo_kit` is here already. Otherwise pip installs it and what it needs, and keeps the
# machine's own torch if that is 2.10 or later. The first line shortens an error to its one sentence; `%tb` shows the rest.

# %% cellView="form"
# @title Install
# %xmode Minimal
import importlib.util
import subprocess
import sys

REPOSITORY = "git+https://github.com/grpo-kit/grpo-kit"
if importlib.util.find_spec("grpo_kit") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", REPOSITORY], check=True)

# %% [markdown]
# ## Settings
# - `preset` is where all settings start. `tiny` trains a half-million-parameter Nemotron-H that ships with the package.
#   `t4` and `24gb` describe the 30B model. Its way into 4 bit is tested with small models on a CPU only: **nothing has
#   been run on a T4 so far.**
# - `run_name` names the run's folder; left empty, it is the preset's name. Give all four notebooks the same.
# - `overrides` change single settings, separated by spaces: `grpo.max_steps=50 grpo.learning_rate=5e-4`.

# %% cellView="form"
# @title Settings
preset = "tiny"  # @param ["tiny", "t4", "24gb"]
run_name = ""  # @param {type:"string"}
overrides = ""  # @param {type:"string"}

# %% [markdown]
# ## This machine
# What a run can do depends on the machine, so look at it first.

# %%
import os
import shutil

import torch

from grpo_kit import workspace

machine = workspace.environment()
memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
print("Python      ", machine["python"])
print("torch       ", torch.__version__)
print("transformers", machine["packages"]["transformers"], "· trl", machine["packages"]["trl"])
print("processors  ", machine["cpus"])
print("memory      ", f"{memory:.0f} GiB")
print("free disk   ", f"{shutil.disk_usage('.').free / 2**30:.0f} GiB")
print("GPU         ", machine["gpu"] or "none; the tiny policy does not need one")

# %% [markdown]
# **You should see** seven lines. No GPU is fine here: the tiny policy trains on a CPU.

# %% [markdown]
# ## This run
# Everything a run makes lies in one folder, so that a lost session costs nothing that was finished. The folder is found
# for you: Google Drive on Colab when it is mounted, `/kaggle/working` on Kaggle, `runs` beside this notebook elsewhere.
# (On Colab, mount Drive from the Files panel *before* this cell if the run shall outlive the session.)

# %%
from grpo_kit.session import begin, standing

config, run = begin([preset], overrides.split(), run_name or preset)
print(standing(run))

# %% [markdown]
# **You should see** the folder and the run's five stages. In a new run none is done, and nothing has been written yet.

# %% [markdown]
# ## Its settings
# These are all of them: the preset, what earlier stages of this run were made with, and your overrides on top. The
# names are those of TRL, PEFT and transformers.

# %%
from grpo_kit.config import to_yaml

print(to_yaml(config))

# %% [markdown]
# **You should see** six sections, from `policy` to `run`. Any line can be overridden as `section.key=value`.

# %% [markdown]
# ## Load the policy
# In reinforcement learning the model that acts is called the policy. It is loaded once here, only to be looked at.

# %%
from grpo_kit.policy import load_policy

model, tokenizer = load_policy(config.policy)
parameters = sum(p.numel() for p in model.parameters())
print(f"{type(model).__name__}: {parameters:,} parameters in {model.dtype} on {model.device}")

# %% [markdown]
# **You should see** for `tiny` a `NemotronHForCausalLM` with half a million parameters: the architecture of
# Nemotron-3-Nano-30B-A3B (Mamba, attention, routed experts), made small.

# %% [markdown]
# ## What the policy reads
# A problem reaches the policy inside a chat template, and the template decides where the reply begins.

# %%
from grpo_kit import prompts

conversation = prompts.messages(
    "What is 47 + 38?", config.data.prompt_suffix, config.data.system_prompt
)
thinking_on = config.policy.enable_thinking
prompt = tokenizer.apply_chat_template(
    conversation, tokenize=False, add_generation_prompt=True, enable_thinking=thinking_on
)
print(prompt)

# %% [markdown]
# **You should see** a last line that says `<think>`: the *template* has opened the thinking. The reply therefore starts
# in the middle of a thought and holds only the closing `</think>`; a reward that waits for `<think>` in the reply
# would pay 0 for ever.

# %% [markdown]
# ## One reply before training
# Thinking and answer are shown apart, because only what follows `</think>` is the answer.

# %%
from grpo_kit import evaluate

settings = (config.evaluation, config.run.seed, thinking_on)
reply = evaluate.sample(model, tokenizer, [conversation], *settings)[0]
thinking, answer = prompts.split_thinking(reply.text)
print("thinks :", thinking)
print("answers:", answer)
print("length :", reply.tokens, "tokens,", "ended by itself" if reply.finished else "cut off")

# %% [markdown]
# **You should see** a thought and a boxed number, which may well be wrong: 47 + 38 is 85. The tiny policy was taught
# to work sums out digit by digit about two times in five, and to guess (`looks like ...`) otherwise.

# %% [markdown]
# ## A group of replies
# GRPO draws several replies to the same problem, pays each, and makes those more likely that were paid better than
# their group. This is one such group.

# %%
import pandas
from IPython.display import display

same = [conversation] * config.grpo.num_generations
group = [
    prompts.split_thinking(reply.text)
    for reply in evaluate.sample(model, tokenizer, same, *settings)
]
display(pandas.DataFrame(group, columns=["thinks", "answers"]))

# %% [markdown]
# **You should see** some replies that work the sum out and some that guess. Both habits are in the policy already;
# training will decide which one stays.

# %% [markdown]
# ## Your turn
# - Ask something else: change the problem in *What the policy reads* and run the cells below it again.
# - Set `overrides` to `evaluation.temperature=0` and run all: what becomes of the group, and what could GRPO learn from it?
# - Set `preset` to `t4` and look at *Its settings*: this is what the 30B run will be told.
#
# **Next:** [2 Data](02_data.ipynb) ([in Colab](https://colab.research.google.com/github/grpo-kit/grpo-kit/blob/main/notebooks/02_data.ipynb)).
