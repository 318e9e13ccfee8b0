# %% [markdown]
# # 5 · Tuning: which settings learn best, and which do not matter
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/REPOSITORY/blob/main/notebooks/05_tuning.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/REPOSITORY/blob/main/notebooks/05_tuning.ipynb)
#
# | Goal | Hardware | Minutes |
# |---|---|---|
# | Search two or three settings by short trainings on the run's own problems, see what moved the accuracy and what did not | any for `tiny`; the 30B wants days of a GPU | 1 to 2 for `tiny` |
#
# [1 Setup](01_setup.ipynb) → [2 Data](02_data.ipynb) → [3 Training](03_training.ipynb) →
# [4 Submit](04_submit.ipynb) → **5 Tuning**.
# This notebook needs the data of notebook 2, not a training. Run it again after a lost session: the search goes on.

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
# (single settings, parted by spaces: `grpo.num_generations=16`) are for the trials, too.
# - `search` names two or three settings and where to look: `log(a,b)`, `uniform(a,b)`, `int(a,b)` or choices `[a,b,c]`.
# - `trials` short trainings of `steps` steps each; the first is the run's own setting.
#
# The presets other than `tiny` describe the 30B model, whose way into 4 bit is tested with small models on a CPU only:
# **nothing has been run on a T4 so far.**

# %% cellView="form"
# @title Settings
preset = "auto"  # @param ["auto", "tiny", "t4", "t4x2", "24gb", "80gb"]
run_name = ""  # @param {type:"string"}
overrides = ""  # @param {type:"string"}
use_drive = True  # @param {type:"boolean"}
search = "grpo.learning_rate=log(3e-5,3e-3) lora.r=[4,16] grpo.temperature=[0.8,1.0]"  # @param {type:"string"}
trials = 8  # @param {type:"integer"}
steps = 12  # @param {type:"integer"}

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
# **You should see** at least `data` done. The search leaves the run's own stages as they are.

# %% [markdown]
# ## The space
# Trials must differ in few things, or no number of them tells which one mattered.

# %%
from grpo_kit.tuning import space

axes, rest = space.parse_search(search.split())
for key, axis in axes.items():
    print(f"{key:<24}", " or ".join(axis.choices) or f"{axis.low:g} to {axis.high:g}, {axis.kind}")

# %% [markdown]
# **You should see** a line for each setting that is searched.

# %% [markdown]
# ## Search
# Optuna proposes settings: the first half of the trials spread evenly, the others where it went well. Each is trained from the
# same seed and measured on the run's validation problems on the way; one that lies below the median of the others
# is broken off. **Takes** for `tiny` about a minute on two processor cores; a line counts the trials. Interrupted,
# the same cell goes on.

# %%
from grpo_kit.tuning import tune

count = notebook.counter("trials")
found = tune.tune(config, run, axes, trials, steps, max(1, steps // 3), on_trial=count)

# %% [markdown]
# **You should see** the best accuracy so far grow.

# %% [markdown]
# ## What was tried
# Every trial, the best first. The accuracy is the mean of the later half of its measurements.

# %%
from grpo_kit.display import terminal

terminal.tuned(found, run)

# %% [markdown]
# **You should see** intervals that overlap, mostly: a hundred validation problems tell large differences, not small ones.
# The sentence under the table says whether the best is better than the run's own settings, and that the best of many
# looks better than it is.

# %% [markdown]
# ## What moved, and what did not
# For each setting: does accuracy go with it over all trials, or would the same trials in random order show as much? Trials
# that were broken off count as well: all are compared at the last step that every one of them reached.

# %%
from IPython.display import Image, display

from grpo_kit.tuning import report

display(Image(run.path / "tune" / "tune.png"))
for sentence in report.moved(found):
    print(sentence)

# %% [markdown]
# **You should see** for `tiny` that the learning rate moves the accuracy, for that is what decides how far twelve steps
# get; and that rank and temperature show no effect. *No effect shown* is not *no effect*: eight trials see only large ones.

# %% [markdown]
# ## Use it
# The best trial's settings as overrides, for notebook 3 under a new `run_name`. Only a full training, measured on problems that
# the search has not seen, says what they are worth.

# %%
print(" ".join(found["best"]["overrides"]))

# %% [markdown]
# **You should see** one line to copy into `overrides`.

# %% [markdown]
# ## Your turn
# - More trials: set `trials` to 16 and run all again; the eight that are done are kept. Does the sentence on rank change?
# - Search what the group compares: `grpo.num_generations=[4,8,16]`, in a new run. What does a trial cost then?
# - Train twice in notebook 3, with the best settings and with the run's own, and compare the two `report.json`.
#
# [Back to 3 Training](03_training.ipynb) ([in Colab](https://colab.research.google.com/github/REPOSITORY/blob/main/notebooks/03_training.ipynb)).
