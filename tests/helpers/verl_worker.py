"""A worker of verl with reward.py: it loads the file by its path and scores rows.

The module imports little, because each process imports it.
"""

import importlib.util

from pyarrow import parquet


def scores(rewards, table, completions, pipe):
    """Send through `pipe` the reward of each completion; `completions` has one for each row of `table`."""
    spec = importlib.util.spec_from_file_location("custom_module", rewards)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = parquet.read_table(table).to_pylist()
    pipe.send(
        [
            module.compute_score(
                data_source=row["data_source"], solution_str=text, ground_truth=row["reward_model"]["ground_truth"],
                extra_info=row["extra_info"],
            )
            for row, text in zip(rows, completions, strict=True)
        ]
    )  # fmt: skip
