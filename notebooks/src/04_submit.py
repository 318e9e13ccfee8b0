# %% [markdown]
# # 4 · Submit: how much better, and is the zip right
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/REPOSITORY/blob/main/notebooks/04_submit.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/REPOSITORY/blob/main/notebooks/04_submit.ipynb)
#
# ![The reward by step, and the accuracy before and after training with intervals](../notes/images/04_submit.png)
#
# | Goal | Hardware | Minutes |
# |---|---|---|
# | Measure the trained policy, compare it with the untrained one, pack `submission.zip`, check it, and submit it | any for `tiny`; the 30B model needs a T4 or more | 1 for `tiny` |
#
# [0 Quickstart](00_quickstart.ipynb) → [1 Setup](01_setup.ipynb) → [2 Data](02_data.ipynb) → [3 Training](03_training.ipynb) →
# **4 Submit** → [5 Tuning](05_tuning.ipynb) → [6 Environments](06_environments.ipynb) →
# [8 Stages](08_stages.ipynb).
# This notebook needs the adapter of notebook 3.

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
# can stay empty (an example: `evaluation.batch_size=4`; separate several by spaces).
# - `submit` sends the zip to the challenge at the end. If it is off, the notebook prints what it would send, and
#   sends nothing.
# - `publish` puts the adapter on the Hugging Face Hub, as `publish_to`, which is `USER/REPO`. If it is off, the notebook
#   only builds the folder. Sending needs the secret `HF_TOKEN`, with the right to write.
#
# `t4-4b` is for Nemotron-3-Nano-4B; the other presets except `tiny` are for the 30B model. Loading in 4 bit is tested
# with small models on a CPU only: **nothing has been run on a T4 so far.**

# %% cellView="form"
# @title Settings
preset = "auto"  # @param ["auto", "tiny", "t4-4b", "t4", "t4x2", "24gb", "80gb"]
run_name = ""  # @param {type:"string"}
overrides = ""  # @param {type:"string"}
use_drive = True  # @param {type:"boolean"}
submit = False  # @param {type:"boolean"}
publish = False  # @param {type:"boolean"}
publish_to = "you/nemotron-lora"  # @param {type:"string"}

# %% [markdown]
# ## Open the run
# The run folder records which stages are finished and with which settings, so a fresh machine can continue the run.
# The folder comes from Google Drive on Colab, from the output of an earlier notebook among the inputs on Kaggle, and
# from `runs` elsewhere. If the training is missing, the cell shows a link to [3 Training](03_training.ipynb).

# %%
from grpo_kit import notebook

config, run = notebook.open_from_form(preset, run_name, overrides, use_drive)
for stage in ("before", "train"):
    notebook.require_stage(run, stage, "03_training")

# %% [markdown]
# **You should see** `data`, `before` and `train` done. This notebook does `after` and `package`.

# %% [markdown]
# ## Measure after
# The trained policy answers the same held-out problems as the untrained one. None of them was used in training.
# **Takes** a few seconds for `tiny`; a line counts the answers.

# %%
from grpo_kit import measure

after = measure(config, run, "after", progress=notebook.show_progress("answers"))
print(f"{after['mean_tokens']:.0f} tokens per reply, {after['truncated']:.1%} cut off")

# %% [markdown]
# **You should see** the count reach all problems, and almost no reply cut off. If many replies are cut off, raise
# `evaluation.max_completion_length` before you trust the accuracy.

# %% [markdown]
# ## How much better, and how sure
# An accuracy from a few hundred problems is an estimate, so each one is printed with its confidence interval. The
# difference has an interval too; it compares the two policies problem by problem.

# %%
from grpo_kit import compare

notebook.show_comparison(compare(run))

# %% [markdown]
# **You should see** four sentences. Read the last one first: it says whether the difference is real. It counts the
# problems that were gained and lost, and how often chance alone would produce such an uneven split (McNemar's exact
# test). With one reply for each problem, the interval of the change leaves out zero exactly where that is below 5 %.

# %% [markdown]
# The next cell shows the same as a picture, and saves it with the run.

# %%
# %matplotlib inline
notebook.show_curves(run)

# %% [markdown]
# **You should see** the reward by step on the left, and beside it the accuracy before and after with its intervals.
# If the two intervals do not overlap, the difference is clear.

# %% [markdown]
# ## One problem, before and after
# Percentages do not show what changed. This cell looks for a problem that the policy guessed wrong before training
# and worked out after it.

# %%
notebook.show_example(run)

# %% [markdown]
# **You should see** for `tiny` one problem twice: first `looks like` and a wrong number, then the digits worked out
# one by one, and the right number. (With other problems the cell may print nothing, because it looks for the tiny
# policy's guesses.)

# %% [markdown]
# ## Pack
# A submission is the adapter alone: two files at the root of a zip. The same adapter always gives the same bytes.

# %%
from grpo_kit import package

zip_path = package(config, run)
print(f"{zip_path.resolve()}, {zip_path.stat().st_size / 2**20:.2f} MiB")

# %% [markdown]
# **You should see** where the zip is. The next run that you pack replaces it. On Kaggle the zip is part of the
# notebook's output. On Colab without Google Drive, download it from the Files panel before the session ends.

# %% [markdown]
# ## Check the zip
# The check reads the zip as the challenge's scorer reads it. It then loads the adapter onto a fresh base model and
# compares the result with the policy that was trained. Without this check you would notice an empty or a wrong
# adapter only by its score. **Takes** a second for `tiny`; the 30B model is loaded once more. In a terminal,
# `grpo-kit check` does the same.

# %%
from grpo_kit import check

findings = check(zip_path, config.policy, run.result.probe)
notebook.show_findings(zip_path, findings)

# %% [markdown]
# **You should see** no `fatal` finding. The `ok` findings say that every tensor is present and has the base model's
# shape, that no LoRA pair is zero, that the outputs differ from the base model's, and that they equal the trained
# policy's. For `tiny` one `warning` says that the challenge scores another model.

# %% [markdown]
# ## Submit to Kaggle
# If `submit` is on in the settings, this cell sends the zip and waits for the score, up to two hours. It never sends
# the same zip twice. If `submit` is off, the cell only prints what it would send. (In a Kaggle notebook without
# internet, submit the zip at the top of the output by hand: *Submit to Competition*.)

# %%
notebook.submit_zip(zip_path, f"grpo-kit, run {run.name}", send=submit)

# %% [markdown]
# **You should see** the calls to Kaggle, and `dry run`; for `tiny` that its zip is not submitted: it fits only the tiny
# policy, the challenge expects one for Nemotron-3-Nano-30B-A3B, and you have only five submissions per day.

# %% [markdown]
# ## Publish
# The adapter goes to the Hub with a card that is made from the run: data and licences, method, settings, before and
# after with intervals, sample completions, how to load it. Nothing else is sent: no optimiser, no paths, no secrets. A
# new repository is private. **Takes** a few seconds.

# %%
notebook.publish(config, run, publish_to, private=True, send=publish)

# %% [markdown]
# **You should see** the files of the folder, the card, and which of your own words become public, such as a system
# prompt. The kit refuses to send an adapter of the tiny policy, whose base the Hub does not have. For llama.cpp and Ollama, `!grpo-kit export --to gguf-lora --run NAME` in a cell writes the adapter as a
# GGUF.

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
# numbers; ask it without thinking, and it must answer at once.

# %% [markdown]
# ## Your turn
# - Measure with several samples per problem: set `evaluation.num_generations=4` in a new run, from notebook 3 on. How
#   do the intervals change?
# - Measure without random sampling: set `evaluation.temperature=0` in a new run. Was the untrained policy better that
#   way?
# - Unzip `submission.zip` and read `adapter_config.json`: which modules were trained, and at which rank?
#
# This was the whole workflow. **Next:** [5 Tuning](05_tuning.ipynb)
# ([in Colab](https://colab.research.google.com/github/REPOSITORY/blob/main/notebooks/05_tuning.ipynb)), or
# [back to 1 Setup](01_setup.ipynb) with problems of your own.
