# %% [markdown]
# # 3 · Training: reward right answers, watch the habit change
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/REPOSITORY/blob/main/notebooks/03_training.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/REPOSITORY/blob/main/notebooks/03_training.ipynb)
#
# ![The charts of a training: reward, accuracy, groups with a gradient, lengths, speed, entropy](../notes/images/03_training.png)
#
# | Goal | Hardware | Minutes |
# |---|---|---|
# | Try the rewards by hand, measure the untrained policy, train it with GRPO, follow the board, and know what to do when an alarm appears | any for `tiny`; the 30B model needs a T4 or more | 1 for `tiny`, hours for the 30B model |
#
# [0 Quickstart](00_quickstart.ipynb) → [1 Setup](01_setup.ipynb) → [2 Data](02_data.ipynb) → **3 Training** →
# [4 Submit](04_submit.ipynb) → [5 Tuning](05_tuning.ipynb) → [6 Environments](06_environments.ipynb) →
# [8 Stages](08_stages.ipynb).
# This notebook needs the data of notebook 2. After a lost session, run it again: it continues from the last
# checkpoint.

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
# Use the `preset` and the `run_name` of the previous notebooks. Finished stages keep their settings, so `overrides`
# here are for training. Separate them by spaces: `grpo.max_steps=50 grpo.learning_rate=5e-4`.
#
# `tracker` sends the figures elsewhere too: `tensorboard` shows itself in this notebook, `trackio` writes to this
# machine's disk, `wandb` needs the secret `WANDB_API_KEY`. Without its library or its secret a tracker is left out.
# A server that does not answer ends no training: after 90 seconds wandb keeps the figures on the disk instead.
#
# `t4-4b` is for Nemotron-3-Nano-4B; the other presets except `tiny` are for the 30B model. Loading in 4 bit is tested
# with small models on a CPU only: **nothing has been run on a T4 so far.**

# %% cellView="form"
# @title Settings
preset = "auto"  # @param ["auto", "tiny", "t4-4b", "t4", "t4x2", "24gb", "80gb"]
run_name = ""  # @param {type:"string"}
overrides = ""  # @param {type:"string"}
use_drive = True  # @param {type:"boolean"}
tracker = "none"  # @param ["none", "tensorboard", "trackio", "wandb"]

# %% [markdown]
# ## Open the run
# The run folder records which stages are finished and with which settings, so a fresh machine can continue the run.
# The folder comes from Google Drive on Colab, from the output of an earlier notebook among the inputs on Kaggle, and
# from `runs` elsewhere. If the data is missing, the cell shows a link to [2 Data](02_data.ipynb).

# %%
from grpo_kit import notebook

config, run = notebook.open_from_form(preset, run_name, overrides, use_drive, tracker=tracker)
notebook.require_stage(run, "data", "02_data")

# %% [markdown]
# **You should see** at least `data` done. This notebook does `before` and `train`. It keeps every stage that is done
# already.

# %% [markdown]
# ## The rewards
# A reward is a plain function. It gets completions and the columns of the data, and returns one number for each
# completion. To use your own, put a `FILE.py` beside the notebook and name it in `grpo.reward_funcs`, or write a
# function in a cell and put it into the list `rewards`. Each reward has one weight in `grpo.reward_weights`.

# %%
import inspect

from grpo_kit import load_reward

rewards = [load_reward(name) for name in config.grpo.reward_funcs]

for reward, weight in zip(rewards, config.grpo.reward_weights):
    print(f"# weight {weight}")
    print(inspect.getsource(reward))

# %% [markdown]
# **You should see** two functions. `math_reward` checks whether the boxed answer equals the reference answer.
# `reasoning_format_reward` checks only the form, thinking and then an answer. Its weight is a tenth, so that it
# guides the form without outweighing the answer. Each reward is in a file that you can paste into an empty cell.

# %% [markdown]
# ## Try the rewards by hand
# The policy learns to produce whatever a reward pays for. So call each reward on typical failures before training
# calls it a few thousand times. The problem is 47 + 38. No reply opens `<think>`, because the chat template has done
# so.

# %%
import pandas
from IPython.display import display

replies = {
    "right": ("7+8=15 4+3+1=8\n</think>\n\\boxed{85}", "85"),
    "right, written differently": ("7+8=15 4+3+1=8\n</think>\n\\boxed{85.0}", "85"),
    "wrong": ("looks like 83\n</think>\n\\boxed{83}", "85"),
    "no answer": ("7+8=15 4+3+1=8\n</think>\nI added the ones and the tens.", "85"),
    "right without thinking": ("</think>\n\\boxed{85}", "85"),
    "cut off while thinking": ("7+8=15 4+3+1=", "85"),
    "the reference answer is empty": ("7+8=15 4+3+1=8\n</think>\n\\boxed{85}", ""),
}
completions, answers = map(list, zip(*replies.values()))
table = pandas.DataFrame({"reply": completions, "answer": answers}, index=list(replies))
for reward in rewards:
    paid = reward(completions=completions, answer=answers)
    table[reward.__name__] = [str(value) for value in paid]
display(table)

# %% [markdown]
# **You should see** 1.0 from `math_reward` for the first two replies and for the right answer without thinking, 0.0
# for a reply that is wrong, unboxed or unfinished, and `None` where the reference answer is empty: the training skips
# a sample that cannot be judged, and does not punish it. The format reward pays 0.0 if there is no thinking or no end
# to it. It pays 1.0 for a wrong answer in the right form, and this is why its weight is small. (The update also
# leaves out replies that are cut off at the length limit: `mask_truncated_completions`.)

# %% [markdown]
# ## Measure before
# You need the accuracy before training to know what training gained. The untrained policy answers the held-out
# problems. **Takes** a few seconds for the 500 problems of `tiny`; a line counts the answers. If the cell is
# interrupted, run it again: it continues where it stopped.

# %%
from grpo_kit import measure

before = measure(config, run, "before", progress=notebook.show_progress("answers"))
low, high = before["ci95"]
print(f"pass@1 {before['pass@1']:.1%} on {before['n']} held-out problems")
print(f"95 % interval {low:.1%} to {high:.1%}")
print(f"{before['mean_tokens']:.0f} tokens per reply, {before['truncated']:.1%} cut off")

# %% [markdown]
# **You should see** about 45 % for `tiny`. Other problems would give another figure; the interval shows how far the
# figure may be from the true rate.

# %% [markdown]
# ## The settings that TRL gets
# TRL's `GRPOTrainer` does the training. This table shows the run's settings as arguments of TRL's `GRPOConfig`.

# %%
arguments = notebook.show_trl_settings(config, run)

# %% [markdown]
# **You should see** the settings of this run under TRL's names. For `tiny`, a step samples 64 completions: 8 for each
# of 8 problems. `arguments` is the complete `GRPOConfig`.

# %% [markdown]
# ## Trackers
# The board needs no tracker. If you chose one in the settings, it gets the same figures, step by step.

# %%
notebook.show_tracker(config, run, tracker)

# %% [markdown]
# **You should see** where the figures are; with `tensorboard` its page, empty until the training below makes steps.
# Where the page stays blank, the browser cannot reach this machine's ports; take another tracker there.

# %% [markdown]
# ## Train
# Each step samples a group of replies to each problem, rewards them, and makes those replies more likely that got
# more reward than their group's average. Before the first step, the kit tries the longest step that can occur. It
# shows whether the step fits into memory, and how long the run can take at most.
#
# **Takes** about half a minute for the 30 steps of `tiny` on two processor cores. **You will see** the board. Before
# the first step it says what it is doing: loading, measuring, sampling. At first it shows an upper limit of the time
# left; after a few steps it estimates the time from them. It plots the reward, which starts near 0.5 and can reach 1.1
# (the weighted sum of both rewards). It also shows every completion: pick a step and a group, and unfold the thinking.
# What you read stays in place until you press *follow*, which always shows the newest step. *Stop and save* ends the
# training after the current step and keeps the result.

# %%
from grpo_kit import Board, train

board = Board(run)
display(board)
last = await board.during(train, config, run, rewards)
print(
    f"{last['step']} steps in {run.stages()['train']['seconds']:.0f} s. The adapter is in {run.adapter}."
)

# %% [markdown]
# **You should see** the reward end above 1. In the third chart the blue share falls: a group whose replies are all
# right teaches nothing more, so the trainer samples another problem instead; the dashed line shows the groups that it
# trained on.
#
# If a training was stopped, killed or lost with its machine, run the cell again: it continues from its last
# checkpoint. A finished training is not repeated or overwritten. To train again, use another `run_name`, or add
# `run.force=true` to the overrides.

# %% [markdown]
# ## When an alarm appears
# The board shows an alarm in orange, with the setting to change. Each alarm looks at the mean of ten steps, so a
# single bad step does not cause one. `grpo.on_alarm=stop` ends the run at the first alarm.
#
# | Alarm | Look first at | Then |
# |---|---|---|
# | completions are cut | a few of them: do they repeat themselves, or are the thoughts long? | raise `grpo.max_completion_length`, or reward short replies |
# | groups are all right | the accuracy: is the training done? | stop, or use harder problems (`screen(config, run)` in a cell) |
# | groups are all wrong | a reply: could any be right? does the reward accept the right form? | use easier problems, or raise `grpo.num_generations` |
# | groups could not be judged | their reference answers in `completions.jsonl` | repair the data in notebook 2 |
# | a judge gives no verdict | its server, or a comparison that it was asked for | repair it, then run the cell again |
# | entropy is low | a group: are its replies identical? | lower `grpo.learning_rate`, or raise `grpo.temperature` |
# | steps overflowed in fp16 | how many steps overflowed | lower `grpo.learning_rate` or `grpo.max_grad_norm` |
# | log-probs differ | nothing else: do not trust this training | report it, with `run.json` |
# | the gradient's norm is large | the reward before the alarm | lower `grpo.learning_rate` |

# %%
notebook.show_alarms(run)

# %% [markdown]
# **You should see** nothing, or for `tiny` near its end an alarm that most groups are all right: the policy has
# learned what these problems can teach.

# %% [markdown]
# ## The curves
# The board needs a running kernel. This picture of the same charts stays in the notebook, and `report.html` in the
# run folder is a page that you can keep or send; it includes completions of a few steps. A rising reward is the first
# sign of learning. Where the curve flattens, more steps gain little.

# %%
# %matplotlib inline
notebook.show_curves(run)

# %% [markdown]
# **You should see** the blue line of the reward rise and flatten near 1. The dashed line of the format reward is near
# 1 from the start: the tiny policy knew the form and had to learn the content. The point at step 0 is the accuracy
# before training, with its interval; notebook 4 adds the accuracy after training.

# %% [markdown]
# ## What changed in the replies
# A curve can rise for bad reasons, so read the completions that were rewarded. The run keeps all of them.

# %%
notebook.show_completions(run)

# %% [markdown]
# **You should see** guesses (`looks like ...`) among the replies of step 1, and sums worked out digit by digit in the
# last step. During training the policy never saw a worked sum. It was rewarded for right answers, and it gets more of
# them by working the sum out.

# %% [markdown]
# ## Ask it yourself
# Type a question of your own and run the cell again. The untrained and the trained policy answer it side by side, as in
# the evaluation. **Takes** a moment for `tiny`; a larger model is loaded once more first.

# %%
# @title Ask it yourself
question = "What is 84 - 37?"  # @param {type:"string"}
thinking = True  # @param {type:"boolean"}
notebook.ask(config, run, question, thinking)

# %% [markdown]
# **You should see** two boxes that fill while the policies write. Each thought folds when its answer begins. In a
# terminal, `grpo-kit ask --run NAME "..."` does the same. The tiny policy knows nothing but sums and differences of two
# numbers; ask it without thinking, and it must answer at once. On a GPU, end this session before you open the next
# notebook.

# %% [markdown]
# ## Your turn
# - Add a case of your own to the table above: two boxes, a box inside a thought that never ends, a right answer with
#   a unit. Do you agree with what each reward pays?
#
# Give each of these a new `run_name`, and run notebook 2 for it first:
# - Smaller groups: `grpo.num_generations=4`. Larger groups: `grpo.num_generations=16`. Which curve is smoother?
# - Without the format reward: `grpo.reward_funcs=[math_answer.py:math_reward] grpo.reward_weights=[1.0]`. Does it
#   matter?
# - A reward of your own: copy `grpo_kit/rewards/math_answer.py` beside this notebook as `mine.py`, pay half a point
#   for an answer that is off by ten, and set `grpo.reward_funcs=[mine.py:math_reward] grpo.reward_weights=[1.0]`.
#   What does the policy learn?
#
# **Next:** [4 Submit](04_submit.ipynb)
# ([in Colab](https://colab.research.google.com/github/REPOSITORY/blob/main/notebooks/04_submit.ipynb)).
