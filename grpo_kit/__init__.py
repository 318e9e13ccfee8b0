"""grpo-kit: reinforcement learning (GRPO) for Nemotron-3-Nano-30B-A3B on one GPU, and for its miniature on a laptop.

The stages are modules, each usable alone: `data`, `policy`, `train`, `evaluate`, `submission`; rewards are files to
copy (`grpo_kit/rewards/`). Importing the package loads none of them, and no torch.
"""

__version__ = "0.1.0"
