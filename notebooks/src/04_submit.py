# %% [markdown]
# # 4 · Submit: how much better, how sure, and a zip that was checked
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/REPOSITORY/blob/main/notebooks/04_submit.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/REPOSITORY/blob/main/notebooks/04_submit.ipynb)
#
# | Goal | Hardware | Minutes |
# |---|---|---|
# | Measure the trained policy, put before and after side by side, pack `submission.zip`, have the doctor look at it, and submit it | any for `tiny`; the 30B wants a T4 or more | 1 for `tiny` |
#
# [1 Setup](01_setup.ipynb) → [2 Data](02_data.ipynb) → [3 Training](03_training.ipynb) →
# **4 Submit** → [5 Tuning](05_tuning.ipynb).
# This notebook needs the adapter of notebook 3.

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
# (single settings, parted by spaces: `evaluation.batch_size=4`) can stay empty.
# - `submit` sends the zip to the challenge at the end. Unticked, the notebook shows what would be sent and sends nothing.
#
# The presets other than `tiny` describe the 30B model, whose way into 4 bit is tested with small models on a CPU only:
# **nothing has been run on a T4 so far.**

# %% cellView="form"
# @title Settings
preset = "auto"  # @param ["auto", "tiny", "t4", "t4x2", "24gb", "80gb"]
run_name = ""  # @param {type:"string"}
overrides = ""  # @param {type:"string"}
use_drive = True  # @param {type:"boolean"}
submit = False  # @param {type:"boolean"}

# %% [markdown]
# ## Open the run
# The run folder remembers which stages are done and what they were made with, so a fresh machine goes on from there: from
# Drive on Colab, from the output of an earlier notebook among the inputs on Kaggle, from `runs` here elsewhere.
# If the training is missing, the link below leads to [3 Training](03_training.ipynb).

# %%
from grpo_kit import notebook

config, run = notebook.begin(preset, run_name, overrides, use_drive)
for stage in ("before", "train"):
    notebook.need(run, stage, "03_training")

# %% [markdown]
# **You should see** `data`, `before` and `train` done. This notebook does `after` and `package`.

# %% [markdown]
# ## Measure after
# The trained policy answers the same held-out problems as the untrained one did; none of them was trained on. **Takes**
# for `tiny` a few seconds; a line counts the answers.

# %%
from grpo_kit.evaluation import evaluate
from grpo_kit.rewards.tools.loading import load_reward

verifier = load_reward(config.evaluation.verifier)
after = evaluate.measure(config, run, "after", verifier, notebook.counter("answers"))
print(f"{after['mean_tokens']:.0f} tokens a reply, {after['truncated']:.1%} cut off")

# %% [markdown]
# **You should see** the count reach all problems, and next to nothing cut off. A policy whose replies are often cut off
# needs a larger `evaluation.max_completion_length` before its accuracy means anything.

# %% [markdown]
# ## How much better, and how sure
# Two accuracies from a few hundred problems are two estimates, so each comes with the interval that belongs to it, and
# so does their difference, taken problem by problem.

# %%
from grpo_kit.evaluation import intervals

report = evaluate.compare(run)
print(intervals.describe_comparison(report))

# %% [markdown]
# **You should see** four sentences. Read the last one first: it says whether the difference is real. It counts the problems
# that were gained and lost, and how often chance alone would part them so unevenly (McNemar's exact test).

# %% [markdown]
# The same as a picture: points whose intervals are apart need no further argument.

# %%
# %matplotlib inline
from IPython.display import display

from grpo_kit.display import html_report

display(html_report.picture(run))

# %% [markdown]
# **You should see** the reward by step on the left, and beside it the accuracy before and after with its intervals.

# %% [markdown]
# ## One problem, before and after
# Percentages do not say what changed, so look at a problem that was guessed wrong and then worked out.

# %%
from grpo_kit.display import terminal

terminal.example(run)

# %% [markdown]
# **You should see** for `tiny` one problem twice: first `looks like` and a wrong number, then the digits worked out
# one by one, and the right number. (With other problems this cell can stay empty: it looks for the tiny policy's guesses.)

# %% [markdown]
# ## Pack
# A submission is the adapter alone, two files at the root of a zip; the same adapter always gives the same bytes.

# %%
from grpo_kit.submission import package

zip_path = package.package_adapter(config, run)
print(f"{zip_path.resolve()}, {zip_path.stat().st_size / 2**20:.2f} MiB")

# %% [markdown]
# **You should see** where the zip lies; the next run that is packed takes its place. On Kaggle it is part of the
# notebook's output; on Colab without Drive, download it from the Files panel before the session ends.

# %% [markdown]
# ## The doctor
# The zip is read as the challenge's scorer would read it, then loaded onto a fresh base model and compared with the policy
# that was trained: an adapter can be empty, or be the wrong one, without anybody noticing until the score comes back.
# **Takes** a second for `tiny`; the 30B is loaded once more.

# %%
from grpo_kit.submission import inspect_zip, output_check

findings = output_check.check_submission(zip_path, config.policy, run.probe)
terminal.findings(zip_path, findings)
assert not inspect_zip.is_fatal(findings), (
    "Do not submit this zip; follow the remedies above, and pack again."
)

# %% [markdown]
# **You should see** no `fatal`, and among the `ok`: every tensor there and of the base's shape, no dead LoRA pair, outputs
# that differ from the base model's, and outputs that equal the trained policy's. For `tiny` one `warning` says that the
# challenge scores another model.

# %% [markdown]
# ## Submit to Kaggle
# With `submit` ticked in the settings the package sends the zip, once: what was sent before is not sent again, and the cell
# waits for the score, up to two hours. Unticked, it is a dry run. (In a Kaggle notebook without internet the zip at the top of
# the output can be submitted by hand: *Submit to Competition*.)

# %%
notebook.submit(zip_path, f"grpo-kit, run {run.name}", send=submit)

# %% [markdown]
# **You should see** the calls that would be made, and `dry run`. An adapter of the tiny policy is refused before that: it
# fits the tiny policy only, the challenge wants one for Nemotron-3-Nano-30B-A3B, and five tries a day are few.

# %% [markdown]
# ## Your turn
# - Measure with several samples a problem: in a new run, `evaluation.num_generations=4` from notebook 3 on. What happens
#   to the intervals?
# - Measure without chance: `evaluation.temperature=0` in a new run. Was the untrained policy better when it did not sample?
# - Unzip `submission.zip` and read `adapter_config.json`: which modules were trained, and at what rank?
#
# You have been through the whole chain. **Next:** [5 Tuning](05_tuning.ipynb) ([in Colab](https://colab.research.google.com/github/REPOSITORY/blob/main/notebooks/05_tuning.ipynb)), or
# [back to 1 Setup](01_setup.ipynb) with problems of your own.
