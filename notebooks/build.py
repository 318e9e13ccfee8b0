"""Build `notebooks/NN_name.ipynb` from `notebooks/src/NN_name.py` (py:percent), the same bytes from the same source.

    python notebooks/build.py

Edit the sources, never the notebooks: a test fails when the two differ. The word REPOSITORY in a source becomes
`grpo_kit.notebook.REPOSITORY`, owner and name on GitHub: a fork changes that one line and builds again. A notebook as built has no outputs, no
execution counts and no metadata of the machine or the tool that made it; a cell's id is a hash of its text, so an
edit moves no other cell's id.
"""

import hashlib
import re
from collections import Counter
from pathlib import Path

import jupytext
import nbformat

from grpo_kit.notebook import REPOSITORY

FOLDER = Path(__file__).resolve().parent
METADATA = {
    "colab": {"provenance": []},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def build(source: Path) -> str:
    """The notebook's JSON for a py:percent file."""
    cells, seen = [], Counter()
    text = source.read_text(encoding="utf-8").replace("REPOSITORY", REPOSITORY)
    for cell in jupytext.reads(text, fmt="py:percent").cells:
        # The formatter writes `# @param`; Colab's own spelling of a form field has no space.
        body = re.sub(r"# @(?=param|title)", "#@", cell.source)
        digest = hashlib.sha256(f"{cell.cell_type} {body}".encode()).hexdigest()[:12]
        seen[digest] += 1
        new = nbformat.v4.new_code_cell if cell.cell_type == "code" else nbformat.v4.new_markdown_cell
        made = new(body, id=digest if seen[digest] == 1 else f"{digest}-{seen[digest]}")
        if "cellView" in cell.metadata:
            made.metadata["cellView"] = cell.metadata["cellView"]  # Colab then shows the form and folds the code
        cells.append(made)
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=METADATA)
    nbformat.validate(notebook)
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def main() -> None:
    """Write every notebook whose source lies in `src/`."""
    for source in sorted((FOLDER / "src").glob("[0-9][0-9]_*.py")):
        target = FOLDER / f"{source.stem}.ipynb"
        target.write_text(build(source), encoding="utf-8", newline="\n")
        print(target.relative_to(FOLDER.parent))


if __name__ == "__main__":
    main()
