# %% [markdown]
# # 8 · Stages: traces before GRPO, preferences after it
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/REPOSITORY/blob/main/notebooks/08_stages.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/REPOSITORY/blob/main/notebooks/08_stages.ipynb)
#
# ![The loss of the texts, the reward of GRPO, and the rewards of both sides of the pairs](../notes/images/08_stages.png)
#
# | Goal | Hardware | Minutes |
# |---|---|---|
# | Train one adapter three times: on what a solver writes, with GRPO, and on pairs of its own completions; see what each stage changed | any for `tiny`; a larger model needs a T4 or more | 3 for `tiny` |
#
# [0 Quickstart](00_quickstart.ipynb) → [1 Setup](01_setup.ipynb) → [2 Data](02_data.ipynb) → [3 Training](03_training.ipynb) →
# [4 Submit](04_submit.ipynb) → [5 Tuning](05_tuning.ipynb) → [6 Environments](06_environments.ipynb) → **8 Stages**.
# This notebook needs no other one. After a lost session, run it again: it continues from the last checkpoint.

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
# `auto` takes `tiny` on a machine without a GPU: an embedded policy that adds and subtracts, with few steps in each
# stage. Every other preset trains on the puzzles of Kaggle's challenge, which the kit makes and solves. The sections
# `sft`, `grpo` and `dpo` have TRL's names: `overrides` such as `sft.max_steps=20 dpo.beta=0.1` set them, separated by
# spaces.
#
# `t4-4b` is for Nemotron-3-Nano-4B; `t4` and those after it are for the 30B model. Loading in 4 bit is tested with
# small models on a CPU only: **nothing has been run on a T4 so far.**

# %% cellView="form"
# @title Settings
preset = "auto"  # @param ["auto", "tiny", "t4-4b", "t4", "t4x2", "24gb", "80gb"]
run_name = ""  # @param {type:"string"}
overrides = ""  # @param {type:"string"}
use_drive = True  # @param {type:"boolean"}

# %% [markdown]
# ## Open the run
# This run has a folder of its own beside those of the other notebooks, and continues there after a lost session.

# %%
from grpo_kit import notebook

config, run = notebook.open_from_form(preset, run_name, overrides, use_drive, puzzles=True)

# %% [markdown]
# **You should see** which stages are done: none at first.

# %% [markdown]
# ## Problems and traces
# A problem with a known method has more to teach than its answer. Its solver writes a trace: the way to the answer, one
# small step after another, nothing stated before it is worked out. The winners of Kaggle's challenge trained on such
# traces. **Takes** a few seconds.

# %%
from grpo_kit import prepare_data

manifest = prepare_data(config, run)
notebook.show_data(manifest)
notebook.show_traces(run)

# %% [markdown]
# **You should see** three problems, each with its trace as the thought and the answer in a box. For `tiny` a trace adds
# the ones first, then the tens with what was carried. A problem whose solver finds no rule, or two that disagree, gets
# no trace; nothing is guessed.

# %% [markdown]
# ## Measure before
# The untrained policy answers the held-out problems. **Takes** a few seconds for `tiny`.

# %%
from grpo_kit import measure

before = measure(config, run, "before", progress=notebook.show_progress("answers"))
print(f"pass@1 {before['pass@1']:.1%} of {before['n']}")

# %% [markdown]
# **You should see** about 45 % for `tiny`: it works two sums in five out, and guesses the others.

# %% [markdown]
# ## Learn from traces
# TRL's `SFTTrainer` makes each token of a trace more likely. Only what the policy would write is trained, not the
# problem. A text that does not fit is left out and counted, never cut: a trace without its end would teach to stop
# early. **Takes** seconds for `tiny`.

# %%
from IPython.display import display

from grpo_kit import Board, sft

board = Board(run, "sft")
display(board)
last = await board.during(sft, config, run)
notebook.show_weakest(run)

# %% [markdown]
# **You should see** the board with the loss. Below it are the places where the trained policy is least sure of its
# texts: the least likely token of a trace, between two bars. The challenge decodes greedily, so a reply leaves its trace
# at the first token that is not the likeliest, whatever the mean loss is. For `tiny` this is the first token of a
# trace, where it still wants to guess (`looks like`).

# %% [markdown]
# ## Train with GRPO
# The same adapter goes on, with a new optimiser. Traces show one way; now the policy writes its own replies, and those
# that are right become more likely. **Takes** seconds for the few steps of `tiny`.

# %%
from grpo_kit import load_reward, train

after_sft = measure(config, run, "after_sft", progress=notebook.show_progress("answers"))
rewards = [load_reward(name) for name in config.grpo.reward_funcs]
board = Board(run)
display(board)
last = await board.during(train, config, run, rewards)

# %% [markdown]
# **You should see** the reward rise. [Notebook 3](03_training.ipynb) explains the board.

# %% [markdown]
# ## Learn from pairs
# GRPO has judged several replies to each problem. TRL's `DPOTrainer` takes pairs of them, a right reply and a wrong one
# to the same problem, and moves the two apart. Pairs are chosen so that the preferred one is not shorter on average;
# otherwise brevity is what is learned. A reply that calls a tool nobody offered is also a wrong one. **Takes** seconds
# for `tiny`.

# %%
from grpo_kit import prefer

after = measure(config, run, "after", progress=notebook.show_progress("answers"))
board = Board(run, "prefer")
display(board)
last = await board.during(prefer, config, run)
notebook.show_pairs(run)

# %% [markdown]
# **You should see** how many pairs there are and how long their sides, the board with the rewards of both sides, and
# three pairs. If every group was all right or all wrong, one sentence says that there is nothing to learn, and the
# adapter stays as it is.

# %% [markdown]
# ## Stage by stage
# The same held-out problems, measured once more. **Takes** seconds for `tiny`.

# %%
from grpo_kit import compare

# %matplotlib inline
after_prefer = measure(config, run, "after_prefer", progress=notebook.show_progress("answers"))
report = compare(run)
notebook.show_stages(report)
notebook.show_curves(run)
notebook.show_alarms(run)

# %% [markdown]
# **You should see** a row for each stage: its accuracy, and how much it differs from the stage before on the same
# problems. An interval of a change that holds zero shows no change. Then the charts of each stage, and its alarms if there
# are any: such as one for preferred replies that become less likely, the usual failure of DPO. `tiny` gains in every
# stage; it has to be reminded of a method that it knows. A policy that does not know the method gains by traces only:
# GRPO makes likelier what is there already.

# %% [markdown]
# ## Pack and check
# All three stages trained one adapter, so there is one zip. **Takes** a second for `tiny`; the 30B model is loaded once
# more.

# %%
from grpo_kit import check, package

zip_path = package(config, run)
notebook.show_findings(zip_path, check(zip_path, config.policy, run.result.probe))

# %% [markdown]
# **You should see** no `fatal` finding, and that the outputs equal those of the policy after the last stage. For `tiny`
# one `warning` says that the challenge scores another model.

# %% [markdown]
# ## Thinking on, off, and cut
# The same problems with thinking, without, and with each thought closed by force after a few tokens, as the model card's
# client does it. `evaluation.modes` measures all of them besides the main figures. **Takes** ten seconds for `tiny`.

# %%
words = f"{overrides} evaluation.modes=[on,off,cut8]"
config, run = notebook.open_from_form(preset, run.name, words, use_drive, puzzles=True)
before = measure(config, run, "before", progress=notebook.show_progress("answers"))
after_prefer = measure(config, run, "after_prefer", progress=notebook.show_progress("answers"))
notebook.show_modes(compare(run))

# %% [markdown]
# **You should see** each mode before and after, with the tokens of thinking. `tiny` gains where it may think to the end.
# Without a thought, or after eight tokens of it, it can only guess, and training does not help there: nothing in the
# three stages taught answers without thinking. (`data.no_thinking` and `sft.reasoning=recipe` do.)

# %% [markdown]
# ## The experts
# A router sends each token to a few experts. It stays frozen, but what reaches it changes with training.

# %%
notebook.show_experts(run)

# %% [markdown]
# **You should see** for each layer how full its fullest expert is against the mean, before and after, and for how many
# tokens the choice changed. A 4-bit run that keeps experts in slower memory is warned when these become busy.

# %% [markdown]
# ## A judge
# Where no verifier can tell right from wrong, `judge.py` compares answers; by default the untrained policy is the judge.
# How good is it? Here it judges pairs whose winner is known. (Leave this cell out if you have no use for it.)
# **Takes** seconds for `tiny`.

# %%
notebook.show_judge(config, run)

# %% [markdown]
# **You should see** for `tiny` that the order of the two answers decides nearly every verdict, and that it is about as
# often wrong as right: it has never seen a comparison. Training by such a judge is refused.

# %% [markdown]
# ## Your turn
# - GRPO alone: a new `run_name`, and leave the cell *Learn from traces* and the measurement after it out. How far do
#   the same steps get?
# - More of each: `sft.max_steps=20 grpo.max_steps=30`. What is left for the pairs?
# - Texts of your own: `sft.source=texts.jsonl`, with lines of `messages`, or of `prompt` and `completion`.
# - The right completions of another run: `sft.source=run:tiny`.
# - Pairs of your own: `dpo.source=pairs.jsonl`, with `prompt`, `chosen` and `rejected`.
#
# **Back to** [3 Training](03_training.ipynb)
# ([in Colab](https://colab.research.google.com/github/REPOSITORY/blob/main/notebooks/03_training.ipynb)).
