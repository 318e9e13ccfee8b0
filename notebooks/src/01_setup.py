# %% [markdown]
# # 1 · Setup: meet the policy
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/REPOSITORY/blob/main/notebooks/01_setup.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/REPOSITORY/blob/main/notebooks/01_setup.ipynb)
#
# ![What the 30B needs of a T4 and its host, part by part, as planned](../notes/images/01_setup.png)
#
# | Goal | Hardware | Minutes |
# |---|---|---|
# | Check this machine and what fits on it, open a run, load the policy, and read one of its replies before any training | any; two CPU cores are enough for `tiny`, the 30B model needs a T4 or more | 1 for `tiny`, once the packages are installed |
#
# [0 Quickstart](00_quickstart.ipynb) → **1 Setup** → [2 Data](02_data.ipynb) → [3 Training](03_training.ipynb) →
# [4 Submit](04_submit.ipynb) → [5 Tuning](05_tuning.ipynb) → [6 Environments](06_environments.ipynb) →
# [8 Stages](08_stages.ipynb).
# Each notebook can start on a fresh machine: it finds the run where the previous notebook left it.

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
# - `preset` is a set of settings to start from. On a GPU of 16 GB or more `auto` takes `t4-4b`, Nemotron-3-Nano-4B,
#   which downloads 7.4 GiB. Without one it takes `tiny`, a Nemotron-H with half a million parameters that ships with
#   the package. The cell *This run* also names the preset of the 30B model for this GPU, what it downloads (59 GiB)
#   and how long that takes; choose that preset here to use it.
# - `run_name` names the run's folder. If it is empty, the run has the preset's name. Use the same name in all
#   notebooks.
# - `overrides` change single settings. Separate them by spaces: `grpo.max_steps=50 grpo.learning_rate=5e-4`. Put a
#   value with spaces into quotes: `data.system_prompt="Be brief"`.
# - `use_drive` keeps the run on your Google Drive (Colab only). Colab asks for your permission. If you refuse, or do
#   not answer within two minutes, the run is kept on the machine's disk.
#
# The presets other than `tiny` and `t4-4b` are for the 30B model. Loading in 4 bit is tested with small models on a CPU
# only: **nothing has been run on a T4 so far.**

# %% cellView="form"
# @title Settings
preset = "auto"  # @param ["auto", "tiny", "t4-4b", "t4", "t4x2", "24gb", "80gb"]
run_name = ""  # @param {type:"string"}
overrides = ""  # @param {type:"string"}
use_drive = True  # @param {type:"boolean"}

# %% [markdown]
# ## This machine
# This cell checks the machine and the installed libraries.

# %%
from grpo_kit import notebook

notebook.show_machine(preset)

# %% [markdown]
# **You should see** `ok` in every row. A machine without a GPU is fine here: the tiny policy trains on a CPU. The last
# row says what room the preset needs on the disk, less what is there. In a terminal, `grpo-kit env` shows the same table.

# %% [markdown]
# ## Secrets
# This notebook needs no secrets. To submit to Kaggle from a notebook, store a `KAGGLE_API_TOKEN` (or
# `KAGGLE_USERNAME` and `KAGGLE_KEY`) behind the key symbol in Colab, or under *Add-ons, Secrets* in Kaggle. An
# `HF_TOKEN` stored there is used for downloads. The kit passes a secret only to the library that needs it; it never
# prints or saves one.

# %%
notebook.show_secrets()

# %% [markdown]
# **You should see** two lines, which say where each secret was found, or `none`.

# %% [markdown]
# ## This run
# One folder holds everything that a run produces, so you lose no finished work when a session ends. It is on Google
# Drive in Colab, in `/kaggle/working` on Kaggle, and in `runs` elsewhere.

# %%
config, run = notebook.open_from_form(preset, run_name, overrides, use_drive)

# %% [markdown]
# **You should see** the folder and the five stages of the run. In a new run no stage is done, and no file has been
# written yet.

# %% [markdown]
# ## Will it fit?
# The plan computes, before any download, how much memory the run needs on this machine: weights, LoRA and its
# optimiser, the sequences sampled at once, activations. `host` is the machine's main memory. It measures this machine
# too, to say how long the run takes. **Takes** some ten seconds.

# %%
# %matplotlib inline
notebook.show_plan(config)

# %% [markdown]
# **You should see** one bar for each place that holds data, divided into parts, with the available memory written
# above it. A red line marks the limit of a place if the bar comes near it; `tiny` stays far below. The sentence says
# whether the run fits and, if not, which setting to change. The table below it is the time: the GPU's share, the
# host's share (Python and PyTorch, which a GPU waits for), both together, and the hours of the whole run.

# %% [markdown]
# The next plan is for the 30B model on one T4, whatever machine you use now. The planner puts as many routed experts
# on the GPU as fit; the others wait in host memory and are copied to the GPU when a token needs them. **Takes** about
# five seconds.

# %%
from grpo_kit import load_config

notebook.show_plan(load_config(["t4"]), "t4")

# %% [markdown]
# **You should see** a GPU that is filled up to the red line, as intended. These figures are computed; they have not
# been measured on a T4 yet.

# %% [markdown]
# ## All settings
# A run's settings come from the preset, then from the stages it has finished, then from your overrides. The names are
# those of TRL, PEFT and transformers.

# %%
notebook.show_settings(config)

# %% [markdown]
# **You should see** one line. Click on it to unfold all sections, from `policy` to `run`. You can override each
# setting with `section.key=value`.

# %% [markdown]
# ## Load the policy
# In reinforcement learning the model that acts is called the policy. This notebook loads it only to look at it.
# **Takes** a second for `tiny`. A large model is downloaded file by file and quantised on the way; one bar counts both
# and says the time left. If the session ends meanwhile, run this cell again: finished parts are kept. The result, the
# NF4 checkpoint, stays on this machine's disk, and later loads read it without a network.
#
# Computed, not measured: at 100 MB/s the 4B's 7.4 GiB come in 1.3 minutes and the 30B's 59 GiB in 11; quantising adds
# to that. Drive keeps the checkpoint for the next session of Colab where it fits, the 4B's 3.1 GiB as a rule, the
# 30B's 16 GiB not in the 15 GB that are free of charge. On Kaggle it ends with the session, unless `grpo-kit push
# 01_setup` made it: then add that kernel's output to the later notebooks (*Add Input, Your Work*).

# %%
from grpo_kit import load_policy

model, tokenizer = load_policy(config.policy)
parameters = sum(p.numel() for p in model.parameters())
print(f"{type(model).__name__}: {parameters:,} parameters in {model.dtype} on {model.device}")

# %% [markdown]
# **You should see** the bar, if there is something to download, and one sentence that says whether the checkpoint
# outlives this session. For `tiny` you see a `NemotronHForCausalLM` with half a million parameters. It has the architecture of
# Nemotron-3-Nano-30B-A3B (Mamba, attention, routed experts) in a small size.

# %% [markdown]
# ## What the policy reads
# The chat template wraps each problem before the policy reads it, and the template decides where the reply begins.

# %%
problem = "What is 47 + 38?"
print(notebook.render_prompt(tokenizer, config, problem))

# %% [markdown]
# **You should see** `<think>` in the last line: the *template* has already opened the thinking. The reply therefore
# starts in the middle of a thought and contains only the closing `</think>`. A reward that looks for `<think>` in the
# reply would always pay 0.

# %% [markdown]
# ## One reply before training
# The thinking and the answer are printed separately, because only the text after `</think>` is the answer. **Takes**
# a moment for `tiny`; for the 30B model a minute or more (an estimate, not a measurement).

# %%
reply = notebook.sample_reply(model, tokenizer, config, problem)
notebook.show_reply(reply)

# %% [markdown]
# **You should see** a thought and a number in a box. The number may well be wrong: 47 + 38 is 85. The tiny policy was
# trained to work sums out digit by digit about two times in five, and to guess (`looks like ...`) otherwise.

# %% [markdown]
# ## A group of replies
# GRPO samples several replies to the same problem, rewards each one, and makes those replies more likely that got
# more reward than their group's average. This cell samples one such group, with the same sampling settings as the
# training. **Takes** as long as the reply above.

# %%
group = notebook.sample_group(model, tokenizer, config, problem)
notebook.show_group(group)

# %% [markdown]
# **You should see** some replies that work the sum out and some that guess. The policy has both habits already;
# training decides which one it keeps.

# %% [markdown]
# ## Your turn
# - Ask another question: change `problem` and run the cells below it again.
# - Set `overrides` to `grpo.temperature=0.1` and run all cells. How does the group change, and what could GRPO learn
#   from it?
# - Plan for another machine with `notebook.show_plan(config, "24gb")`, and for longer replies with the override
#   `grpo.max_completion_length=2048`. At which length does the bar pass the line?
#
# On a GPU, end this session before you open the next notebook: until then the model fills the GPU.
#
# **Next:** [2 Data](02_data.ipynb)
# ([in Colab](https://colab.research.google.com/github/REPOSITORY/blob/main/notebooks/02_data.ipynb)).
