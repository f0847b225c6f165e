"""The `nvidia-smi` of an emulated container: a Python program that reports the rented GPUs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import attrs

__all__ = ["GPUs", "nvidia_smi"]


@attrs.frozen
class GPUs:
    """The GPUs of a container.

    Attributes:
        memory: the memory of each GPU, in GiB.
    """

    name: str
    count: int
    memory: int
    driver_version: str
    cuda_version: str


def nvidia_smi(gpus: GPUs, use: Path) -> str:
    """Return the program's text. Its only options are `-L`, and `--query-gpu` with `--format=csv`.

    Args:
        use: the file that has the use of each GPU, in percent.
    """
    head = f"GPUS = {json.dumps(attrs.asdict(gpus))}\nUSE_FILE = {str(use)!r}\n"
    return f"#!{sys.executable} -IS\n{head}{_PROGRAM}"


_PROGRAM = """
import sys

with open(USE_FILE, encoding="ascii") as use_file:
    USE = use_file.read()


def fields(number):
    total = GPUS["memory"] * 1024
    return {
        "index": str(number),
        "name": GPUS["name"].replace("_", " "),
        "gpu_name": GPUS["name"].replace("_", " "),
        "uuid": f"GPU-00000000-0000-0000-0000-{number:012d}",
        "count": str(GPUS["count"]),
        "driver_version": GPUS["driver_version"],
        "memory.total": f"{total} MiB",
        "memory.used": "0 MiB",
        "memory.free": f"{total} MiB",
        "utilization.gpu": f"{USE} %",
        "utilization.memory": "0 %",
        "temperature.gpu": "30",
    }


def table():
    line = "+" + "-" * 70 + "+"
    yield line
    driver, cuda = "NVIDIA-SMI " + GPUS["driver_version"], "CUDA Version: " + GPUS["cuda_version"]
    yield f"| {driver:<40}{cuda:>28} |"
    yield line
    for number in range(GPUS["count"]):
        gpu = fields(number)
        yield f"| {gpu['index']:>2}  {gpu['name']:<36}{'0 MiB / ' + gpu['memory.total']:>22}{USE + '%':>6} |"
    yield line


def answer(arguments):
    numbers = range(GPUS["count"])
    if not arguments:
        return list(table())
    if arguments == ["-L"]:
        return [f"GPU {number}: {fields(number)['name']} (UUID: {fields(number)['uuid']})" for number in numbers]
    query = [argument.partition("=")[2] for argument in arguments if argument.startswith("--query-gpu=")]
    formats = [argument.partition("=")[2].split(",") for argument in arguments if argument.startswith("--format=")]
    if len(arguments) != 2 or not query or not formats or formats[0][0] != "csv":
        sys.exit("this emulated nvidia-smi has only -L, and --query-gpu=NAMES --format=csv[,noheader][,nounits]")
    names = [name.strip() for name in query[0].split(",")]
    if unknown := [name for name in names if name not in fields(0)]:
        sys.exit(f'Field "{unknown[0]}" is not a valid field to query.')
    lines = [] if "noheader" in formats[0] else [", ".join(names)]
    for number in numbers:
        values = [fields(number)[name] for name in names]
        if "nounits" in formats[0]:
            values = [value.removesuffix(" MiB").removesuffix(" %") for value in values]
        lines.append(", ".join(values))
    return lines


print("\\n".join(answer(sys.argv[1:])))
"""
