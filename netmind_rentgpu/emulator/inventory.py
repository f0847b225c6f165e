"""The machines and images that an emulated service starts with. A seed draws the machines from the documented GPU names."""

from __future__ import annotations

from decimal import Decimal
from random import Random
from typing import Any

import attrs

from netmind_rentgpu.emulator.nvidia_smi import GPUs

__all__ = ["REGIONS", "Node", "draw_nodes", "official_images"]

REGIONS = (  # noqa: SIM905  # a list of strings would fill 32 lines
    "HK SE CZ CA RO US ES BR CN JP DE AU IT RU PL VN PH TW NL RS SG AR NZ FI IN BG NO EE MY BH GB LT"
).split()

# The name, the memory of a GPU in GB, and the approximate price of a GPU in US dollars an hour. The names are documented;
# memory and price are plausible inventions.
_GPUS = (
    ("NVIDIA_GeForce_RTX_3090", 24, "0.22"),
    ("NVIDIA_GeForce_RTX_3090_Ti", 24, "0.27"),
    ("NVIDIA_GeForce_RTX_4090", 24, "0.45"),
    ("NVIDIA_A100_SXM4_80GB", 80, "1.35"),
    ("NVIDIA_H100_SXM5_80GB", 80, "2.40"),
    ("NVIDIA_A100_80GB_PCIe", 80, "1.25"),
    ("NVIDIA_A100_PCIE_80GB", 80, "1.25"),
    ("NVIDIA_ A800_PCIe_40GB", 40, "0.95"),
    ("NVIDIA_A100_SXM4_40GB", 40, "0.90"),
    ("NVIDIA_A100_PCIE_40GB", 40, "0.85"),
    ("NVIDIA_GeForce_RTX_A6000", 48, "0.55"),
    ("NVIDIA_Quadro_RTX_8000", 48, "0.38"),
    ("NVIDIA_GeForce_RTX_4080", 16, "0.32"),
    ("Tesla_V100_PCIE_32GB", 32, "0.30"),
    ("Tesla_V100_SXM2_32GB", 32, "0.33"),
    ("NVIDIA_Quadro_RTX_6000", 24, "0.28"),
    ("NVIDIA_GeForce_RTX_3080", 10, "0.17"),
    ("NVIDIA_GeForce_RTX_4070_Ti", 12, "0.20"),
    ("Tesla_V100_PCIE_16GB", 16, "0.22"),
    ("TITAN_RTX", 24, "0.24"),
    ("Tesla_V100_SXM2_16GB", 16, "0.24"),
    ("NVIDIA_GeForce_RTX_3070", 8, "0.13"),
    ("TITAN_V", 12, "0.16"),
    ("NVIDIA_GeForce_RTX_4060_Ti", 16, "0.14"),
    ("NVIDIA_GeForce_RTX_2080_SUPER", 8, "0.11"),
    ("NVIDIA_GeForce_RTX_2080_Ti", 11, "0.13"),
    ("NVIDIA_GeForce_RTX_4060", 8, "0.11"),
    ("NVIDIA_GeForce_RTX_2080", 8, "0.10"),
    ("TITAN_Xp", 12, "0.10"),
    ("NVIDIA_GeForce_RTX_2070_SUPER", 8, "0.09"),
    ("NVIDIA_GeForce_GTX_1080_Ti", 11, "0.09"),
    ("NVIDIA_GeForce_RTX_3060", 12, "0.10"),
    ("TITAN_X_Pascal", 12, "0.09"),
    ("NVIDIA_GeForce_RTX_2060_SUPER", 8, "0.08"),
    ("NVIDIA_GeForce_RTX_2070", 8, "0.08"),
    ("NVIDIA_GeForce_GTX_1070_Ti", 8, "0.06"),
    ("NVIDIA_GeForce_RTX_3060_Laptop_GPU", 6, "0.07"),
    ("NVIDIA_GeForce_GTX_1080", 8, "0.06"),
    ("NVIDIA_GeForce_GTX_1070", 8, "0.05"),
    ("NVIDIA_GeForce_GTX_1660_Ti", 6, "0.05"),
    ("NVIDIA_GeForce_GTX_1060_6GB", 6, "0.04"),
    ("Tesla_M60", 8, "0.06"),
    ("NVIDIA_RTX_6000_Ada_Generation", 48, "0.75"),
)
_CPUS = ("AMD EPYC 7763", "AMD EPYC 9354", "AMD Ryzen 9 7950X", "Intel Xeon Gold 6330", "Intel Xeon Platinum 8480+")
_DRIVERS = (("535.183.01", "12.2"), ("550.127.05", "12.4"), ("560.35.03", "12.6"))


@attrs.define(kw_only=True)
class Node:
    """A machine with GPUs, some of which may be rented.

    Attributes:
        taken: the number of its rented GPUs.
        price: the price of an hour of one GPU, in US dollars.
        listing: the other fields of the machine list.
    """

    name: str
    gpu_name: str
    gpu_id: int
    region: str
    gpu_count: int
    taken: int = 0
    price: Decimal
    cpu_per_gpu: int
    memory_per_gpu: int
    disk_per_gpu: int
    listing: dict[str, Any]

    @property
    def free(self) -> int:
        """The number of GPUs that can be rented now."""
        return self.gpu_count - self.taken

    def gpus(self, count: int) -> GPUs:
        """Describe a number of the machine's GPUs, for `nvidia-smi`."""
        listing = self.listing
        return GPUs(self.gpu_name, count, listing["gpu_memory"], listing["driver_version"], listing["cuda_version"])


def draw_nodes(random: Random, count: int) -> list[Node]:
    """Draw machines. Every documented GPU is drawn once before any GPU is drawn again."""
    nodes: list[Node] = []
    deck: list[int] = []
    for number in range(1, count + 1):
        if not deck:
            deck = list(range(len(_GPUS)))
            random.shuffle(deck)
        nodes.append(_draw_node(random, number, deck.pop()))
    return nodes


def _draw_node(random: Random, number: int, gpu_id: int) -> Node:
    gpu_name, gpu_memory, base_price = _GPUS[gpu_id]
    gpu_count = random.choice((1, 2, 4, 8))
    price = (Decimal(base_price) * Decimal(random.randint(85, 130)) / 100).quantize(Decimal("0.0001"))
    cpu_per_gpu = random.choice((4, 8, 12, 16))
    memory_per_gpu = random.choice((16, 32, 64, 128))
    disk_per_gpu = random.choice((200, 400, 800))
    region = random.choice(REGIONS)
    driver, cuda = random.choice(_DRIVERS)
    return Node(
        name=f"node-{region.lower()}-{number:04d}",
        gpu_name=gpu_name,
        gpu_id=gpu_id + 1,
        region=region,
        gpu_count=gpu_count,
        price=price,
        cpu_per_gpu=cpu_per_gpu,
        memory_per_gpu=memory_per_gpu,
        disk_per_gpu=disk_per_gpu,
        listing={
            "on_demand": "on_demand",
            "labels": random.sample(["verified", "datacenter", "fast-network"], random.randint(0, 2)),
            "cluster": f"cluster-{random.randint(1, 9)}",
            "gpu_memory": gpu_memory,
            "cpu_name": random.choice(_CPUS),
            "cpu_count": cpu_per_gpu * gpu_count,
            "network_upload_speed": random.randint(100, 10_000),
            "network_download_speed": random.randint(100, 10_000),
            "up_time": random.randint(3_600, 8_640_000),
            "online_rate": round(random.uniform(0.95, 1), 3),
            "organization": f"provider-{random.randint(1, 20)}",
            "driver_version": driver,
            "cuda_version": cuda,
            "nvlink_status": "SXM" in gpu_name,
        },
    )


def official_images() -> list[dict[str, Any]]:
    """Return the official and public images, with the fields of a create and `image_type`."""
    offered = (
        ("PyTorch 2.4", "pytorch/pytorch", "2.4.0", "pytorch", 0),
        ("PyTorch 2.1", "pytorch/pytorch", "2.1.0", "pytorch", 0),
        ("TensorFlow 2.16", "tensorflow/tensorflow", "2.16.1-gpu", "tensorflow", 0),
        ("Ubuntu 22.04", "nvidia/cuda", "12.4.1-base-ubuntu22.04", "ubuntu", 0),
        ("Stable Diffusion web UI", "someone/stable-diffusion", "latest", "pytorch", 1),
    )
    return [
        {"name": name, "image_name": image, "image_tag": tag, "image_label": label, "image_type": kind}
        for name, image, tag, label, kind in offered
    ]
