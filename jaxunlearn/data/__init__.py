"""Data: streams of batches, tasks that say what to forget, and named sources."""

from .streams import InMemory as InMemory
from .streams import Stream as Stream
from .streams import as_data as as_data
from .streams import concatenate as concatenate
from .streams import from_batches as from_batches
from .streams import from_grain as from_grain
from .streams import in_memory as in_memory
