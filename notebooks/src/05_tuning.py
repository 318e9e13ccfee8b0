# %% [markdown]
# # 5 · Tuning: which settings learn best, and which do not matter
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/REPOSITORY/blob/main/notebooks/05_tuning.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/REPOSITORY/blob/main/notebooks/05_tuning.ipynb)
#
# ![The trials of a search, and their accuracies by setting](../notes/images/05_tuning.png)
#
# | Goal | Hardware | Minutes |
# |---|---|---|
# | Search two or three settings by short trainings on the run's own problems; see which of them change the accuracy and which do not | any for `tiny`; the 30B model needs days on a GPU | 1 to 2 for `tiny` |
#
# [0 Quickstart](00_quickstart.ipynb) → [1 Setup](01_setup.ipynb) → [2 Data](02_data.ipynb) → [3 Training](03_training.ipynb) →
# [4 Submit](04_submit.ipynb) → **5 Tuning** → [6 Environments](06_environments.ipynb) →
# [8 Stages](08_stages.ipynb).
# This notebook needs the data of notebook 2, but no training. After a lost session, run it again: the search
# continues.

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
# Use the `preset` and the `run_name` of the previous notebooks. Finished stages keep their settings; `overrides` here
# apply to the trials. Separate them by spaces: `grpo.num_generations=16 grpo.beta=0.01`.
# - `search` names two or three settings and their values: `log(a,b)`, `uniform(a,b)`, `int(a,b)`, or choices
#   `[a,b,c]`.
# - `trials` is the number of short trainings, and `steps` is the length of each. If the run's own settings lie in the
#   space, the first trial uses them.
#
# `t4-4b` is for Nemotron-3-Nano-4B; the other presets except `tiny` are for the 30B model. Loading in 4 bit is tested
# with small models on a CPU only: **nothing has been run on a T4 so far.**

# %% cellView="form"
# @title Settings
preset = "auto"  # @param ["auto", "tiny", "t4-4b", "t4", "t4x2", "24gb", "80gb"]
run_name = ""  # @param {type:"string"}
overrides = ""  # @param {type:"string"}
use_drive = True  # @param {type:"boolean"}
search = "grpo.learning_rate=log(3e-5,3e-3) lora.r=[4,16] grpo.temperature=[0.8,1.0]"  # @param {type:"string"}
trials = 8  # @param {type:"integer"}
steps = 12  # @param {type:"integer"}

# %% [markdown]
# ## Open the run
# The run folder records which stages are finished and with which settings, so a fresh machine can continue the run.
# The folder comes from Google Drive on Colab, from the output of an earlier notebook among the inputs on Kaggle, and
# from `runs` elsewhere. If the data is missing, the cell shows a link to [2 Data](02_data.ipynb).

# %%
from grpo_kit import notebook

config, run = notebook.open_from_form(preset, run_name, overrides, use_drive)
notebook.require_stage(run, "data", "02_data")

# %% [markdown]
# **You should see** at least `data` done. The search does not change the run's own stages.

# %% [markdown]
# ## The search space
# Search only a few settings. If the trials differ in many, no number of trials shows which one mattered.

# %%
settings = notebook.show_search_space(search)

# %% [markdown]
# **You should see** one line for each setting that is searched.

# %% [markdown]
# ## Search
# Optuna proposes the settings: the first half of the trials is spread evenly over the space, the others are near the
# best ones. Each trial trains from the same seed and is measured on the run's validation problems along the way. A
# trial that falls below the median of the others is stopped early. **Takes** about a minute for `tiny` on two
# processor cores. *Stop and keep* ends the search after the step it is in and keeps the finished trials; when you run
# the cell again, it continues.

# %%
from grpo_kit import tune

board = notebook.open_search_board(run, trials, steps)
result = await board.during(tune, config, run, settings, trials, steps, max(1, steps // 3))

# %% [markdown]
# **You should see** a board with the number of trials, the three best so far, the time left, and the button. The best
# accuracy rises or stays the same.

# %% [markdown]
# ## All trials
# The best trial comes first. The bar is the 95 % interval of its accuracy, which is the mean of the second half of its
# measurements; all bars have one scale. Green is the best trial, orange the one with the run's own settings.

# %%
notebook.show_trials(result)

# %% [markdown]
# **You should see** mostly overlapping intervals: a hundred validation problems can show large differences, but not
# small ones. The sentence under the table says whether the best trial is better than the run's own settings. The best
# of many trials always looks better than it is.

# %% [markdown]
# ## Optuna's own pictures
# The first shows how the accuracy changed from trial to trial, the second the accuracy by the value of each setting.
# Both leave out the trials that were stopped early. Optuna's picture of importances is left out: from random accuracies
# it gave one setting an importance of up to 0.93. The search itself is `tune/study.db` in the run folder, which
# `optuna.load_study` opens.

# %%
notebook.show_optuna(run)

# %% [markdown]
# **You should see** two pictures. A slope in the second may be chance; the next cell tests that.

# %% [markdown]
# ## Which settings changed the accuracy
# For each setting, this cell tests whether the accuracy rises or falls with it across all trials, compared with the
# same trials in random order. It includes trials that were stopped early: all trials are compared at the last step
# that every one of them reached.

# %%
notebook.show_effects(result, run)

# %% [markdown]
# **You should see** for `tiny` that the learning rate changes the accuracy, because it decides how much the policy
# learns in twelve steps, and that rank and temperature show no effect. *No effect is shown* does not mean *no
# effect*: eight trials can show only large ones.

# %% [markdown]
# ## Use the best settings
# This line has the best trial's settings as overrides for notebook 3 under a new `run_name`. Only a full training,
# measured on problems that the search has not used, shows how good they are.

# %%
print(" ".join(result["best"]["overrides"]))

# %% [markdown]
# **You should see** one line that you can copy into `overrides`.

# %% [markdown]
# ## Your turn
# - Run more trials: set `trials` to 16 and run all cells again; the eight finished trials are kept. Does the sentence
#   on rank change?
# - Search the group size: `grpo.num_generations=[4,8,16]`, in a new run. How long does a trial take then?
# - Train twice in notebook 3, with the best settings and with the run's own, and compare the two `report.json` files.
#
# [Back to 3 Training](03_training.ipynb)
# ([in Colab](https://colab.research.google.com/github/REPOSITORY/blob/main/notebooks/03_training.ipynb)).
