"""Reading the JSON files that experiments leave behind: of the right kind, or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]


def read_record(path: Path, kind: str, schema: int, module: str) -> Record:
    """The record in a file that `python -m module` wrote.

    Raises:
      ValueError: a file that is something else, or of another schema.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a results file ({error}).") from None
    found = [record.get(k) if isinstance(record, dict) else None for k in ("kind", "schema")]
    if found != [kind, schema]:
        raise ValueError(
            f"{path}: expected kind {kind!r} of schema {schema}, got {found[0]!r} of schema "
            f"{found[1]!r}. Make it anew with `python -m {module}`."
        )
    return record
