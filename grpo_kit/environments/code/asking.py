"""The words in which a program is asked for, so that the reward finds it: in the last fence of the reply."""

STDIN = (
    "Write a program in Python 3 that reads standard input and prints the answer to standard output, and nothing else. "
    "End your reply with the whole program in one block:\n```python\n# your program\n```"
)
FUNCTION = (
    "Write {what} in Python 3. It returns the answer and prints nothing. End your reply with the whole code in one "
    "block:\n"
    "```python\n{starter}\n```"
)


def ask_for_program(statement: str) -> list[dict[str, str]]:
    """The messages that ask for a program which reads standard input."""
    return [{"role": "user", "content": f"{statement.strip()}\n\n{STDIN}"}]


def ask_for_function(statement: str, name: str, starter: str = "") -> list[dict[str, str]]:
    """The messages that ask for a function, or a method of the class that `starter` begins.

    >>> print(ask_for_function("Add two numbers.", "add")[0]["content"])  # doctest: +ELLIPSIS
    Add two numbers.
    <BLANKLINE>
    Write the function `add` in Python 3. It returns the answer and prints nothing. ...
    ```python
    # your code
    ```
    """
    begun = starter.strip("\n")
    what = f"the method `{name}` of the class below" if "class Solution" in begun else f"the function `{name}`"
    asked = FUNCTION.format(what=what, starter=begun or "# your code")
    return [{"role": "user", "content": f"{statement.strip()}\n\n{asked}"}]
