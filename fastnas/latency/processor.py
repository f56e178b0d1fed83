"""What the operating system says about the processor. Loads nothing else: `fastnas doctor` asks on broken installations."""

import platform
from pathlib import Path


def cpuinfo() -> dict[str, str]:
    """The fields of the first processor in /proc/cpuinfo, which stands for all; empty where there is no such file."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            fields[key.strip()] = value.strip()
    except OSError:
        pass  # no Linux
    return fields


def cpu_name(fields: dict[str, str]) -> str:
    """The processor's name, the platform's where `cpuinfo` has none."""
    return fields.get("model name") or platform.processor() or platform.machine()
