"""Main memory that a process may still use, within the limits of its container."""

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """Returns the available memory in bytes, or None where the system does not report it.

    Args:
        meminfo: Linux's account of the machine's memory.
        cgroup: Folder with the limit (memory.max) and the use (memory.current) of the container.
    """
    found = [amount for amount in (_of_machine(meminfo), _of_container(cgroup)) if amount is not None]
    return min(found) if found else None


def _of_machine(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _of_container(cgroup: Path) -> int | None:
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - int(used))
