# %% [markdown]
# # 2 · Data: problems to learn from, problems to be judged by
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/grpo-kit/grpo-kit/blob/main/notebooks/02_data.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/grpo-kit/grpo-kit/blob/main/notebooks/02_data.ipynb)
#
# | Goal | Hardware | Time |
# |---|---|---|
# | Clean, decontaminate and split the problems, see where each row went, read ten of each source, and see how long prompts are in tokens | any machine; no GPU needed | under a minute once the packages are installed |
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
# Rows are read and mended; those that no final answer can check, that repeat a problem, or that give a benchmark's problem
# away are dropped; the rest is split by a hash of the problem's text. The verifier is the one the policy is measured
# with: a gold that it cannot use teaches nothing.

# %%
from grpo_kit import data, screens
from grpo_kit.reward_files import load_reward

manifest = data.prepare(config, run, load_reward(config.evaluation.verifier))
screens.data(manifest)
for split, count in manifest["rows"].items():
    print(f"{count:>6} rows in {split:<5}  sha256 {manifest['sha256'][split][:12]}")

# %% [markdown]
# **You should see** for `tiny` 3400 sums and differences to train on, 100 for validation, and 500 held out, on which the
# policy is measured before and after; none is dropped. For real sets a table comes first: what each reason took, with an
# example. The same sources, seed and versions give the same files, byte for byte; run the cell again and it finds them done.

# %% [markdown]
# ## Where the rows went
# The picture is the table once more. Every dropped row is kept in `dropped.jsonl` with its reason: read some, for no rule
# is right about all of them.

# %%
# %matplotlib inline
from IPython.display import display

from grpo_kit import funnel
from grpo_kit.workspace import read_lines

display(funnel.picture(manifest))
for row in read_lines(run.manifest.with_name("dropped.jsonl"))[:10]:
    print(
        f"{row['source']}, line {row['line']}: {row['reason']} ({row['why']})\n  {row['problem'][:100]!r}"
    )

# %% [markdown]
# **You should see** one bar for `tiny`, from which nothing was taken, and a staircase for real sets.

# %% [markdown]
# ## Held out means held out
# An accuracy is worth nothing if its problems were trained on, so count the problems that stand in both files.

# %%
train, test = read_lines(run.rows("train")), read_lines(run.rows("test"))
shared = {row["id"] for row in train} & {row["id"] for row in test}
print(f"{len(shared)} problems are in both train and test")
for name, hit in manifest["evaluation"].items():
    print(
        f"{hit['leaked']} of the {hit['problems']} problems of {name} stood in the sources, and were kept out"
    )
for name, why in manifest["not_checked"].items():
    print(f"not checked against {name}: {why[:120]}")

# %% [markdown]
# **You should see** 0. A problem's `id` is a hash of its text in which case, spacing and compatibility forms do not count,
# and a problem with the same wording and other numbers stays in the split of its variant. Sums that the kit makes itself
# are checked against no benchmark; other sources are, against every evaluation set that lies here or that the Hub gives.

# %% [markdown]
# ## Ten rows of each source
# Read your data before you train on it; nothing finds a wrong column or a broken answer faster.

# %%
for source in manifest["sources"]:
    rows = [row for row in train if row["source"] == source["name"]][:10]
    print(f"{source['name']}: {source['recipe']['about']} (licence: {source['recipe']['licence']})")
    for number, row in enumerate(rows, start=1):
        print(f"{number:>2}. {row['prompt'][-1]['content']}")
        print(f"    gold: {row['answer']}")

# %% [markdown]
# **You should see** ten problems with their golds. The gold is the final answer only; where a source holds a worked
# solution, the answer was taken from its `####` line, as in GSM8K, or from its last box.

# %% [markdown]
# ## How long prompts are
# A GPU must hold prompt and reply of every sample, so count prompts in tokens, with the policy's own tokenizer and
# chat template around them.

# %%
from grpo_kit.pipeline import token_counter

lengths = sorted(token_counter(config.policy)([row["prompt"] for row in train]))
print(f"shortest {lengths[0]}, median {lengths[len(lengths) // 2]}, longest {lengths[-1]} tokens")
reply = config.grpo.max_completion_length
print(f"with a reply of {reply}, the most this run allows: {lengths[-1] + reply} tokens")

# %% [markdown]
# **You should see** for `tiny` three equal lengths: its tokenizer reads bytes, and every problem has two two-digit
# numbers. The last line is the longest sequence that training has to hold; `data.max_prompt_tokens` drops what is longer.

# %% [markdown]
# The left picture shows whether a few long problems would set the memory for all; such a tail is worth cutting. The right
# one shows how often the policy solves a problem, once the rows have been screened: what it always or never solves
# teaches nothing.

# %%
import matplotlib.pyplot as plt

rates = [row["pass_rate"] for row in train if row["pass_rate"] is not None]
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 2.8), layout="constrained")
left.hist(lengths, bins=50, range=(0, 1.1 * lengths[-1]), color="#1f4e79")
left.set(xlabel="tokens in the prompt, template included", ylabel="training problems")
right.hist(rates, bins=20, range=(0, 1), color="#1f4e79")
right.set(xlabel="pass rate", title="" if rates else "not screened yet")
for axis in (left, right):
    axis.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# **You should see** on the left one bar for `tiny`, and a hump with a tail to the right for real problems such as GSM8K's.
# The right one is empty until pass rates have been measured.

# %% [markdown]
# ## Your turn
# A run keeps its data, so give each of these a `run_name` of its own and put the rest into `overrides`:
# - GSM8K, its first 500 problems: `data.source=gsm8k data.limit=500 data.val_size=50 data.test_size=100`. Any other recipe of
#   `data/recipes` goes the same way, several separated by commas: `data.source=gsm8k,math,aime_1983_2023`.
# - The challenge's own training file, found at either of Kaggle's mounts:
#   `data.source=nemotron_challenge evaluation.verifier=challenge.py:challenge_reward`.
# - The 200 GSM8K problems in a clone of the repository: `data.source=../data/gsm8k_sample.jsonl data.val_size=20 data.test_size=50`.
# - Your own JSONL, CSV or Parquet: `data.source=/path/to/problems.csv`, and if its columns have unusual names
#   `data.columns.prompt=... data.columns.answer=...`.
#
# Without internet, attach a set as a Kaggle input, or say where its file lies: `data.paths.gsm8k=/path/to/train.jsonl`. The tiny
# policy solves none of GSM8K: it shows that the chain takes real text. Where no reply is ever paid there is nothing
# to learn from, the adapter stays empty, and the check in notebook 4 says so.
#
# To make a run's data anew, add `run.force=true`.
#
# **Next:** [3 Training](03_training.ipynb) ([in Colab](https://colab.research.google.com/github/grpo-kit/grpo-kit/blob/main/notebooks/03_training.ipynb)).
