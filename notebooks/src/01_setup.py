# %% [markdown]
# # 1 · Setup: meet the policy
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/REPOSITORY/blob/main/notebooks/01_setup.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/REPOSITORY/blob/main/notebooks/01_setup.ipynb)
#
# | Goal | Hardware | Minutes |
# |---|---|---|
# | See what this machine is and what will fit on it, open a run, load the policy and hear it think once before any training | any; two CPU cores are enough for `tiny`, the 30B wants a T4 or more | 1 for `tiny`, once the packages are installed |
#
# **1 Setup** → [2 Data](02_data.ipynb) → [3 Training](03_training.ipynb) →
# [4 Submit](04_submit.ipynb) → [5 Tuning](05_tuning.ipynb).
# Each notebook stands alone: it finds the run where the last one left it, even on a fresh machine.

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
# - `preset` is where all settings start. `auto` takes what suits the machine: the 30B where a GPU has room for it, by the
#   plan below; else `tiny`, a half-million-parameter Nemotron-H that ships with the package.
# - `run_name` names the run's folder; left empty, it is the preset's name. Give all notebooks the same.
# - `overrides` change single settings, parted by spaces: `grpo.max_steps=50 grpo.learning_rate=5e-4`.
# - `use_drive` keeps the run on your Google Drive (Colab only). Colab asks for your leave; refused or not answered within
#   two minutes, the run lies on the machine's disk.
#
# The presets other than `tiny` describe the 30B model, whose way into 4 bit is tested with small models on a CPU only:
# **nothing has been run on a T4 so far.**

# %% cellView="form"
# @title Settings
preset = "auto"  # @param ["auto", "tiny", "t4", "t4x2", "24gb", "80gb"]
run_name = ""  # @param {type:"string"}
overrides = ""  # @param {type:"string"}
use_drive = True  # @param {type:"boolean"}

# %% [markdown]
# ## This machine
# What a run can do depends on the machine, so look at it first.

# %%
from grpo_kit.display import terminal
from grpo_kit.planning import machine_check

terminal.verdicts(machine_check.check_machine())

# %% [markdown]
# **You should see** `ok` in every row. No GPU is fine here: the tiny policy trains on a CPU.

# %% [markdown]
# ## Secrets
# Nothing here needs one to run through. To submit to Kaggle from a notebook, keep a `KAGGLE_API_TOKEN` (or
# `KAGGLE_USERNAME` and `KAGGLE_KEY`) under Colab's key symbol or in Kaggle's *Add-ons, Secrets*; an `HF_TOKEN` there is
# used for downloads. Secrets are told to the library that needs them, and never shown or written.

# %%
from grpo_kit.kaggle import credentials

print(credentials.summary())

# %% [markdown]
# **You should see** two lines that say where each was found, or `none`.

# %% [markdown]
# ## This run
# Everything a run makes lies in one folder, so that a lost session costs nothing that was finished: on Drive on Colab, in
# `/kaggle/working` on Kaggle, in `runs` here elsewhere.

# %%
from grpo_kit import notebook

config, run = notebook.begin(preset, run_name, overrides, use_drive)

# %% [markdown]
# **You should see** the folder and the run's five stages. In a new run none is done, and nothing has been written yet.

# %% [markdown]
# ## Will it fit?
# The plan counts, before anything is downloaded, what the run needs of this machine: weights, LoRA and its optimiser,
# what is sampled at once, activations. `host` is the machine's own memory. **Takes** a few seconds.

# %%
# %matplotlib inline
from IPython.display import display

from grpo_kit.display import charts
from grpo_kit.planning import machines
from grpo_kit.planning.plan import plan

planned = plan(config, machines.this_device(), search=False)
display(charts.plan(planned))
print(planned.verdict)

# %% [markdown]
# **You should see** a bar for each place that must hold something, its parts end to end, and above it how much there is. A
# red line marks where the place ends, if it ends near; for `tiny` there is far more than it needs. The sentence says whether
# it fits and, if not, what to set.

# %% [markdown]
# The same for the 30B on one T4, whatever machine this is: most of the GPU is routed experts, as many as there is room for.
# The others wait in host memory and are brought over when they are hit. **Takes** about five seconds.

# %%
from grpo_kit.config import load_config

display(charts.plan(plan(load_config(["t4"]), machines.find_device("t4"), search=False)))

# %% [markdown]
# **You should see** a GPU that is full to the red line by intention. These figures are computed; no T4 has confirmed them.

# %% [markdown]
# ## All settings
# A run's settings are the preset's, then what its earlier stages were made with, and your overrides on top. The names are
# those of TRL, PEFT and transformers.

# %%
import html

from IPython.display import HTML

from grpo_kit.config import to_yaml

folded = "<details><summary>all settings of this run</summary><pre>{}</pre></details>"
display(HTML(folded.format(html.escape(to_yaml(config)))))

# %% [markdown]
# **You should see** one line; click on it to unfold the sections, from `policy` to `run`. Any setting can be overridden as
# `section.key=value`.

# %% [markdown]
# ## Load the policy
# In reinforcement learning the model that acts is called the policy. It is loaded once here, only to be looked at.
# **Takes** a second for `tiny`. The 30B is read shard by shard, some 60 GB in all, and quantised on the way, with a line a
# shard; the 4-bit copy stays on the machine's disk and is read from there next time.

# %%
from grpo_kit.policy.load import load_policy

model, tokenizer = load_policy(config.policy)
parameters = sum(p.numel() for p in model.parameters())
print(f"{type(model).__name__}: {parameters:,} parameters in {model.dtype} on {model.device}")

# %% [markdown]
# **You should see** for `tiny` a `NemotronHForCausalLM` with half a million parameters: the architecture of
# Nemotron-3-Nano-30B-A3B (Mamba, attention, routed experts), made small.

# %% [markdown]
# ## What the policy reads
# A problem reaches the policy inside a chat template, and the template decides where the reply begins.

# %%
from grpo_kit.policy.chat import build_messages, render_prompt, split_thinking

problem = "What is 47 + 38?"
conversation = build_messages(problem, config.data.prompt_suffix, config.data.system_prompt)
thinking_on = config.policy.enable_thinking
print(render_prompt(tokenizer, conversation, thinking_on))

# %% [markdown]
# **You should see** a last line that says `<think>`: the *template* has opened the thinking. The reply therefore starts
# in the middle of a thought and holds only the closing `</think>`; a reward that waits for `<think>` in the reply
# would pay 0 for ever.

# %% [markdown]
# ## One reply before training
# Thinking and answer are shown apart, because only what follows `</think>` is the answer. **Takes** a moment for `tiny`; for
# the 30B a minute or more, which nobody has measured.

# %%
from grpo_kit.evaluation import evaluate

seed = config.run.seed
reply = evaluate.sample(model, tokenizer, [conversation], config.evaluation, seed, thinking_on)[0]
thinking, answer = split_thinking(reply.text)
print("thinks :", thinking)
print("answers:", answer)
print("length :", reply.tokens, "tokens,", "ended by itself" if reply.finished else "cut off")

# %% [markdown]
# **You should see** a thought and a boxed number, which may well be wrong: 47 + 38 is 85. The tiny policy was taught
# to work sums out digit by digit about two times in five, and to guess (`looks like ...`) otherwise.

# %% [markdown]
# ## A group of replies
# GRPO draws several replies to the same problem, pays each, and makes those more likely that were paid better than
# their group. This is one such group, drawn as training draws it. **Takes** as long as the reply above.

# %%
import pandas

from grpo_kit.evaluation import screening

same, drawn = [conversation] * config.grpo.num_generations, screening.training_sampling(config)
group = evaluate.sample(model, tokenizer, same, drawn, seed, thinking_on)
pairs = [split_thinking(reply.text) for reply in group]
display(pandas.DataFrame(pairs, columns=["thinks", "answers"]))

# %% [markdown]
# **You should see** some replies that work the sum out and some that guess. Both habits are in the policy already;
# training will decide which one stays.

# %% [markdown]
# ## Your turn
# - Ask something else: change `problem` and run the cells below it again.
# - Set `overrides` to `grpo.temperature=0.1` and run all: what becomes of the group, and what could GRPO learn from it?
# - Plan for another machine: `machines.find_device("24gb")` in place of `machines.this_device()`, and a longer reply by
#   `grpo.max_completion_length=2048`. Where does the bar pass the line?
#
# On a GPU, end this session before the next one: the model fills the card until then.
#
# **Next:** [2 Data](02_data.ipynb) ([in Colab](https://colab.research.google.com/github/REPOSITORY/blob/main/notebooks/02_data.ipynb)).
