"""What a measurement was made on, for its record: the processor, never the name of the machine."""

import datetime
import os
import platform
from pathlib import Path
from typing import Any


def description() -> dict[str, Any]:
    """Processor model, number of cores and operating system, as plain data.

    Nothing that identifies a machine or its owner (host name, user, folders) is read.

    Example:
        >>> sorted(description())
        ['cores', 'cpu', 'system']
    """
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
    }


def today() -> str:
    """The date in UTC, "2026-01-31"."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def use_all_cores() -> None:
    """One virtual JAX device per core, as the command line has it; call before JAX is used.

    Programs are compiled anew in such a process: a stored one would make "seconds to compile" and
    "seconds in all" depend on what ran before.
    """
    import jax

    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    jax.config.update("jax_enable_compilation_cache", False)


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
