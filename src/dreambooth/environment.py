"""What a run ran on, for its record."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import PartialState

from dreambooth import __version__

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy", "pillow")


def processes() -> PartialState:
    """Return this process's device and its place among those that `torchrun` or `accelerate launch` started.

    Whoever asks first opens the connection, so all must ask here.
    """
    # accelerate joins processes on the CPU only where it is told to use the CPU
    on_cpu = "LOCAL_RANK" in os.environ and torch.accelerator.device_count() == 0
    # the first process draws pictures, or waits for class images of another run, while the others wait for it
    return PartialState(cpu=on_cpu, timeout=timedelta(days=7))


def describe(device: torch.device, processes: int) -> dict[str, Any]:
    """Return versions, device, threads and the git commit of the package, as JSON values."""
    versions = {"dreambooth": __version__, **{name: metadata.version(name) for name in PACKAGES}}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **versions,
        "device": device.type,
        "device_name": name,
        "processes": processes,
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "git": _commit(),
        "command": sys.argv,
    }


def has_bf16() -> bool:
    """Whether the CPU has instructions for bf16; without them it is emulated, and slow."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # PyTorch has no public name for it
    return bool(supported and supported())


def restart_peak(device: torch.device) -> None:
    """Measure the accelerator's peak memory from now on; elsewhere it is the process's, which nothing restarts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_mb(device: torch.device) -> float:
    """Return the peak memory of this process so far in MB: of the accelerator where there is one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / 1e6
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _commit() -> str | None:
    """Return the commit of the checkout that the package runs from, marked where it was changed; None if installed."""
    folder = Path(__file__).parent
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
