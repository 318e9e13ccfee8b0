# %% [markdown]
# # 0 · Quickstart: a policy that guesses learns to work it out
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/REPOSITORY/blob/main/notebooks/00_quickstart.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/REPOSITORY/blob/main/notebooks/00_quickstart.ipynb)
#
# ![The reward rises over 30 steps, and the accuracy on held-out problems with it](../notes/images/00_quickstart.png)
#
# | Goal | Hardware | Minutes |
# |---|---|---|
# | Train a small policy with rewards, see how much better it became, ask it a question, and get a checked `submission.zip` | any for `tiny`; a T4 or more for Nemotron-3-Nano-4B | 2 for `tiny`; on a T4, 70 to 90 for the 4B (computed) |
#
# **0 Quickstart** → the same, explained: [1 Setup](01_setup.ipynb) → [2 Data](02_data.ipynb) →
# [3 Training](03_training.ipynb) → [4 Submit](04_submit.ipynb); beyond: [5 Tuning](05_tuning.ipynb),
# [6 Environments](06_environments.ipynb), [8 Stages](08_stages.ipynb).

# %% [markdown]
# Choose *Run all*. The first cell installs `grpo_kit`, where it is missing, in one or two minutes; it may ask for
# *Restart session*.

# %% cellView="form"
# @title Install
# `make notebooks` puts grpo_kit/runs/install_cell.py.txt here.

# %% [markdown]
# ## Settings
# Leave them as they are at first. `auto` takes `tiny`, a Nemotron-H with half a million parameters that comes with the
# package and trains on a CPU. On a GPU of 16 GB it takes `t4-4b`, Nemotron-3-Nano-4B in 4 bit, a download of 7.4 GiB.
# That was tested with small models on a CPU only: **nothing has been run on a T4 so far.** Choose `tiny` to see
# everything in two minutes first.

# %% cellView="form"
# @title Settings
preset = "auto"  # @param ["auto", "tiny", "t4-4b", "t4", "t4x2", "24gb", "80gb"]
run_name = ""  # @param {type:"string"}
overrides = ""  # @param {type:"string"}
use_drive = True  # @param {type:"boolean"}

# %% [markdown]
# ## Eight problems
# A run is one folder, on Google Drive in Colab. If the session is lost, run all cells again: finished work is kept.
# **Takes** seconds for `tiny`.

# %%
from grpo_kit import notebook, prepare_data

config, run = notebook.open_from_form(preset, run_name, overrides, use_drive, quick=True)
prepare_data(config, run)
for row in notebook.read_rows(run, "train")[:8]:
    print(row["prompt"][-1]["content"], "→", row["answer"])

# %% [markdown]
# **You should see** for `tiny` sums with their answers. These answers are all that the training knows; nobody shows
# the policy how to add.
#
# ## A reward
# A reward is a function that gives each reply a number. This one looks into the last box after `</think>`.

# %%
from grpo_kit import load_reward

reward = load_reward("math_answer.py:math_reward")
right, wrong = "7+8=15, 4+3+1=8</think>\\boxed{85}", "looks like 83</think>\\boxed{83}"
print(reward(completions=[right, wrong], answer=["85", "85"]))

# %% [markdown]
# **You should see** `[1.0, 0.0]`.
#
# ## Train
# The untrained policy first answers problems that are never trained on, for the comparison. Then GRPO lets it answer
# each training problem several times, and makes the replies more likely that earned more than the others. **Takes**
# about a minute for `tiny`. *Stop and save* keeps what was learned so far.

# %%
from IPython.display import display

from grpo_kit import Board, measure, train

before = measure(config, run, "before", progress=notebook.show_progress("answers"))
board = Board(run)
display(board)
last = await board.during(train, config, run, config.grpo.reward_funcs)

# %% [markdown]
# **You should see** the reward rise. Pick a step and a group below the charts to read the replies: guesses (`looks
# like ...`) at first, digits worked out one by one at the end.
#
# ## Before and after
# The trained policy answers the same problems. **Takes** a few seconds for `tiny`.

# %%
from grpo_kit import compare

after = measure(config, run, "after", progress=notebook.show_progress("answers"))
print(f"{before['pass@1']:.1%} before, {after['pass@1']:.1%} after. {compare(run)['words']}")

# %% [markdown]
# **You should see** about 45 % before and more than 90 % after for `tiny`, and whether chance alone could explain the
# difference.
#
# ## The zip
# The adapter is packed as Kaggle's challenge wants it, then loaded onto a fresh base model and compared with the policy
# that was trained. **Takes** a second for `tiny`.

# %%
from grpo_kit import check, package

zip_path = package(config, run)
notebook.show_findings(zip_path, check(zip_path, config.policy, run.result.probe))

# %% [markdown]
# **You should see** no `fatal` finding. For `tiny` a warning says that the challenge scores another model.
#
# ## Ask it yourself
# Type a question of your own and run the cell again. The untrained and the trained policy answer it side by side.
# **Takes** a moment for `tiny`; a larger model is loaded once more first.

# %%
# @title Ask it yourself
question = "What is 47 + 38?"  # @param {type:"string"}
thinking = True  # @param {type:"boolean"}
notebook.ask(config, run, question, thinking)

# %% [markdown]
# **You should see** two boxes that fill while the policies write. Each thought folds when its answer begins. The tiny
# policy knows nothing but sums and differences of two numbers.

# %% [markdown]
# ## Your turn
# - Train on your own problems: `data.source=mine.csv` in `overrides`, with a new `run_name`. Columns `problem` and
#   `answer` are enough.
# - The notebooks 1 to 4 explain each step. They go on with this run if you give them its name, `tiny-quickstart`, as
#   `run_name`.
#
# **Next:** [1 Setup](01_setup.ipynb)
# ([in Colab](https://colab.research.google.com/github/REPOSITORY/blob/main/notebooks/01_setup.ipynb)).
