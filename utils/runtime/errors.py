"""The error for invalid user input, which the scripts print as one line without a traceback."""

import torch

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)  # on a GPU, on a CPU


class InputError(ValueError):
    """An input is wrong; the message says what was wrong, what was expected and what to do.

    Args:
        message: the message.
        options: names of options that help, such as mask_values; the command line adds the flags that it has for them.
    """

    def __init__(self, message: str, *options: str) -> None:
        super().__init__(message)
        self.options = options


def bulleted(title: str, problems: list[str], limit: int | None = None) -> str:
    """A message that lists several problems, one per line; of more than `limit` the first ones, and how many more."""
    more = len(problems[limit:]) if limit is not None else 0
    return f"{title}:" + "".join(f"\n  {problem}" for problem in problems[:limit]) + f"\n  and {more} more" * bool(more)
