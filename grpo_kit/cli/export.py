"""`grpo-kit export`: a result as files for llama.cpp and Ollama. `main` registers it."""

from rich.markup import escape

from grpo_kit.cli import options
from grpo_kit.cli.next_steps import show_again
from grpo_kit.display import console
from grpo_kit.runs.session import open_run


def export(
    to: options.Form,
    overrides: options.Overrides = None,
    sources: options.Sources = None,
    name: options.RunName = None,
    adapter: options.ExportedAdapter = None,
    out: options.ExportFolder = None,
    dtype: options.GgufDtype = "float32",
    dry_run: options.PlannedExport = False,
) -> None:
    """Write the adapter as a GGUF for llama.cpp and Ollama, or the base with the adapter merged into it."""
    from grpo_kit.policy.model_source import base_model_name
    from grpo_kit.publishing.llama_cpp import export as exporting

    if name and adapter:
        raise ValueError(
            f"--run {name} names a run and --adapter {adapter} an adapter from elsewhere; one of them is exported. "
            "Leave one of the two out."
        )
    config, run = open_run(sources or (), overrides or (), name, "package")
    names_base = bool(sources) or any(word.startswith("policy.model=") for word in overrides or ())
    base = base_model_name(config.policy) if adapter and names_base else None
    planned = exporting.plan_export(config, run, to, adapter, base, out, dtype)
    for line in planned.describe():
        console.out.print(escape(line))
    if dry_run:
        console.out.print("dry run: nothing was touched")
        show_again("--dry-run")
        return
    with console.show_progress("exporting") as show:
        is_new = exporting.write_export(planned, show)
    if not is_new:
        console.out.print("merged from the same base and adapter before; nothing was written")
    console.out.print(escape(f"next:    read {planned.out / 'README.md'}: the commands, and what does not carry over"))
