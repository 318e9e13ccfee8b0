# %% [markdown]
# # 2 · Data: problems to learn from, problems to be judged by
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/REPOSITORY/blob/main/notebooks/02_data.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/REPOSITORY/blob/main/notebooks/02_data.ipynb)
#
# | Goal | Hardware | Minutes |
# |---|---|---|
# | Clean, decontaminate and split the problems, see where each row went, how long and how hard they are, and read ten of each source | any; no GPU needed | 1 for `tiny`, once the packages are installed |
#
# [1 Setup](01_setup.ipynb) → **2 Data** → [3 Training](03_training.ipynb) →
# [4 Submit](04_submit.ipynb) → [5 Tuning](05_tuning.ipynb).
# Nothing has to be run before this notebook.

# %% [markdown]
# ## Install
# Where `grpo_kit` is missing, pip brings it and what it needs, quietly: one or two minutes, and no restart, for the
# machine's own torch, numpy and pillow stay as they are. Where it is there, nothing happens. **You should
# see** nothing. An error is from here on its one sentence; `%tb Context` shows the rest.

# %% cellView="form"
# @title Install
import importlib.metadata
import importlib.util
import subprocess
import sys

get_ipython().InteractiveTB.set_mode("Minimal")
SOURCE = "git+https://github.com/REPOSITORY"
IMAGES_OWN = ("torch", "torchvision", "torchaudio", "triton", "numpy", "pillow")

if importlib.util.find_spec("grpo_kit") is None:
    here = {found.name.lower(): found.version for found in importlib.metadata.distributions()}
    kept = [f"{name}=={here[name]}" for name in IMAGES_OWN if name in here]
    pip = [sys.executable, "-m", "pip", "install", "-q", SOURCE, *kept]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        remedy = "Check the network; on Kaggle, turn Internet on in the notebook's settings"
        raise RuntimeError(f"pip could not install the kit. {remedy}. {done.stderr.strip()[-600:]}")

# %% [markdown]
# ## Settings
# Use the `preset` and the `run_name` of notebook 1. `overrides` change single settings, parted by spaces; the source of
# the problems is one of them (examples at the end).
# The presets other than `tiny` describe the 30B model, whose way into 4 bit is tested with small models on a CPU only:
# **nothing has been run on a T4 so far.**

# %% cellView="form"
# @title Settings
preset = "auto"  # @param ["auto", "tiny", "t4", "t4x2", "24gb", "80gb"]
run_name = ""  # @param {type:"string"}
overrides = ""  # @param {type:"string"}
use_drive = True  # @param {type:"boolean"}

# %% [markdown]
# ## Open the run
# The run folder remembers which stages are done and what they were made with, so a fresh machine goes on from there: from
# Drive on Colab, from the output of an earlier notebook among the inputs on Kaggle, from `runs` here elsewhere.

# %%
from grpo_kit import notebook

config, run = notebook.begin(preset, run_name, overrides, use_drive)

# %% [markdown]
# **You should see** the run's five stages and which of them are done. This notebook does the first one, `data`.

# %% [markdown]
# ## Sources
# Where problems come from is a recipe: which set, which columns, which licence.

# %%
from grpo_kit.data.preparation import locate_sources, prepare

for source in locate_sources(config):
    print(f"{source.name}: {source.recipe.about} (licence: {source.recipe.licence})")

# %% [markdown]
# **You should see** a line a source: what it is and under which licence.

# %% [markdown]
# ## Prepare
# Rows are read and mended; those that no final answer can check, that repeat a problem, or that give a benchmark's problem
# away are dropped; the rest is split by a hash of the problem's text. The verifier is the one the policy is measured
# with: a gold that it cannot use teaches nothing. **Takes** seconds for `tiny`, minutes for large sets; a run that was
# broken off goes on after its last whole step.

# %%
from grpo_kit.display import terminal
from grpo_kit.rewards.tools.loading import load_reward

verifier = load_reward(config.evaluation.verifier)
manifest = prepare(config, run, verifier)
terminal.data(manifest)
for split, digest in manifest["sha256"].items():
    print(f"{split:<5} sha256 {digest[:12]}")

# %% [markdown]
# **You should see** for `tiny` 3400 sums and differences to train on, 100 for validation, and 500 held out, on which the
# policy is measured before and after; none is dropped. For real sets a table comes first: what each reason took, with an
# example. The same sources, seed and versions give the same files, byte for byte; run the cell again and it finds them done.

# %% [markdown]
# ## Where the rows went
# The funnel as a picture. Every dropped row is kept in `dropped.jsonl` with its reason: read some, for no rule is right
# about all of them.

# %%
# %matplotlib inline
from IPython.display import display

from grpo_kit.display import data_funnel
from grpo_kit.runs.files import read_lines

display(data_funnel.picture(manifest))
for row in read_lines(run.manifest.with_name("dropped.jsonl"))[:10]:
    print(f"{row['source']}, line {row['line']}: {row['reason']} ({row['why']})")
    print(f"  {row['problem'][:100]!r}")

# %% [markdown]
# **You should see** for `tiny` one bar, from which nothing was taken, and under it the three splits; for real sets a staircase,
# with what each reason took in red.

# %% [markdown]
# ## Held out means held out
# An accuracy is worth nothing if its problems were trained on, so count the problems that stand in both files, and those
# of known evaluation sets that stood in the sources.

# %%
train, test = read_lines(run.data_file("train")), read_lines(run.data_file("test"))
shared = {row["id"] for row in train} & {row["id"] for row in test}
print(f"{len(shared)} problems are in both train and test")
for name, hit in manifest["evaluation"].items():
    print(f"{name}: {hit['leaked']} of {hit['problems']} problems stood in the sources; kept out")
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
    print(source["name"])
    rows = [row for row in train if row["source"] == source["name"]][:10]
    for number, row in enumerate(rows, start=1):
        print(f"{number:>2}. {row['prompt'][-1]['content']}")
        print(f"    gold: {row['answer']}")

# %% [markdown]
# **You should see** ten problems with their golds. The gold is the final answer only; where a source holds a worked
# solution, the answer was taken from its `####` line, as in GSM8K, or from its last box.

# %% [markdown]
# ## How long, how hard
# A GPU must hold prompt and reply of every sample, so prompts are counted in tokens, with the policy's own chat template
# around them. And what the policy always or never solves teaches nothing: the tiny policy tries 32 problems eight times
# each; for the 30B that takes hours, and `grpo-kit screen` is what to spend them on. **Takes** a few seconds.

# %%
from grpo_kit.evaluation import screening
from grpo_kit.policy.chat import make_token_counter

lengths = sorted(make_token_counter(config.policy)([row["prompt"] for row in train]))
rates = screening.estimate_pass_rates(config, run, verifier)
display(data_funnel.shape(lengths, rates))
print(f"shortest {lengths[0]}, median {lengths[len(lengths) // 2]}, longest {lengths[-1]} tokens")
reply = config.grpo.max_completion_length
print(f"with a reply of {reply}, the most this run allows: {lengths[-1] + reply} tokens")

# %% [markdown]
# **You should see** on the left one bar for `tiny`, whose tokenizer reads bytes, and a hump with a tail for real problems;
# a long tail sets the memory for all, and `data.max_prompt_tokens` cuts it. On the right, most problems of `tiny` are solved
# by some of the replies and missed by others (blue): these are the ones that teach.

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
# **Next:** [3 Training](03_training.ipynb) ([in Colab](https://colab.research.google.com/github/REPOSITORY/blob/main/notebooks/03_training.ipynb)).
