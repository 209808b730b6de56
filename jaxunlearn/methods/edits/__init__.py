"""One-shot edits of the parameters."""

from .ssd import ssd as ssd
