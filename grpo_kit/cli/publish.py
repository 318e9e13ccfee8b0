"""`grpo-kit publish`. `main` registers it; the work is done in `grpo_kit.publishing`."""

from typing import Annotated

import typer
from rich.markup import escape

from grpo_kit.cli.next_steps import show_again
from grpo_kit.cli.options import RunName
from grpo_kit.display import console
from grpo_kit.runs.session import open_run


def publish(
    to: Annotated[str, typer.Option("--to", metavar="USER/REPO", help="the repository on the Hugging Face Hub")],
    name: RunName = None,
    private: Annotated[bool, typer.Option("--private", help="a new repository is seen by its owner only")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="build the folder, print its files and the card; send nothing")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME", help="the base's id on the Hub, where it was a local folder", show_default=False
        ),
    ] = None,
) -> None:
    """Put the trained adapter on the Hugging Face Hub, in one commit, with a card that is made from the run.

    Called again, it sends only what has changed. Files of the repository's own stay.
    """
    from grpo_kit.publishing import publish as publishing

    config, run = open_run((), (), name, "package")
    published = publishing.publish(config, run, to, private, dry_run, base, _say)
    for path in published.files:
        console.out.print(escape(f"{path.stat().st_size:>14,} bytes  {path}"))
    if not dry_run:
        console.out.print(escape(published.address))
        return
    console.out.print("")
    console.out.print(escape((published.folder / "README.md").read_text(encoding="utf-8")), soft_wrap=True)
    if published.own_words:
        console.out.print("# of your own words, these become public:")
        for line in published.describe_own_words():
            console.out.print(escape(line), soft_wrap=True)
    console.out.print("# dry run: nothing was sent")
    if published.is_preview:
        console.out.print("The Hub does not have the run's base, so this folder is a preview and cannot be sent.")
        return
    show_again("--dry-run")


def _say(line: str) -> None:
    console.out.print(f"         {escape(line)}")
