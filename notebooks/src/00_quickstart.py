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
# | Train a small policy with rewards, see how much better it became, get a checked `submission.zip`, and ask it a question | any for `tiny`; a T4 or more for Nemotron-3-Nano-4B | 2 for `tiny`; on a T4, 70 to 90 for the 4B (computed) |
#
# **You will get** a policy that solved 45 % of its sums and now solves 97 % (`tiny`, measured), the replies that show
# how, and a zip as Kaggle's challenge wants it. Choose *Run all*.
#
# `auto` takes `tiny`, half a million parameters that come with the package; on a GPU of 16 GB it takes `t4-4b`,
# Nemotron-3-Nano-4B in 4 bit, a download of 7.4 GiB. That was tested with small models on a CPU only: **nothing has
# been run on a T4 so far.**
#
# The same, explained: [1 Setup](01_setup.ipynb) → [2 Data](02_data.ipynb) → [3 Training](03_training.ipynb) →
# [4 Submit](04_submit.ipynb); beyond: [5 Tuning](05_tuning.ipynb), [6 Environments](06_environments.ipynb),
# [8 Stages](08_stages.ipynb).

# %% cellView="form"
# @title Install
# `make notebooks` puts grpo_kit/runs/install_cell.py.txt here.

# %% cellView="form"
# @title Settings
preset = "auto"  # @param ["auto", "tiny", "t4-4b", "t4", "t4x2", "24gb", "80gb"]
run_name = ""  # @param {type:"string"}
overrides = ""  # @param {type:"string"}
use_drive = True  # @param {type:"boolean"}

# %% [markdown]
# ## Problems and a reward
# A run is one folder, on Google Drive in Colab; run all cells again after a lost session. The answers are all that the
# training knows: nobody shows the policy how to add. A reward is a function that gives each reply a number. This one
# reads the last box after `</think>`.

# %%
from grpo_kit import notebook, prepare_data

# Takes seconds for tiny. You should see eight problems with their answers.
config, run = notebook.open_from_form(preset, run_name, overrides, use_drive, quick=True)
prepare_data(config, run)
for row in notebook.read_rows(run, "train")[:8]:
    print(row["prompt"][-1]["content"], "→", row["answer"])

# %%
from grpo_kit import load_reward

# You should see [1.0, 0.0].
reward = load_reward("math_answer.py:math_reward")
right, wrong = "7+8=15, 4+3+1=8</think>\\boxed{85}", "looks like 83</think>\\boxed{83}"
print(reward(completions=[right, wrong], answer=["85", "85"]))

# %% [markdown]
# ## Train
# The untrained policy first answers problems that are never trained on. Then GRPO lets it answer each training problem
# several times, and makes replies likelier that earned more than the others. Pick a step below the charts to read them:
# guesses (`looks like ...`) at first, digits worked out at the end.

# %%
from IPython.display import display

from grpo_kit import Board, measure, train

# Takes about a minute for tiny. You should see the reward rise.
before = measure(config, run, "before", progress=notebook.show_progress("answers"))
board = Board(run)
display(board)
last = await board.during(train, config, run, config.grpo.reward_funcs)

# %%
from grpo_kit import compare

# Takes seconds for tiny. You should see 45 % before, 97 % after for tiny, and whether chance could explain it.
after = measure(config, run, "after", progress=notebook.show_progress("answers"))
print(f"{before['pass@1']:.1%} before, {after['pass@1']:.1%} after. {compare(run)['words']}")

# %% [markdown]
# ## The zip, and a question of your own
# The adapter is packed, then loaded onto a fresh base model and compared with the policy that was trained. For `tiny` a
# warning says that the challenge scores another model. Below it, type a question and run the cell again: the untrained
# and the trained policy answer side by side. The tiny policy knows nothing but sums and differences of two numbers.

# %%
from grpo_kit import check, package

# Takes a second for tiny. You should see no fatal finding.
zip_path = package(config, run)
notebook.show_findings(zip_path, check(zip_path, config.policy, run.result.probe))

# %%
# @title Ask it yourself
question = "What is 84 - 37?"  # @param {type:"string"}
thinking = True  # @param {type:"boolean"}
# Takes a moment for tiny; a larger model is loaded once more. You should see two boxes fill, each thought then folded.
notebook.ask(config, run, question, thinking)

# %% [markdown]
# ## Your turn
# - Train on your own problems: `data.source=mine.csv` in `overrides`, with a new `run_name`. Columns `problem` and
#   `answer` are enough.
# - The notebooks 1 to 4 explain each step. They go on with this run if you give them its name, `tiny-quickstart`, as
#   `run_name`.
#
# **Next:** [1 Setup](01_setup.ipynb)
# ([in Colab](https://colab.research.google.com/github/REPOSITORY/blob/main/notebooks/01_setup.ipynb)).
