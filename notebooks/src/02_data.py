# %% [markdown]
# # 2 · Data: problems to train on, problems to measure with
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/REPOSITORY/blob/main/notebooks/02_data.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/REPOSITORY/blob/main/notebooks/02_data.ipynb)
#
# ![Prompt lengths, and how many of eight replies to each problem were right](../notes/images/02_data.png)
#
# | Goal | Hardware | Minutes |
# |---|---|---|
# | Clean, decontaminate and split the problems; see where each row went, how long and how hard the problems are; read ten of each source | any; no GPU needed | 1 for `tiny`, once the packages are installed |
#
# [0 Quickstart](00_quickstart.ipynb) → [1 Setup](01_setup.ipynb) → **2 Data** → [3 Training](03_training.ipynb) →
# [4 Submit](04_submit.ipynb) → [5 Tuning](05_tuning.ipynb) → [6 Environments](06_environments.ipynb) →
# [8 Stages](08_stages.ipynb).
# You can start with this notebook; it needs no other one.

# %% [markdown]
# ## Install
# If `grpo_kit` is missing, pip installs it with what it needs, in one or two minutes. It comes from a wheel beside this
# notebook, on Google Drive or in `/kaggle/input`, or from the clone that this notebook lies in. The machine's own torch,
# numpy and pillow stay as they are. If it is installed already, nothing happens.
#
# **Expected output:** none, or one sentence. If pip replaced a package that this session had imported before, the
# sentence asks for *Runtime, Restart session, then Run all*. From here on errors are shown as one sentence; run
# `%tb Context` for the full traceback.

# %% cellView="form"
# @title Install
# `make notebooks` puts grpo_kit/runs/install_cell.py.txt here.

# %% [markdown]
# ## Settings
# Use the `preset` and the `run_name` of notebook 1. `overrides` change single settings; separate them by spaces. The
# source of the problems is one of these settings (see the examples at the end).
#
# `t4-4b` is for Nemotron-3-Nano-4B; the other presets except `tiny` are for the 30B model. Loading in 4 bit is tested
# with small models on a CPU only: **nothing has been run on a T4 so far.**

# %% cellView="form"
# @title Settings
preset = "auto"  # @param ["auto", "tiny", "t4-4b", "t4", "t4x2", "24gb", "80gb"]
run_name = ""  # @param {type:"string"}
overrides = ""  # @param {type:"string"}
use_drive = True  # @param {type:"boolean"}

# %% [markdown]
# ## Open the run
# The run folder records which stages are finished and with which settings, so a fresh machine can continue the run.
# The folder comes from Google Drive on Colab, from the output of an earlier notebook among the inputs on Kaggle, and
# from `runs` elsewhere.

# %%
from grpo_kit import notebook

config, run = notebook.open_from_form(preset, run_name, overrides, use_drive)

# %% [markdown]
# **You should see** the five stages of the run and which of them are done. This notebook does the first one, `data`.

# %% [markdown]
# ## Sources
# A recipe describes each source of problems: which data set, which columns, which licence.

# %%
notebook.show_sources(config)

# %% [markdown]
# **You should see** one line for each source: what it is, and its licence.

# %% [markdown]
# ## Prepare
# This cell reads and repairs the rows. It drops rows whose answer cannot be checked, rows that repeat a problem, and
# rows that contain a problem of a benchmark. It splits the rest by a hash of the problem's text. The verifier is the
# reward that also measures the policy: a reference answer that it cannot use teaches nothing. **Takes** seconds for
# `tiny`, minutes for large data sets. If the cell is interrupted, run it again: it continues after its last finished
# step.

# %%
from grpo_kit import load_reward, prepare_data

verifier = load_reward(config.evaluation.verifier)
manifest = prepare_data(config, run, verifier)
notebook.show_data(manifest)

# %% [markdown]
# **You should see** for `tiny` 3400 sums and differences to train on, 100 for validation, and 500 held out, on which
# the policy is measured before and after training; no row is dropped. For real data sets a table comes first: how
# many rows each reason removed, with an example. The same sources, seed and versions give the same files, byte for
# byte. If you run the cell again, it finds the data and does nothing.

# %% [markdown]
# ## Where the rows went
# This chart shows how many rows each step removed. Every dropped row is kept in `dropped.jsonl` with its reason. Read
# some of them, because each rule is wrong about some rows.

# %%
# %matplotlib inline
notebook.show_funnel(manifest, run)

# %% [markdown]
# **You should see** for `tiny` one full bar, and under it the three splits. For real data sets the bars get shorter
# from step to step; red shows what each reason removed.

# %% [markdown]
# ## No problem is in both train and test
# An accuracy means nothing if the policy was trained on the test problems. This cell counts problems that are in both
# files, and problems of known benchmarks that were in the sources.

# %%
train_rows, test_rows = notebook.read_rows(run, "train"), notebook.read_rows(run, "test")
shared = {row["id"] for row in train_rows} & {row["id"] for row in test_rows}
print(f"{len(shared)} problems are in both train and test")
for name, leak in manifest["evaluation"].items():
    print(f"{name}: {leak['leaked']} of {leak['problems']} problems were in the sources; removed")
for name, reason in manifest["not_checked"].items():
    print(f"not checked against {name}: {reason[:120]}")

# %% [markdown]
# **You should see** 0. A problem's `id` is a hash of its text that ignores case, spacing and Unicode variants.
# Problems with the same wording and other numbers stay together in one split. Sums that the kit generates are not
# checked against benchmarks; other sources are checked against every benchmark that is on this machine or that the
# Hugging Face Hub provides.

# %% [markdown]
# ## Ten rows of each source
# Read your data before you train on it. This is the fastest way to find a wrong column or a broken answer.

# %%
for source in manifest["sources"]:
    print(source["name"])
    rows = [row for row in train_rows if row["source"] == source["name"]][:10]
    for number, row in enumerate(rows, start=1):
        print(f"{number:>2}. {row['prompt'][-1]['content']}")
        print(f"    answer: {row['answer']}")

# %% [markdown]
# **You should see** ten problems with their reference answers. A reference answer is the final answer only. If the
# source contains worked solutions, the answer comes from the `####` line, as in GSM8K, or from the last box.

# %% [markdown]
# ## How long, how hard
# A GPU must hold the prompt and the reply of every sample, so this cell counts the tokens of each prompt, with the
# policy's own chat template. It also estimates how hard the problems are, because problems that the policy solves
# always or never teach nothing. The tiny policy tries 32 problems, eight times each. For the 30B model this takes
# hours; `grpo-kit screen` does it. **Takes** a few seconds.

# %%
notebook.show_difficulty(config, run, verifier)

# %% [markdown]
# **You should see** on the left one bar for `tiny`, whose tokenizer reads bytes, and a hump with a tail for real
# problems. The longest prompts decide how much memory training needs; `data.max_prompt_tokens` drops them. On the
# right, some replies to most of the problems of `tiny` are right and some are wrong (blue): these problems teach.

# %% [markdown]
# ## Your turn
# A run keeps its data, so give each of these a new `run_name` and write the rest into `overrides`:
# - The first 500 problems of GSM8K: `data.source=gsm8k data.limit=500 data.val_size=50 data.test_size=100`. You can
#   use any other recipe of `data/recipes` in the same way, and several of them separated by commas:
#   `data.source=gsm8k,math,aime_1983_2023`.
# - The challenge's own training file, which the kit finds among the inputs on Kaggle:
#   `data.source=nemotron_challenge evaluation.verifier=challenge.py:challenge_reward`.
# - The 200 GSM8K problems in a clone of the repository:
#   `data.source=../data/gsm8k_sample.jsonl data.val_size=20 data.test_size=50`.
# - Your own file (JSON Lines, a JSON array, CSV, TSV, each also as `.gz`, or Parquet):
#   `data.source=/path/to/problems.csv`. A problem is a text, chat messages or a ShareGPT conversation. If its columns
#   have unusual names, add `data.columns.prompt=... data.columns.answer=...`; `reward_model.ground_truth` names the field
#   of a nested column.
#
# Without internet, attach a data set as a Kaggle input, or name its file: `data.paths.gsm8k=/path/to/train.jsonl`.
# The tiny policy does not solve any GSM8K problem; it only shows that the workflow accepts real text. If no reply is
# ever rewarded, the policy learns nothing, the adapter stays empty, and the check in notebook 4 reports it.
#
# To prepare a run's data again, add `run.force=true`.
#
# **Next:** [3 Training](03_training.ipynb)
# ([in Colab](https://colab.research.google.com/github/REPOSITORY/blob/main/notebooks/03_training.ipynb)).
