# %% [markdown]
# # 3 · Training: pay for right answers, watch the habit change
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/REPOSITORY/blob/main/notebooks/03_training.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/REPOSITORY/blob/main/notebooks/03_training.ipynb)
#
# | Goal | Hardware | Minutes |
# |---|---|---|
# | Try the rewards by hand, measure the untrained policy, train it with GRPO, watch the board, know what to do when an alarm shows | any for `tiny`; the 30B wants a T4 or more | 1 for `tiny`, hours for the 30B |
#
# [1 Setup](01_setup.ipynb) → [2 Data](02_data.ipynb) → **3 Training** →
# [4 Submit](04_submit.ipynb) → [5 Tuning](05_tuning.ipynb).
# This notebook needs the data of notebook 2. Run it again after a lost session: it goes on where the last checkpoint stands.

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
# Use the `preset` and the `run_name` of the notebooks before. What finished stages were made with stands, so `overrides`
# (single settings, parted by spaces: `grpo.max_steps=50 grpo.learning_rate=5e-4`) are for training here.
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
# If data is missing, the link below leads to [2 Data](02_data.ipynb).

# %%
from grpo_kit import notebook

config, run = notebook.begin(preset, run_name, overrides, use_drive)
notebook.need(run, "data", "02_data")

# %% [markdown]
# **You should see** at least `data` done. This notebook does `before` and `train`; whatever is done already is kept.

# %% [markdown]
# ## The rewards
# A reward is a plain function: it gets completions and the columns of the data, and returns one number for each
# completion. The list `rewards` is where your own come in: put a `FILE.py` beside the notebook and name it in
# `grpo.reward_funcs`, or write a function in a cell and put it into the list. Each has one weight in `grpo.reward_weights`.

# %%
import inspect

from grpo_kit.rewards.tools.loading import load_reward

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
# Without a figure from before there is no gain to speak of. The untrained policy answers the held-out problems.
# **Takes** for `tiny` a few seconds for 500 problems; a line counts the answers. Broken off, it goes on where it stood.

# %%
from grpo_kit.evaluation import evaluate

verifier = load_reward(config.evaluation.verifier)
before = evaluate.measure(config, run, "before", verifier, notebook.counter("answers"))
low, high = before["ci95"]
print(f"pass@1 {before['pass@1']:.1%} on {before['n']} held-out problems")
print(f"95 % interval {low:.1%} to {high:.1%}")
print(f"{before['mean_tokens']:.0f} tokens a reply, {before['truncated']:.1%} cut off")

# %% [markdown]
# **You should see** for `tiny` about 40 %. Another draw of problems would give another figure; the interval says
# how far away it may reasonably be.

# %% [markdown]
# ## What TRL is told
# The training itself is TRL's `GRPOTrainer`, and `trl_settings` is the one place that words its configuration. A person who
# knows `GRPOConfig` knows every name here.

# %%
from grpo_kit.training import train, trl_settings

arguments = trl_settings.make_trl_config(config, run.path / "checkpoints")
told = {name: str(arguments.to_dict()[name]) for name in trl_settings.trl_arguments(config)}
print(type(arguments).__name__)
display(pandas.DataFrame({"value": told}))

# %% [markdown]
# **You should see** the settings of this run under TRL's names; for `tiny`, a step draws 64 completions, 8 each for 8
# problems. `arguments` holds the whole.

# %% [markdown]
# ## Train
# Each step draws a group of replies to each problem, pays them, and makes the better-paid ones of each group more
# likely. Before the first, a step at its worst is tried: does it fit, and how long can the run take at most?
#
# **Takes** for `tiny` about half a minute for 30 steps on two processor cores. **You will see** the board: first the time left and
# when the run will be done, at most; from the first steps on by what they took. Then the reward, which starts near 0.5 (it
# is the weighted sum, so at most 1.1), and every completion to read: pick a step and a group, unfold the thinking.
# *Stop and save* ends after the step at hand with what there is.

# %%
from grpo_kit.display.board import Board

board = Board(run)
display(board)
last = await board.during(train.train, config, run, rewards)
note = run.stages()["train"]
print(f"Trained {note['finished'][:16]} UTC: {last['step']} steps in {note['seconds']:.0f} s.")
print(f"The adapter lies in {run.adapter}.")

# %% [markdown]
# **You should see** the reward end above 1, and in the third chart the blue share fall: a group whose replies are all right
# teaches nothing more, and others are asked in its place; the dashed line is what was trained on.
#
# Run the cell again: a training that was stopped, killed or lost with its machine goes on from its last checkpoint; a finished
# one is not repeated, and never overwritten unasked. To train again, name another run, or add `run.force=true` to the overrides.

# %% [markdown]
# ## When an alarm shows
# The board writes an alarm in orange, and says in it what to change. It looks at the mean of ten steps, so one bad step rings
# none. `grpo.on_alarm=stop` ends the run at the first.
#
# | it says | first look at | then |
# |---|---|---|
# | completions are cut | a few of them: loops, or long thoughts? | raise `grpo.max_completion_length`, or pay for brevity |
# | groups are all right | the accuracy: is it done? | stop, or harder problems (`grpo-kit screen`) |
# | groups are all wrong | a reply: could any be right? is the right form paid? | easier problems, more `grpo.num_generations` |
# | groups could not be judged | their golds in `completions.jsonl` | mend the data, notebook 2 |
# | entropy is low | a group: are its replies the same? | lower `grpo.learning_rate`, raise `grpo.temperature` |
# | steps overflowed in fp16 | how many of the steps | lower `grpo.learning_rate` or `grpo.max_grad_norm` |
# | log-probs differ | nothing else: what was learned is not to be trusted | report it, with `run.json` |
# | the gradient's norm is large | the reward before it rang | lower `grpo.learning_rate` |

# %%
from grpo_kit.display import html_report, run_figures

for step, sentence in run_figures.alarms(html_report.rows_of(run)):
    print(f"step {step}: {sentence}")

# %% [markdown]
# **You should see** nothing, or for `tiny` near its end that most groups are all right: it has learned what these problems
# can teach.

# %% [markdown]
# ## The curves
# The board needs a kernel; the same charts as a picture stay in the notebook, and `report.html` in the run folder is a
# page to keep or send, with completions of a few steps. A reward that climbs is the first sign of learning; where it
# flattens, more steps buy little.

# %%
# %matplotlib inline
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
from grpo_kit.policy.chat import split_thinking
from grpo_kit.runs.files import read_lines

lines = read_lines(run.completions)
for line in lines[:4] + lines[-4:]:
    thinking, answer = split_thinking(line["completion"])
    print(f"step {line['step']:>3} · {line['prompt']}")
    print(f"  thinks : {thinking}")
    print(f"  answers: {answer}")
    print("  paid   :", ", ".join(f"{name} {paid}" for name, paid in line["rewards"].items()))

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
# **Next:** [4 Submit](04_submit.ipynb) ([in Colab](https://colab.research.google.com/github/REPOSITORY/blob/main/notebooks/04_submit.ipynb)).
