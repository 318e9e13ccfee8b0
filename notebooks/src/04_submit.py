# %% [markdown]
# # 4 · Submit: how much better, how sure, and a zip that was checked
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/grpo-kit/grpo-kit/blob/main/notebooks/04_submit.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/grpo-kit/grpo-kit/blob/main/notebooks/04_submit.ipynb)
#
# | Goal | Hardware | Time |
# |---|---|---|
# | Measure the trained policy, put before and after side by side, pack `submission.zip` and prove what is in it | any machine; two CPU cores are enough for `tiny` | under a minute once the packages are installed |
#
# [1 Setup](01_setup.ipynb) → [2 Data](02_data.ipynb) → [3 Training](03_training.ipynb) → **4 Submit**.
# This notebook needs the adapter of notebook 3.

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
# Use the `preset` and the `run_name` of the notebooks before; what the run was made with stands, so `overrides` can
# stay empty. The presets `t4` and `24gb` describe the 30B model, whose way into 4 bit is tested with
# small models on a CPU only: **nothing has been run on a T4 so far.**

# %% cellView="form"
# @title Settings
preset = "tiny"  # @param ["tiny", "t4", "24gb"]
run_name = ""  # @param {type:"string"}
overrides = ""  # @param {type:"string"}

# %% [markdown]
# ## Open the run
# The run folder remembers which stages are done and what they were made with, so a fresh machine continues from there.
# If the last lines below ask for notebook 3, run [3 Training](03_training.ipynb)
# ([in Colab](https://colab.research.google.com/github/grpo-kit/grpo-kit/blob/main/notebooks/03_training.ipynb)) first.

# %%
from grpo_kit.session import begin, standing

config, run = begin([preset], overrides.split(), run_name or preset)
print(standing(run))
for stage in ("before", "train"):
    run.need(stage, "notebook 03_training.ipynb")

# %% [markdown]
# **You should see** `data`, `before` and `train` done. This notebook does `after` and `package`.

# %% [markdown]
# ## Measure after
# The trained policy answers the same held-out problems as the untrained one did; none of them was trained on. For
# `tiny` this takes a few seconds, and a line counts the answers.

# %%
from IPython.display import Pretty, display

from grpo_kit import evaluate
from grpo_kit.reward_files import load_reward


def count(done, total):
    again = done > config.evaluation.batch_size
    display(Pretty(f"{done} of {total} answers"), display_id="after", update=again)


after = evaluate.after(config, run, load_reward(config.evaluation.verifier), count)
print(f"{after['mean_tokens']:.0f} tokens a reply, {after['truncated']:.1%} cut off")

# %% [markdown]
# **You should see** the count reach all problems, and next to nothing cut off. A policy whose replies are often cut off
# needs a larger `evaluation.max_completion_length` before its accuracy means anything.

# %% [markdown]
# ## How much better, and how sure
# Two accuracies from a few hundred problems are two estimates, so each comes with the interval that belongs to it, and
# so does their difference, taken problem by problem.

# %%
report = evaluate.report(run)
for name in ("before", "after"):
    found, (low, high) = report[name], report[name]["ci95"]
    print(f"{name.capitalize()}: {found['pass@1']:.1%} of {found['n']} held-out problems solved;")
    print(f"  with 95 % confidence the true rate lies between {low:.1%} and {high:.1%}.")
low, high = (100 * points for points in report["difference_ci95"])
print(f"Training changed it by {100 * report['difference']:+.1f} points;")
print(f"  with 95 % confidence the true change lies between {low:+.1f} and {high:+.1f} points.")
print(report["words"])

# %% [markdown]
# **You should see** four sentences. Read the last one first: it says whether the difference is real. It counts the problems
# that were gained and lost, and how often chance alone would part them so unevenly (McNemar's exact test).

# %% [markdown]
# The same as a picture: points whose intervals are apart need no further argument.

# %%
# %matplotlib inline
from grpo_kit import html_report

display(html_report.picture(run))

# %% [markdown]
# **You should see** the reward by step on the left, and beside it the accuracy before and after with its intervals.

# %% [markdown]
# ## One problem, before and after
# Percentages do not say what changed, so look at a problem that was guessed wrong and then worked out.

# %%
from grpo_kit import screens

screens.example(run)

# %% [markdown]
# **You should see** for `tiny` one problem twice: first `looks like` and a wrong number, then the digits worked out
# one by one, and the right number. (With other problems this cell can stay empty: it looks for the tiny policy's guesses.)

# %% [markdown]
# ## Pack
# A submission is the adapter alone, two files at the root of a zip; the same adapter always gives the same bytes.

# %%
from grpo_kit import submission

zip_path = submission.package(config, run)
print(f"{zip_path.resolve()}, {zip_path.stat().st_size / 2**20:.2f} MiB")

# %% [markdown]
# **You should see** where the zip lies; the next run that is packed takes its place. On Kaggle it is part of the
# notebook's output; on Colab without Drive, download it from the Files panel before the session ends.

# %% [markdown]
# ## Check the zip, not the memory
# The zip is loaded onto a fresh base model and compared with the policy that was trained: an adapter can be empty, or be
# the wrong one, without anybody noticing until the score comes back.

# %%
from grpo_kit import inspection, outputs

findings = outputs.check(zip_path, config.policy, run.probe)
for finding in findings:
    print(f"{finding.severity:<8}{finding.what} {finding.scorer} {finding.remedy}")
assert not inspection.is_fatal(findings), (
    "Do not submit this zip; follow the remedies above, and pack again."
)

# %% [markdown]
# **You should see** no `fatal`, and among the `ok`: every tensor there and of the base's shape, no dead LoRA pair, outputs
# that differ from the base model's, and outputs that equal the trained policy's. For `tiny` one `warning` says that the
# challenge scores another model.

# %% [markdown]
# ## Submit to Kaggle
# The challenge takes the zip from the output of a Kaggle notebook (*Submit to Competition*), or from a terminal that is
# logged in to Kaggle:
#
# ```
# kaggle competitions submit -c nvidia-nemotron-model-reasoning-challenge -f submission.zip -m "grpo-kit"
# ```
#
# This notebook does not send anything. An adapter of the tiny policy fits the tiny policy only; the challenge wants one for
# Nemotron-3-Nano-30B-A3B.

# %% [markdown]
# ## Your turn
# - Measure with several samples a problem: in a new run, `evaluation.num_generations=4` from notebook 3 on. What happens
#   to the intervals?
# - Measure without chance: `evaluation.temperature=0` in a new run. Was the untrained policy better when it did not sample?
# - Unzip `submission.zip` and read `adapter_config.json`: which modules were trained, and at what rank?
#
# You have been through the whole chain. [Back to 1 Setup](01_setup.ipynb), with problems of your own.
