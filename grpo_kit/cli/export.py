"""`grpo-kit export`: a result as files for llama.cpp and Ollama. `main` registers it."""

from rich.markup import escape

from grpo_kit.cli import options
from grpo_kit.cli.next_steps import show_again
from grpo_kit.display import console
from grpo_kit.runs.session import open_run


def export(
    to: options.Form,
    name: options.RunName = None,
    adapter: options.ExportedAdapter = None,
    base: options.ExportedBase = None,
    out: options.ExportFolder = None,
    dtype: options.GgufDtype = None,
    dry_run: options.PlannedExport = False,
) -> None:
    """Write the adapter as a GGUF for llama.cpp and Ollama, or the base with the adapter merged into it.

    It takes no settings: how the policy was asked and measured is in the run's record.
    """
    from grpo_kit.publishing.llama_cpp import export as exporting

    if name and adapter:
        raise ValueError(
            f"--run {name} names a run and --adapter {adapter} an adapter from elsewhere; one of them is exported. "
            "Leave one of the two out."
        )
    run = None if adapter else open_run((), (), name, "package")[1]
    planned = exporting.plan_export(run, to, adapter, base, out, dtype)
    for line in planned.describe():
        console.out.print(escape(line))
    if dry_run:
        console.out.print("dry run: nothing was touched")
        show_again("--dry-run")
        return
    with console.show_progress("exporting") as show:
        written = exporting.write_export(planned, show)
    if not written:
        console.out.print("merged from the same base and adapter before, and not changed since; nothing was written")
    elif "model" not in written and to == "merged":
        console.out.print(f"the model is merged and unchanged; written anew: {', '.join(written)}")
    console.out.print(escape(f"next:    read {planned.out / 'README.md'}: the commands, and what does not carry over"))
