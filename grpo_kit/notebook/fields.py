"""What the fields of a notebook's form must hold: outside Colab they are code, and may hold anything."""

from typing import Any

from grpo_kit.config.arguments import require_type


def require_text(field: str, value: Any, example: str = "") -> None:
    """Raise TypeError unless the value of a field is a text; `example` is one that would be right."""
    require_type(f"The field {field}", value, str, "a text", f'Write {field} = "{example}".')


def require_switch(field: str, value: Any) -> None:
    """Raise TypeError unless the value of a field is True or False; the text "False" would count as true."""
    require_type(f"The field {field}", value, bool, "True or False", f"Write {field} = False.")


def require_number(field: str, value: Any, example: int) -> None:
    """Raise TypeError unless the value of a field is a whole number; `example` is one that would be right."""
    require_type(f"The field {field}", value, int, "a whole number", f"Write {field} = {example}.")
