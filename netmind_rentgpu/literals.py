"""The names that the service documents, so that editors can complete them and type checkers know them.

The client sends any other name as it is. Source: the vendor's page "Rent GPU", section "List Machines".
"""

from __future__ import annotations

from typing import Literal, TypeAlias

__all__ = ["CurrencyName", "GPUName", "RegionCode"]

GPUName: TypeAlias = (
    Literal[
        "NVIDIA_GeForce_RTX_3090",
        "NVIDIA_GeForce_RTX_3090_Ti",
        "NVIDIA_GeForce_RTX_4090",
        "NVIDIA_A100_SXM4_80GB",
        "NVIDIA_H100_SXM5_80GB",
        "NVIDIA_A100_80GB_PCIe",
        "NVIDIA_A100_PCIE_80GB",
        "NVIDIA_ A800_PCIe_40GB",
        "NVIDIA_A100_SXM4_40GB",
        "NVIDIA_A100_PCIE_40GB",
        "NVIDIA_GeForce_RTX_A6000",
        "NVIDIA_Quadro_RTX_8000",
        "NVIDIA_GeForce_RTX_4080",
        "Tesla_V100_PCIE_32GB",
        "Tesla_V100_SXM2_32GB",
        "NVIDIA_Quadro_RTX_6000",
        "NVIDIA_GeForce_RTX_3080",
        "NVIDIA_GeForce_RTX_4070_Ti",
        "Tesla_V100_PCIE_16GB",
        "TITAN_RTX",
        "Tesla_V100_SXM2_16GB",
        "NVIDIA_GeForce_RTX_3070",
        "TITAN_V",
        "NVIDIA_GeForce_RTX_4060_Ti",
        "NVIDIA_GeForce_RTX_2080_SUPER",
        "NVIDIA_GeForce_RTX_2080_Ti",
        "NVIDIA_GeForce_RTX_4060",
        "NVIDIA_GeForce_RTX_2080",
        "TITAN_Xp",
        "NVIDIA_GeForce_RTX_2070_SUPER",
        "NVIDIA_GeForce_GTX_1080_Ti",
        "NVIDIA_GeForce_RTX_3060",
        "TITAN_X_Pascal",
        "NVIDIA_GeForce_RTX_2060_SUPER",
        "NVIDIA_GeForce_RTX_2070",
        "NVIDIA_GeForce_GTX_1070_Ti",
        "NVIDIA_GeForce_RTX_3060_Laptop_GPU",
        "NVIDIA_GeForce_GTX_1080",
        "NVIDIA_GeForce_GTX_1070",
        "NVIDIA_GeForce_GTX_1660_Ti",
        "NVIDIA_GeForce_GTX_1060_6GB",
        "Tesla_M60",
        "NVIDIA_RTX_6000_Ada_Generation",
    ]
    | str
)
"""A GPU's name, as in `gpu_names`. One name holds a blank, because the vendor's page spells it so."""

RegionCode: TypeAlias = (
    Literal[
        "HK",
        "SE",
        "CZ",
        "CA",
        "RO",
        "US",
        "ES",
        "BR",
        "CN",
        "JP",
        "DE",
        "AU",
        "IT",
        "RU",
        "PL",
        "VN",
        "PH",
        "TW",
        "NL",
        "RS",
        "SG",
        "AR",
        "NZ",
        "FI",
        "IN",
        "BG",
        "NO",
        "EE",
        "MY",
        "BH",
        "GB",
        "LT",
    ]
    | str
)
"""A region's two-letter code."""

CurrencyName: TypeAlias = Literal["USD", "NMT", "CNY"] | str
"""The currency that prices are shown in. Only USD is documented; the others are plausible."""
