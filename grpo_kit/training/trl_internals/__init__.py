"""Every private name of TRL and transformers that the kit uses, behind names of its own.

They were read in the versions in `versions.VERSIONS`, which requirements.txt pins; `tests/training/trl_internals/`
fails when one of them moves.
"""
