"""Who was learnt, by id: so that forgetting twice is once, and forgetting a stranger an error.

A sum does not know its terms. `Ledger` keeps beside it, for every id, a hash of what was learnt and
whether it is still there, and calls `learn` and `forget` of any learner with weight 1 for the rows
that are due and 0 for the others, so that shapes stay as they are. It is the one object of this
family that changes in place, on the host; the states stay values. A ledger remembers ids and hashes
of what was forgotten: whoever must not, keeps a new one for the state (`only_present`).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxunlearn.data.duplicates import row_hashes


class Ledger:
    """id -> (hash of the row, whether it is learnt now).

    | learn                                  | forget                                            |
    |----------------------------------------|---------------------------------------------------|
    | a new id: learnt                       | a learnt id with the same content: forgotten      |
    | a learnt id, same content: nothing     | a forgotten id: nothing                           |
    | a learnt id, other content: ValueError | an unknown id, or other content: ValueError       |
    | a forgotten id: learnt again           | an id twice in one call: ValueError (learn too)   |

    If the learner raises, the ledger stays as it was.

    Example:
      >>> ledger = Ledger()
      >>> count = lambda state, x, y, weight: state + weight.sum()
      >>> x, y = np.ones((2, 3)), np.zeros(2, int)
      >>> state = ledger.learn(count, 0.0, x, y, ids=[7, 8])
      >>> state = ledger.learn(count, state, x, y, ids=[8, 9])
      >>> float(state), len(ledger)
      (3.0, 3)
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[bytes, bool]] = {}

    def __len__(self) -> int:
        return sum(there for _, there in self._entries.values())

    def __contains__(self, one: int) -> bool:
        return self._entries.get(int(one), (b"", False))[1]

    def learn(self, learn: Callable[..., Any], state: Any, x: Any, y: Any, *, ids: Any) -> Any:
        """learn(state, x, y, weight=1 for the rows that are not there yet)."""
        return self._pass(learn, state, x, y, ids, "learn")

    def forget(self, forget: Callable[..., Any], state: Any, x: Any, y: Any, *, ids: Any) -> Any:
        """forget(state, x, y, weight=1 for the rows that are still there)."""
        return self._pass(forget, state, x, y, ids, "forget")

    def only_present(self) -> "Ledger":
        """A ledger without a trace of what was forgotten; forgetting it again is then an error."""
        made = Ledger()
        made._entries = {one: entry for one, entry in self._entries.items() if entry[1]}
        return made

    def _pass(
        self, change: Callable[..., Any], state: Any, x: Any, y: Any, ids: Any, verb: str
    ) -> Any:
        keys = [int(one) for one in np.asarray(ids)]
        contents = row_hashes(np.asarray(x), np.asarray(y))
        if len(keys) != len(contents) or len(set(keys)) != len(keys):
            raise ValueError(
                f"ledger.{verb}: expected one distinct id for each of {len(contents)} rows, "
                f"got {len(keys)} ids, {len(set(keys))} of them distinct."
            )
        due = np.zeros(len(keys), np.float32)
        for row, (one, content) in enumerate(zip(keys, contents, strict=True)):
            known, there = self._entries.get(one, (b"", False))
            if verb == "forget" and not known:
                raise ValueError(f"ledger.forget: id {one} (row {row}) was never learnt.")
            if known and known != content and (there or verb == "forget"):
                raise ValueError(
                    f"ledger.{verb}: id {one} (row {row}) was learnt with another content. Use the "
                    "bits that were learnt; correct an example with `replace`."
                )
            due[row] = there if verb == "forget" else not there
        new = change(state, x, y, weight=due)
        self._entries |= {
            one: (content, verb == "learn")
            for one, content, now in zip(keys, contents, due, strict=True)
            if now
        }
        return new
