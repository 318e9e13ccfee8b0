"""An adapter folder from anywhere: its config checked, its tensors read one at a time.

PEFT, Unsloth, Tinker, verl and NeMo-RL's DTensor files all write `adapter_config.json` and `adapter_model.safetensors`.
None of them is trusted: pickles are never opened, and nothing is loaded before its shape is known.
"""

from pathlib import Path
from typing import BinaryIO

import torch

from grpo_kit.adapters.adapter_config import CONFIG_FILE, TENSORS_FILE, read_adapter_config
from grpo_kit.adapters.findings import Refused, raise_fatal
from grpo_kit.adapters.safetensors_files import DTYPES, read_header, read_pieces, torch_type


class AdapterFolder:
    """An opened adapter folder whose adapter is a plain LoRA.

    Args:
        folder: holds the two files.
        use: what the adapter is opened for, `pack` or `attach` (see `findings.fatal`).

    Attributes:
        config: the parsed adapter_config.json.
        entries: {key: where the tensor lies in the file}.
        remarks: sentences on what was lost when it was opened; none.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: a file is damaged, or the adapter is not a plain LoRA.
    """

    def __init__(self, folder: Path, use: str = "pack") -> None:
        self.folder, self.path = folder, folder / TENSORS_FILE
        try:
            self.config = read_adapter_config(folder / CONFIG_FILE)
        except Refused as refused:
            raise_fatal([refused.finding], use, folder / CONFIG_FILE)
        raise_fatal(self.config.findings, use, folder / CONFIG_FILE)
        if not self.path.is_file():
            pickled = sorted(p.name for p in folder.glob("adapter_model.*") if p.suffix in (".bin", ".pt", ".pth"))
            raise FileNotFoundError(
                f"{folder} holds no {TENSORS_FILE}"
                + (f" but {pickled[0]}, a pickle, which can run code when it is read" if pickled else "")
                + ". Save the adapter as safetensors."
            )
        try:
            self.entries = read_header(self.path)
        except Refused as refused:
            raise_fatal([refused.finding], use, self.path)
        for key, entry in self.entries.items():
            if entry.dtype not in DTYPES:
                raise ValueError(
                    f"{self.path} holds {key[:120]} as {entry.dtype}; LoRA tensors are {', '.join(DTYPES)}. Save the "
                    "adapter in one of them."
                )
        self.remarks: list[str] = []
        self._file: BinaryIO | None = None

    def dtype_of(self, key: str) -> torch.dtype:
        """The type of a tensor."""
        return torch_type(self.entries[key].dtype)

    def read_tensor(self, key: str) -> torch.Tensor:
        """A tensor, read from the file now. Raises ValueError when the file became shorter meanwhile."""
        entry = self.entries[key]
        if self._file is None:
            self._file = self.path.open("rb")
        kind = torch_type(entry.dtype)
        pieces = [torch.frombuffer(piece, dtype=kind) for piece in read_pieces(self._file, entry)]
        flat = torch.cat(pieces) if pieces else torch.empty(0, dtype=kind)
        return flat.view(entry.shape)
