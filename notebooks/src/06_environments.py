# %% [markdown]
# # 6 · Environments: several kinds of tasks at once, and none forgotten
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/REPOSITORY/blob/main/notebooks/06_environments.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/REPOSITORY/blob/main/notebooks/06_environments.ipynb)
#
# ![What training changed in each of four environments, with intervals](../notes/images/06_environments.png)
#
# | Goal | Hardware | Minutes |
# |---|---|---|
# | Call three rewards beside math by hand, train on four kinds of tasks at once, and see of each whether it gained or lost | any for `tiny-environments`; a larger model needs a T4 or more | 3 for `tiny-environments` |
#
# [0 Quickstart](00_quickstart.ipynb) → [1 Setup](01_setup.ipynb) → [2 Data](02_data.ipynb) → [3 Training](03_training.ipynb) →
# [4 Submit](04_submit.ipynb) → [5 Tuning](05_tuning.ipynb) → **6 Environments** →
# [8 Stages](08_stages.ipynb).
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
# `auto` takes `tiny-environments` on a machine without a GPU: an embedded policy that can do four things, each about
# half of the time. The other presets train on GSM8K and on tasks that the kit makes. `data.mix` gives each
# kind of task its share: `data.mix={math: 2, structured: 1, instructions: 1, documents: 1}` trains on sums twice as
# much as on each of the others. Separate `overrides` by spaces.
#
# `t4-4b` is for Nemotron-3-Nano-4B; `t4` and those after it are for the 30B model. Loading in 4 bit is tested with
# small models on a CPU only: **nothing has been run on a T4 so far.**

# %% cellView="form"
# @title Settings
preset = "auto"  # @param ["auto", "tiny-environments", "t4-4b", "t4", "t4x2", "24gb", "80gb"]
run_name = ""  # @param {type:"string"}
overrides = ""  # @param {type:"string"}
use_drive = True  # @param {type:"boolean"}

# %% [markdown]
# ## Open the run
# This run has a folder of its own beside those of the other notebooks, and continues there after a lost session.

# %%
from grpo_kit import notebook

config, run = notebook.open_from_form(preset, run_name, overrides, use_drive, environments=True)

# %% [markdown]
# **You should see** which stages are done: none at first.

# %% [markdown]
# ## The tasks
# An environment is a kind of task with a reward of its own. A row names it in the column `environment`. Besides the
# prompt, a row has what its reward needs to know: for math the answer, for a record the schema and the values. Rows of
# your own work the same way, and `environments.NAME.reward_funcs` names the reward.
#
# **Takes** a few seconds.

# %%
from grpo_kit import prepare_data

manifest = prepare_data(config, run, progress=notebook.show_progress("steps"))
notebook.show_data(manifest)
notebook.show_tasks(run)

# %% [markdown]
# **You should see** one task of each environment: for `tiny-environments` a sum (`math`), a question over three
# documents, a text to write under instructions, and a record to write as JSON by a schema (`structured`). Below each
# task is what its reward knows and the policy is not told.

# %% [markdown]
# ## A record by a schema
# `structured_output_reward` reads the reply as JSON, holds it against the schema, and looks for the values that the row
# knows. The first reply below is right, each other one a typical failure. NVIDIA's own rule, `nvidia_rule=True`, looks
# at the schema only. No reply opens `<think>`, because the chat template has done so.

# %%
import json

import pandas
from IPython.display import display

from grpo_kit import load_reward

schema = {"name": {"type": "string"}, "age": {"type": "integer"}}
schema = json.dumps({"type": "object", "properties": schema})
replies = {
    "right": '</think>{"name": "Ada", "age": 36}',
    "another value": '</think>{"name": "Ada", "age": 63}',
    "a number as text": '</think>{"name": "Ada", "age": "36"}',
    "a field is missing": '</think>{"name": "Ada"}',
    "valid, and empty": '</think>{"name": "", "age": 0}',
    "words around it": '</think>Here it is: {"name": "Ada", "age": 36}',
    "cut off while thinking": "The name is Ada",
}
structured = load_reward("structured_output.py")
columns = {"completions": list(replies.values()), "schema_str": [schema] * len(replies)}
columns |= {"expected": ['{"name": "Ada", "age": 36}'] * len(replies), "prompt_opened_think": True}
table = pandas.DataFrame({"reply": columns["completions"]}, index=list(replies))
table["ours"] = structured(**columns)
table["NVIDIA's rule"] = structured(**columns, nvidia_rule=True)
display(table)

# %% [markdown]
# **You should see** 1.0 from our reward for the first reply only. NVIDIA's rule also pays another value and an empty
# record: a policy that is trained by it can learn to write empty records.

# %% [markdown]
# ## Instructions
# `instructions_reward` knows 109 kinds of instructions by their public names. By default a reply must follow all
# instructions of its row (`binary`). With `grading_mode="fraction"` it earns the share that it follows.

# %%
kinds = ["length_constraints:number_words", "change_case:english_capital", "startend:end_checker"]
arguments = [{"num_words": 4, "relation": "at least"}, None, {"end_phrase": "THE END"}]
replies = {
    "follows all three": "</think>RED BOATS SAIL HOME. THE END",
    "not in capitals": "</think>Red boats sail home. THE END",
    "words behind the phrase": "</think>RED BOATS SAIL HOME. THE END OF IT",
    "too short": "</think>THE END",
    "silence": "</think>",
}
instructions = load_reward("instructions.py")
table = pandas.DataFrame({"reply": list(replies.values())}, index=list(replies))
for mode in ("binary", "fraction"):
    table[mode] = instructions(
        completions=list(replies.values()),
        instruction_id_list=[kinds] * len(replies),
        kwargs=[arguments] * len(replies),
        grading_mode=mode,
        prompt_opened_think=True,
    )
display(table)

# %% [markdown]
# **You should see** 1.0 for the first reply only; under `fraction`, 0.67 for a reply that follows two of the three.
# Silence earns nothing under either, although an empty text has no small letter in it.

# %% [markdown]
# ## Documents
# `documents_qa_reward` compares the answer word by word. Where the row names the documents that the answer is in, here
# the second, the reply must cite exactly these.

# %%
pages = ["Ada lives in Rome.", "Bob lives in Oslo.", "Eve lives in Bern."]
replies = {
    "right": "</think>Answer: Oslo [2]",
    "right, no document cited": "</think>Answer: Oslo",
    "right, wrong document": "</think>Answer: Oslo [1]",
    "every document cited": "</think>Answer: Oslo [1] [2] [3]",
    "wrong": "</think>Answer: Rome [1]",
}
documents = load_reward("documents_qa.py")
table = pandas.DataFrame({"reply": list(replies.values())}, index=list(replies))
table["paid"] = documents(
    completions=list(replies.values()),
    answer=["Oslo"] * len(replies),
    documents=[pages] * len(replies),
    supporting=[[2]] * len(replies),
    prompt_opened_think=True,
)
display(table)

# %% [markdown]
# **You should see** 1.0 for the first reply only. A reply that cites every document has not said where the answer is.

# %% [markdown]
# ## Measure before
# The untrained policy answers held-out tasks of each environment. **Takes** about ten seconds for `tiny-environments`.

# %%
from grpo_kit import measure

before = measure(config, run, "before", progress=notebook.show_progress("answers"))
for name, part in before["by"]["environment"].items():
    print(f"{name:<13}{part['pass@1']:.1%} of {part['n']}")

# %% [markdown]
# **You should see** a share of right answers for each environment, about half of them for `tiny-environments`.

# %% [markdown]
# ## Train on all of them
# Each step has the same share of every environment, also where groups without a gradient are replaced. Each completion
# is judged by its environment's reward and compared with its own group only, so no environment is louder than another.
#
# **Takes** about a minute for `tiny-environments`. **You will see** the board of [notebook 3](03_training.ipynb), with a
# line of figures for each environment. If the training was stopped or lost, run the cell again: it continues.

# %%
from grpo_kit import Board, train

rewards = [load_reward(name) for name in config.grpo.reward_funcs]
board = Board(run)
display(board)
last = await board.during(train, config, run, rewards)

# %% [markdown]
# **You should see** two charts more than in notebook 3. *Right* shows the share of right completions of each
# environment; for `tiny-environments` all four lines rise. *With a gradient* shows how many of its groups teach
# something; a line falls when most of its groups are all right.

# %% [markdown]
# ## When an alarm names an environment
# The figures of all environments together can hide that one of them goes wrong, so three alarms look at each.
#
# | Alarm | Look first at | Then |
# |---|---|---|
# | its groups have no gradient | its line in *Right*: near 0, or near 1? | take easier tasks, or harder ones |
# | its completions are cut | one of them: is it unfinished? | raise `grpo.max_completion_length`, or take shorter tasks |
# | its accuracy on validation rows fell while another's rose | both lines in *Right* | give it a larger share in `data.mix`, or lower `grpo.learning_rate` |

# %%
notebook.show_alarms(run)

# %% [markdown]
# **You should see** nothing for `tiny-environments`, or an alarm that names an environment.

# %% [markdown]
# ## What became of each
# The same held-out tasks are answered again, and compared task by task. **Takes** about ten seconds.

# %%
from grpo_kit import compare

# %matplotlib inline
after = measure(config, run, "after", progress=notebook.show_progress("answers"))
notebook.show_environments(compare(run))

# %% [markdown]
# **You should see** a sentence for each environment and one for all; for `tiny-environments` all four gained. *Gained*
# and *lost* mean that chance hardly explains the change: a test counts the tasks that are right only after training, and
# those that were right only before. Four of the first and none of the second are too few for it. NVIDIA reports *stable
# gains without co-reward degradation* for its mixture: these sentences check that claim for yours.

# %% [markdown]
# ## Train on one alone
# The same policy, trained on records only (`structured`), and measured on every environment: the others get the share 0.
# **Takes** about a minute and a half for `tiny-environments`.

# %%
chosen = "structured"
shares = ", ".join(f"{name}: {int(name == chosen)}" for name in run.environments())
words = f"{overrides} data.mix={{{shares}}}"
config, alone = notebook.open_from_form(
    preset, f"{run.name}-alone", words, use_drive, environments=True
)
manifest = prepare_data(config, alone)
before = measure(config, alone, "before", progress=notebook.show_progress("answers"))
last = await Board(alone).during(train, config, alone, rewards)
after = measure(config, alone, "after", progress=notebook.show_progress("answers"))
notebook.show_environments(compare(alone))

# %% [markdown]
# **You should see** `structured gained`, and what it did to the others, which were not trained. Where this was written,
# `tiny-environments` gained in instructions too, stayed at its sums, and lost 13 points in documents. Then a warning says
# which environment fell and what to change. With 100 tasks, a change of less than about 12 points shows as no change.

# %% [markdown]
# ## Tools over several turns
# A task may have a world, which the policy changes by calling tools, and whose end is paid. The world of `tiny-office` is
# a list of prices: `find` looks one up, `note` notes it. The embedded policy of that name does so in part of its
# episodes. In the others it makes a price up, rounds it, forgets to note it, or says at once that it is noted.
#
# These are two steps of training, to see episodes. Without `grpo.max_steps=2` there are 20, which takes a few minutes.
#
# **Takes** about 20 seconds.

# %%
few = "grpo.max_steps=2 grpo.eval_steps=100 data.limit=80 data.val_size=8 data.test_size=8"
config, tools = notebook.open_from_form("tiny-office", f"{run.name}-tools", few, use_drive)
manifest = prepare_data(config, tools)
last = await Board(tools).during(train, config, tools, rewards)
notebook.show_completions(tools, 3)

# %% [markdown]
# **You should see** six episodes. A line `calls` has a call and, behind the arrow, its result, which the world writes and
# the policy reads. 1.0 is paid only where the price that was found is the one that is noted.

# %% [markdown]
# ## Your turn
# - Add a reply of your own to each table. Is one paid that should not be?
# - Give records half of each step: set `overrides` to `data.mix={structured: 3, math: 1, instructions: 1, documents: 1}`
#   and `run_name` to a new name, and run all cells. Do the records gain more? What do the others lose?
# - Train on documents alone: `chosen = "documents"` above, with another `run_name`.
# - Make an environment of your own. Beside this notebook put `mine.jsonl` with a hundred lines such as
#   `{"environment": "rhyme", "prompt": "Which word rhymes with cat?", "word": "cat"}`, each with another word, and
#   `mine.py` with its reward, which gets each column of your file as a list:
#
#   ```python
#   def rhyme_reward(completions, word, **columns):
#       said = [completion[0]["content"].split("</think>")[-1] for completion in completions]
#       return [float(w not in s and w[-2:] in s) for s, w in zip(said, word)]
#   ```
#
#   Then set `overrides` to `data.source=tiny-sums,mine.jsonl environments.rhyme.reward_funcs=[mine.py] data.val_size=20
#   data.test_size=40`, `chosen` to `"rhyme"`, and a new `run_name`. This reward pays every text with the word's last two
#   letters. The embedded policy knows no rhymes, but names: asked for one to `gen`, it learned to say *Sven*. What does
#   it say to your words?
#
# **Back to** [3 Training](03_training.ipynb)
# ([in Colab](https://colab.research.google.com/github/REPOSITORY/blob/main/notebooks/03_training.ipynb)).
