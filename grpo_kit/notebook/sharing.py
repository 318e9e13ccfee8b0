"""The switches of notebook 4 that send something: the zip to Kaggle, the adapter to the Hugging Face Hub."""

from pathlib import Path

from grpo_kit.config import RunConfig
from grpo_kit.display.notebook_words import reword
from grpo_kit.notebook.fields import require_switch, require_text
from grpo_kit.runs.run import Run


def submit_zip(zip_path: Path, message: str, send: bool) -> None:
    """Submit the zip to the challenge and print its score; without `send`, print what would be sent."""
    from grpo_kit.kaggle.submit import submit

    require_switch("submit", send)
    try:
        score = submit(zip_path, message, dry_run=not send)
    except ValueError as error:
        if send:
            raise
        print(f"{reword(str(error))}\nNothing was sent.")
        return
    if score:
        print(f"{score} on the public leaderboard")


def publish(config: RunConfig, run: Run, to: str, private: bool, send: bool, base: str = "") -> None:
    """Put the adapter on the Hugging Face Hub as `to`, USER/REPO; without `send`, show its files and its card.

    `base` is the id on the Hub of a base that lies in a local folder.
    """
    from IPython.display import Image, Markdown, display

    from grpo_kit.publishing.card import CURVES, PICTURE
    from grpo_kit.publishing.publish import publish as publish_run

    require_switch("publish", send)
    require_text("publish_to", to, "you/nemotron-lora")
    published = publish_run(config, run, to, private, dry_run=not send, base=base.strip() or None)
    for path in published.files:
        print(f"{path.stat().st_size:>14,} bytes  {path.name}")
    if send:
        display(Markdown(f"[{published.address}]({published.address})"))
        return
    card = (published.folder / "README.md").read_text(encoding="utf-8")
    card = card.split("\n---\n", 1)[1]  # without its metadata, which the Hub shows as fields
    above, _, below = card.partition(PICTURE)
    display(Markdown(above))
    display(Image((published.folder / CURVES).read_bytes()))  # a notebook has no file of this name beside it
    display(Markdown(below))
    if published.own_words:
        print("Of your own words, these become public:", *published.describe_own_words(), sep="\n")
    print("Nothing was sent.")
