"""Tutorials: notebooks that are run with asserted replacements of their text, and whose kept outputs are what a run gives.

python -m tests.tutorials tutorials/method.py    # runs the script, and keeps its outputs in tutorials/method.ipynb

The picture of each goes into docs/gallery. With UNLOCK_LENS_MODELS set the notebooks run on real models, and are kept in
runs/real.
"""

from __future__ import annotations

import base64
import io
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parent.parent
TUTORIALS, GALLERY = ROOT / "tutorials", ROOT / "docs" / "gallery"
WIDTH = 640
"""Pixels of a picture in the gallery."""
VARIES = "varies"
"""The tag of cells whose outputs are other ones each time."""
YOURS = "yours"
"""The tag of the one cell that a reader changes."""
MODELS = "UNLOCK_LENS_MODELS"
"""The environment variable that names the folder of two real models."""


def _other_host(*names: str) -> dict[str, str]:
    return {f'zoo.load("{name}")': f'zoo.load("{name}", "nnsight")' for name in names}


IN_NNSIGHT: Mapping[str, Mapping[str, str]] = {
    "quickstart": _other_host("large-base", "small-base"),
    "method": _other_host("large-base", "small-base"),
    "evidence": _other_host("large-varied", "small-varied", "large-duo", "small-duo"),
}
"""What makes a notebook that was written in TransformerLens one in nnsight."""
_SECONDS = re.compile(r"\bseconds?\b")
_NOISE = re.compile(r"(?<![\w:/.])/(?:home|mnt|opt|root|srv|tmp|usr|var|work)/|\b\d+%\||it/s\]|Warning:")
_LONGEST_CELL = 600


class TextNotFoundError(AssertionError):
    """A text that is to be replaced is not in the notebook any more."""


def replaced(notebook: Any, replacements: Mapping[str, str]) -> Any:
    """The notebook with texts of its code replaced.

    Raises:
        TextNotFoundError: a text that no code cell holds.
    """
    made: Any = nbformat.from_dict(notebook)
    code = [cell for cell in made.cells if cell.cell_type == "code"]
    for old, new in replacements.items():
        holding = [cell for cell in code if old in cell.source]
        if not holding:
            raise TextNotFoundError(f"no code cell holds {old!r}, which was to become {new!r}; has the notebook changed?")
        for cell in holding:
            cell.source = cell.source.replace(old, new)
    return made


def executed(notebook: Any, folder: Path, replacements: Mapping[str, str] | None = None, models: str = "") -> Any:
    """The notebook with the outputs of a run in `folder`, in a new kernel of this environment; on real `models` if given.

    Raises:
        TextNotFoundError: a text that is to be replaced, and that no code cell holds.
        CellExecutionError: of nbclient; a cell failed.
    """
    made = replaced(notebook, replacements or {})
    for cell in made.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        made,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],
        timeout=_LONGEST_CELL,
        record_timing=False,
        coalesce_streams=True,  # however many pieces a print arrives in
        resources={"metadata": {"path": str(folder)}},
    )
    # Progress bars are for those who wait; that they have no widgets is no matter.
    settings = {"PYTHONWARNINGS": "ignore:IProgress not found", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    return client.execute(env={**os.environ, **settings, MODELS: models})


def script_of(path: Path) -> Any:
    """The percent script beside a notebook, read as a notebook."""
    return jupytext.read(path.with_suffix(".py"), fmt="py:percent")


def notebook_of(path: Path) -> Any:
    """The notebook as it is kept."""
    return nbformat.read(path.with_suffix(".ipynb"), as_version=4)


def sources(notebook: Any) -> list[tuple[str, str, tuple[str, ...]]]:
    """Kind, text and tags of each cell: what a script and its notebook share."""
    return [(cell.cell_type, cell.source, tuple(cell.metadata.get("tags", ()))) for cell in notebook.cells]


def shown(notebook: Any) -> list[list[str]]:
    """The lines that each code cell shows, without those that say seconds; none of cells that vary."""
    found: list[list[str]] = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            lines = [] if VARIES in cell.metadata.get("tags", ()) else _text(cell).splitlines()
            found.append([line.rstrip() for line in lines if not _SECONDS.search(line)])
    return found


def noise(notebook: Any) -> list[str]:
    """What a kept output should not show: paths of a machine, progress bars, warnings, anything on stderr."""
    found: list[str] = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.get("name") == "stderr" or output.output_type == "error":
                found.append(str(output.get("text", output.get("evalue"))))
        found += [line for line in _text(cell).splitlines() if _NOISE.search(line)]
    return found


def pictures(notebook: Any) -> int:
    """How many kept outputs are pictures that any page shows."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def _text(cell: Any) -> str:
    parts: list[str] = []
    for output in cell.get("outputs", ()):
        parts.append(output.text if output.output_type == "stream" else output.get("data", {}).get("text/plain", ""))
    return "\n".join(parts)


def picture_of(notebook: Any) -> bytes:
    """The one picture of a notebook, as small as a gallery needs it."""
    (data,) = [
        output.data["image/png"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    drawn = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    drawn = drawn.resize((WIDTH, round(WIDTH * drawn.height / drawn.width)), Image.Resampling.LANCZOS)
    made = io.BytesIO()
    drawn.quantize(64, dither=Image.Dither.NONE).save(made, "png", optimize=True)
    return made.getvalue()


def _keep(path: Path) -> None:
    """Run a script and keep its outputs in the notebook beside it; each cell is named by its place, so that runs agree."""
    models = os.environ.get(MODELS, "")
    with tempfile.TemporaryDirectory() as folder:
        made = executed(script_of(path), Path(folder), models=models)
    for i, cell in enumerate(made.cells):
        cell.id = f"cell-{i}"
        cell.metadata.pop("execution", None)
    made.metadata.pop("language_info", None)
    if models:
        kept = ROOT / "runs" / "real" / f"{path.stem}.ipynb"
        kept.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(made, kept)
        return
    nbformat.write(made, path.with_suffix(".ipynb"))
    (GALLERY / f"{path.stem}.png").write_bytes(picture_of(made))


if __name__ == "__main__":
    for given in sys.argv[1:]:
        _keep(Path(given))
