# %% [markdown]
# # 2 · Data: problems to learn from, problems to be judged by
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/grpo-kit/grpo-kit/blob/main/notebooks/02_data.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/grpo-kit/grpo-kit/blob/main/notebooks/02_data.ipynb)
#
# | Goal | Hardware | Time |
# |---|---|---|
# | Clean and split the problems, read ten of them, and see how long prompts are in tokens | any machine; no GPU needed | under a minute once the packages are installed |
#
# [1 Setup](01_setup.ipynb) → **2 Data** → [3 Training](03_training.ipynb) → [4 Submit](04_submit.ipynb).
# Nothing has to be run before this notebook.

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
# Use the `preset` and the `run_name` of notebook 1. `overrides` change single settings, separated by spaces; the source
# of the problems is one of them (examples at the end). The presets `t4` and `24gb` describe the 30B model, whose way into
# 4 bit is tested with small models on a CPU only: **nothing has been run on a T4 so far.**

# %% cellView="form"
# @title Settings
preset = "tiny"  # @param ["tiny", "t4", "24gb"]
run_name = ""  # @param {type:"string"}
overrides = ""  # @param {type:"string"}

# %% [markdown]
# ## Open the run
# The run folder remembers which stages are done and what they were made with, so a fresh machine continues from there.

# %%
from grpo_kit.session import begin, standing

config, run = begin([preset], overrides.split(), run_name or preset)
print(standing(run))

# %% [markdown]
# **You should see** the run's five stages and which of them are done. This notebook does the first one, `data`.

# %% [markdown]
# ## Prepare
# Empty and repeated problems are dropped and counted, and the rest is split by a hash of the problem's text: the same
# source and seed give the same three files, byte for byte.

# %%
from grpo_kit import data

manifest = data.prepare(config, run)
print(f"{manifest['read']:>6} problems read from {manifest['source']}")
for reason, count in manifest["dropped"].items():
    print(f"{count:>6} dropped: {reason}")
for split, count in manifest["rows"].items():
    print(f"{count:>6} in {split:<5}  sha256 {manifest['sha256'][split][:12]}")

# %% [markdown]
# **You should see** for `tiny` 4000 sums and differences: 3400 to train on, 100 for validation, and 500 held out, on
# which the policy is measured before and after. Run the cell again and it finds the data done.

# %% [markdown]
# ## Held out means held out
# An accuracy is worth nothing if its problems were trained on, so count the problems that stand in both files.

# %%
from grpo_kit.workspace import read_lines

train, test = read_lines(run.rows("train")), read_lines(run.rows("test"))
shared = {row["id"] for row in train} & {row["id"] for row in test}
print(f"{len(shared)} problems are in both train and test")

# %% [markdown]
# **You should see** 0. A problem's `id` is a hash of its text in which case, spacing and compatibility forms do not count.

# %% [markdown]
# ## Ten rows to read
# Read your data before you train on it; nothing finds a wrong column or a broken answer faster.

# %%
for number, row in enumerate(train[:10], start=1):
    print(f"{number:>2}. {row['prompt'][-1]['content']}")
    print(f"    gold: {row['answer']}")

# %% [markdown]
# **You should see** ten problems with their golds. The gold is the final answer only; where a source holds a worked
# solution with `####` before its last line, as GSM8K does, the answer was taken from there.

# %% [markdown]
# ## How long prompts are
# A GPU must hold prompt and reply of every sample, so count prompts in tokens, with the policy's own tokenizer and
# chat template around them.

# %%
from grpo_kit.policy import load_tokenizer

tokenizer = load_tokenizer(config.policy)
texts = [
    tokenizer.apply_chat_template(
        row["prompt"],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=config.policy.enable_thinking,
    )
    for row in train
]
lengths = sorted(len(tokenizer.encode(text, add_special_tokens=False)) for text in texts)
print(f"shortest {lengths[0]}, median {lengths[len(lengths) // 2]}, longest {lengths[-1]} tokens")
reply = config.grpo.max_completion_length
print(f"with a reply of {reply}, the most this run allows: {lengths[-1] + reply} tokens")

# %% [markdown]
# **You should see** for `tiny` three equal lengths: its tokenizer reads bytes, and every problem has two two-digit
# numbers. The last line is the longest sequence that training has to hold.

# %% [markdown]
# The picture shows whether a few long problems would set the memory for all; such a tail is worth cutting.

# %%
import matplotlib.pyplot as plt

figure, axis = plt.subplots(figsize=(8, 2.8), layout="constrained")
axis.hist(lengths, bins=50, range=(0, 1.1 * lengths[-1]), color="#1f4e79")
axis.set(xlabel="tokens in the prompt, template included", ylabel="training problems")
axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# **You should see** one bar for `tiny`, and a hump with a tail to the right for real problems such as GSM8K's.

# %% [markdown]
# ## Your turn
# A run keeps its data, so give each of these a `run_name` of its own and put the rest into `overrides`:
# - GSM8K from the Hub, its first 500 problems: `data.source=openai/gsm8k data.subset=main data.limit=500 data.val_size=50 data.test_size=100`.
# - The 200 GSM8K problems in a clone of the repository: `data.source=../data/gsm8k_sample.jsonl data.val_size=20 data.test_size=50`.
# - Your own JSONL, CSV or Parquet: `data.source=/path/to/problems.csv`, and if its columns have unusual names
#   `data.columns.prompt=... data.columns.answer=...`.
#
# The tiny policy solves none of GSM8K: it shows that the chain takes real text. Where no reply is ever paid there is nothing
# to learn from, the adapter stays empty, and the check in notebook 4 says so.
#
# To make a run's data anew, add `run.force=true`.
#
# **Next:** [3 Training](03_training.ipynb) ([in Colab](https://colab.research.google.com/github/grpo-kit/grpo-kit/blob/main/notebooks/03_training.ipynb)).
