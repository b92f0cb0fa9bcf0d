"""A limit of the CPU time of a process, by a control group of version 2 or 1."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from infra.local import LabError

_GROUPS = Path("/sys/fs/cgroup")
#: Microseconds: the kernel's default.
_PERIOD = 100_000


@contextlib.contextmanager
def cpu_quota(pid: int, cpus: float) -> Iterator[None]:
    """Hold a process to that many CPUs for the block. Raises LabError where that is impossible."""
    quota = round(cpus * _PERIOD)
    # Version 1, which some systems still mount beside version 2.
    if (parent := _GROUPS / "cpu").is_dir():
        limits = {"cpu.cfs_period_us": str(_PERIOD), "cpu.cfs_quota_us": str(quota)}
    else:
        parent, limits = _GROUPS, {"cpu.max": f"{quota} {_PERIOD}"}
    group = parent / f"warm-engine-{os.getpid()}-{pid}"
    try:
        before = _group_of(pid, parent)
        group.mkdir()
    except OSError as error:
        raise LabError(f"a CPU quota needs root and the CPU controller: {error}") from None
    try:
        try:
            for name, value in limits.items():
                (group / name).write_text(value)
            (group / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            raise LabError(f"a CPU quota needs root and the CPU controller: {error}") from None
        yield
    finally:
        with contextlib.suppress(OSError):  # the process has ended
            (before / "cgroup.procs").write_text(str(pid))
        group.rmdir()


def _group_of(pid: int, root: Path) -> Path:
    """The control group in which a process is now."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == ("" if root == _GROUPS else "cpu"):
            return root / path.lstrip("/")
    return root
