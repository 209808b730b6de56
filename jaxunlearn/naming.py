"""What to say about a name that nobody knows: the nearest one, and all there are."""

import difflib
from collections.abc import Iterable


def closest(word: str, choices: Iterable[str], cutoff: float = 0.0) -> str | None:
    """The most similar of `choices`; None if none is as similar as `cutoff`, in [0, 1].

    Example:
      >>> closest("sdd", ["retrain", "ssd"])
      'ssd'
    """
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=cutoff)
    return near[0] if near else None


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """The end of an error message: the nearest of `choices`, if any is near, and all of them.

    Example:
      >>> did_you_mean("minst", ["digits", "mnist"])
      "Did you mean 'mnist'? Known: digits, mnist."
    """
    names = list(choices)
    near = closest(word, names, cutoff=0.6)
    return (f"Did you mean '{near}'? " if near else "") + f"Known: {', '.join(names)}."


def nearest(word: str, choices: Iterable[str]) -> str:
    """A message about a word that is not among `choices`; always names the nearest.

    Example:
      >>> nearest("sdd", ["ssd", "retrain"])
      "'sdd' is unknown. Did you mean 'ssd'? There are: ssd, retrain."
    """
    names = list(choices)
    near = closest(word, names)
    return f"{word!r} is unknown. Did you mean {near!r}? There are: {', '.join(names)}."
