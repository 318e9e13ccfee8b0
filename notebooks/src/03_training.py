# %% [markdown]
# # 3 · Training: pay for right answers, watch the habit change
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/grpo-kit/grpo-kit/blob/main/notebooks/03_training.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/grpo-kit/grpo-kit/blob/main/notebooks/03_training.ipynb)
#
# | Goal | Hardware | Time |
# |---|---|---|
# | Try the rewards by hand, measure the untrained policy, train it with GRPO, see the reward climb | any machine; two CPU cores are enough for `tiny` | about a minute on two laptop cores |
#
# [1 Setup](01_setup.ipynb) → [2 Data](02_data.ipynb) → **3 Training** → [4 Submit](04_submit.ipynb).
# This notebook needs the data of notebook 2.

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
# Use the `preset` and the `run_name` of the notebooks before; what they settled about the data stands. `overrides`
# change single settings, separated by spaces: `grpo.max_steps=50 grpo.learning_rate=5e-4`. The presets `t4` and `24gb`
# describe the 30B model, whose way into 4 bit is tested with small models on a CPU only:
# **nothing has been run on a T4 so far.**

# %% cellView="form"
# @title Settings
preset = "tiny"  # @param ["tiny", "t4", "24gb"]
run_name = ""  # @param {type:"string"}
overrides = ""  # @param {type:"string"}

# %% [markdown]
# ## Open the run
# The run folder remembers which stages are done and what they were made with, so a fresh machine continues from there.
# If the last line below asks for notebook 2, run [2 Data](02_data.ipynb)
# ([in Colab](https://colab.research.google.com/github/grpo-kit/grpo-kit/blob/main/notebooks/02_data.ipynb)) first.

# %%
from grpo_kit.session import begin, standing

config, run = begin([preset], overrides.split(), run_name or preset)
print(standing(run))
run.need("data", "notebook 02_data.ipynb")

# %% [markdown]
# **You should see** at least `data` done. This notebook does `before` and `train`; whatever is done already is kept.

# %% [markdown]
# ## The rewards
# A reward is a plain function: it gets completions and the columns of the data, and returns one number for each
# completion. The list `rewards` is where your own come in: put a `FILE.py` beside the notebook and name it in
# `grpo.reward_funcs`, or write a function in a cell and put it into the list. Each has one weight in `grpo.reward_weights`.

# %%
import inspect

from grpo_kit.reward_files import load_reward

rewards = [load_reward(spec) for spec in config.grpo.reward_funcs]

for reward, weight in zip(rewards, config.grpo.reward_weights):
    print(f"# weight {weight}")
    print(inspect.getsource(reward))

# %% [markdown]
# **You should see** two functions. `math_reward` asks whether the boxed answer equals the gold; `reasoning_format_reward`
# asks only for the shape, thinking and then an answer, and has a tenth of the weight: it nudges, it must not lead. Each
# lies in a file that works when pasted into an empty cell.

# %% [markdown]
# ## Pay by hand first
# Whatever a reward pays for is what you will get, so call it on each way to fail before it is called a few thousand
# times. The problem is 47 + 38; no reply opens `<think>`, because the chat template has done so.

# %%
import pandas
from IPython.display import display

replies = {
    "right": ("7+8=15 4+3+1=8\n</think>\n\\boxed{85}", "85"),
    "right, written otherwise": ("7+8=15 4+3+1=8\n</think>\n\\boxed{85.0}", "85"),
    "wrong": ("looks like 83\n</think>\n\\boxed{83}", "85"),
    "no box": ("7+8=15 4+3+1=8\n</think>\nIt is 85.", "85"),
    "right without thinking": ("</think>\n\\boxed{85}", "85"),
    "cut off while thinking": ("7+8=15 4+3+1=", "85"),
    "the gold is empty": ("7+8=15 4+3+1=8\n</think>\n\\boxed{85}", ""),
}
said, golds = zip(*replies.values())
table = pandas.DataFrame({"reply": said, "gold": golds}, index=list(replies))
for reward in rewards:
    paid = reward(completions=list(said), answer=list(golds))
    table[reward.__name__] = [str(value) for value in paid]
display(table)

# %% [markdown]
# **You should see** 1.0 from `math_reward` for the first two and for the right answer without thinking, 0.0 for what is
# wrong, unboxed or unfinished, and `None` where the gold is empty: a sample that cannot be judged is skipped, not
# punished. The format reward pays 0.0 where there was no thinking or no end to it, and 1.0 for a wrong answer in good
# form, which is why it weighs so little. (Replies that are cut off at the length limit are left out of the update as
# well: `mask_truncated_completions`.)

# %% [markdown]
# ## Measure before
# Without a figure from before there is no gain to speak of. The untrained policy answers the held-out problems;
# for `tiny` these are 500, which takes a few seconds, and a line counts the answers.

# %%
from IPython.display import Pretty

from grpo_kit import evaluate


def count(done, total):
    again = done > config.evaluation.batch_size
    display(Pretty(f"{done} of {total} answers"), display_id="before", update=again)


before = evaluate.before(config, run, load_reward(config.evaluation.verifier), count)
low, high = before["ci95"]
print(f"pass@1 {before['pass@1']:.1%} on {before['n']} held-out problems")
print(f"95 % interval {low:.1%} to {high:.1%}")
print(f"{before['mean_tokens']:.0f} tokens a reply, {before['truncated']:.1%} cut off")

# %% [markdown]
# **You should see** for `tiny` about 40 %. Another draw of problems would give another figure; the interval says
# how far away it may reasonably be.

# %% [markdown]
# ## What TRL is told
# The training itself is TRL's `GRPOTrainer`, and `to_trl` is the one place that words its configuration. A person who
# knows `GRPOConfig` knows every name here.

# %%
from dataclasses import asdict

from grpo_kit.train import to_trl

arguments = to_trl(config, run.path / "checkpoints")
told = arguments.to_dict()
print(type(arguments).__name__)
for name in asdict(config.grpo):
    if name in told:
        print(f"  {name:<30}", told[name])

# %% [markdown]
# **You should see** the settings of this run under TRL's names; for `tiny`, a step draws 64 completions, 8 each for 8
# problems. The seed, the chat template's thinking and the logging are set as well; `arguments` holds the whole.

# %% [markdown]
# ## Train
# Each step draws a group of replies to each problem, pays them, and makes the better-paid ones of each group more
# likely. **Before you run it:** for `tiny`, 30 steps take about 40 s on two laptop cores. The board stays alive meanwhile:
# pick a step and a group to read what was sampled, unfold the thinking, or press *Stop and save*.

# %%
from grpo_kit import dashboard, train

board = dashboard.Board(run)
display(board)
last = await board.during(train.train, config, run, rewards)
note = run.stages()["train"]
print(f"Trained {note['finished'][:16]} UTC: {last['step']} steps in {note['seconds']:.0f} s.")
print(f"The adapter lies in {run.adapter}.")

# %% [markdown]
# **You should see** the reward start near 0.5 (it is the weighted sum, so at most 1.1) and end near 1.1, and the share of
# groups with a gradient fall: a group whose replies are all right teaches nothing more. The last line names the adapter.
# Run the cell again and it returns at once with the same line: a finished training is not repeated, and never overwritten
# unasked. To train again, name another run, or add `run.force=true` to the overrides.

# %% [markdown]
# ## The curves
# The board needs a kernel; the same charts as a picture stay in the notebook, and `report.html` in the run folder is a
# page to keep or send, with completions of a few steps. A reward that climbs is the first sign of learning; where it
# flattens, more steps buy little.

# %%
# %matplotlib inline
from grpo_kit import html_report

display(html_report.picture(run))
html_report.save(run)
print(f"The page lies in {run.page}.")

# %% [markdown]
# **You should see** the blue line of the reward climb and flatten near 1, and the format's dashed one near 1 from the
# start: the tiny policy knew the form and had to find out what is worth saying. The point at step 0 is the accuracy before
# training, with its interval; the one for after follows in notebook 4.

# %% [markdown]
# ## What changed, in its own words
# A curve can rise for bad reasons, so read what was paid: the run keeps every completion.

# %%
from grpo_kit.prompts import split_thinking
from grpo_kit.workspace import read_lines

lines = read_lines(run.completions)
for line in lines[:4] + lines[-4:]:
    thinking, answer = split_thinking(line["completion"])
    print(f"step {line['step']:>3} · {line['prompt']}")
    print(f"  thinks : {thinking}")
    print(f"  answers: {answer} · paid {line['rewards']}")

# %% [markdown]
# **You should see** guesses (`looks like ...`) among the replies of step 1, and sums worked out digit by digit in the
# last step. Nobody showed the policy a worked sum during training: it was paid for right answers, and working them out is
# what gets them.

# %% [markdown]
# ## Your turn
# - Add a case of your own to the table above: two boxes, a box inside a thought that never ends, a right answer with a
#   unit. Do you agree with what each reward pays?
#
# Give each of these a `run_name` of its own, and run notebook 2 for it first:
# - Smaller groups: `grpo.num_generations=4`. Larger: `grpo.num_generations=16`. Which curve is steadier?
# - Without the format reward: `grpo.reward_funcs=[math_answer.py:math_reward] grpo.reward_weights=[1.0]`. Does it matter?
# - A reward of your own: copy `grpo_kit/rewards/math_answer.py` beside this notebook as `mine.py`, pay half a point for an
#   answer that is off by ten, and set `grpo.reward_funcs=[mine.py:math_reward] grpo.reward_weights=[1.0]`. What does the
#   policy learn to say?
#
# **Next:** [4 Submit](04_submit.ipynb) ([in Colab](https://colab.research.google.com/github/grpo-kit/grpo-kit/blob/main/notebooks/04_submit.ipynb)).
