"""Resolution of a text to a GPU: the GPU with that name, or the only GPU that has the text in its name."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netmind_rentgpu.errors import InvalidArgumentError
from netmind_rentgpu.gpu_names import DOCUMENTED_GPUS, resolved_gpu_names
from netmind_rentgpu.models import Machine
from netmind_rentgpu.profile import ServiceProfile
from netmind_rentgpu.rentals.selection.offers import Requirements


@pytest.mark.parametrize(
    ("text", "resolved"),
    [
        ("NVIDIA_GeForce_RTX_4090", "nvidiageforcertx4090"),
        ("RTX 4090", "nvidiageforcertx4090"),
        ("rtx4090", "nvidiageforcertx4090"),
        ("4090", "nvidiageforcertx4090"),
        ("h100", "nvidiah100sxm580gb"),
        ("H100_SXM5", "nvidiah100sxm580gb"),
        ("a800", "nvidiaa800pcie40gb"),
        ("NVIDIA_ A800_PCIe_40GB", "nvidiaa800pcie40gb"),
        ("nvidia a800 pcie 40gb", "nvidiaa800pcie40gb"),
        ("RTX A6000", "nvidiageforcertxa6000"),
        ("4070-ti", "nvidiageforcertx4070ti"),
        ("A100_SXM4_40GB", "nvidiaa100sxm440gb"),
        ("titan xp", "titanxp"),
        # A whole name means that GPU, even if it is a part of other names; its leading words may be missing.
        ("3090", "nvidiageforcertx3090"),
        ("RTX 3090", "nvidiageforcertx3090"),
        ("RTX 3090 Ti", "nvidiageforcertx3090ti"),
        ("GeForce RTX 2080", "nvidiageforcertx2080"),
        ("gtx-1080", "nvidiageforcegtx1080"),
        ("3060", "nvidiageforcertx3060"),
        ("NVIDIA_GeForce_RTX_3090", "nvidiageforcertx3090"),
        ("nvidia geforce rtx 2080", "nvidiageforcertx2080"),
    ],
)
def test_text_resolves_to_the_gpu_with_that_name_or_that_part_of_a_name(text: str, resolved: str) -> None:
    assert resolved_gpu_names([text], []) == {resolved}


@pytest.mark.parametrize(
    ("text", "candidates"),
    [
        # "Quadro" is not a leading word, because the other RTX 6000 has another price.
        ("6000", ["NVIDIA_Quadro_RTX_6000", "NVIDIA_RTX_6000_Ada_Generation"]),
        (
            "A100",
            [
                "NVIDIA_A100_80GB_PCIe",
                "NVIDIA_A100_PCIE_40GB",
                "NVIDIA_A100_PCIE_80GB",
                "NVIDIA_A100_SXM4_40GB",
                "NVIDIA_A100_SXM4_80GB",
            ],
        ),
        ("RTX 6000", ["NVIDIA_Quadro_RTX_6000", "NVIDIA_RTX_6000_Ada_Generation"]),
        ("a100 sxm4", ["NVIDIA_A100_SXM4_40GB", "NVIDIA_A100_SXM4_80GB"]),
        ("titan", ["TITAN_RTX", "TITAN_V", "TITAN_X_Pascal", "TITAN_Xp"]),
    ],
)
def test_part_of_several_gpu_names_is_refused_and_lists_them(text: str, candidates: list[str]) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        resolved_gpu_names([text], [])
    listed = ", ".join(candidates)
    assert (
        str(caught.value) == f"gpu_name: {text!r} may mean any of {listed}; give the whole name of one, or of several"
    )
    assert caught.value.argument == "gpu_name"


def test_gpus_on_offer_are_matched_beside_documented_gpus() -> None:
    assert resolved_gpu_names(["B200"], ["NVIDIA_B200_SXM6_192GB"]) == {"nvidiab200sxm6192gb"}
    assert resolved_gpu_names(["4090"], ["NVIDIA_GeForce_RTX_4090_D"]) == {"nvidiageforcertx4090"}
    with pytest.raises(InvalidArgumentError, match="NVIDIA_GeForce_RTX_5090_D, NVIDIA_GeForce_RTX_5090_Max_Q;"):
        resolved_gpu_names(["5090"], ["NVIDIA_GeForce_RTX_5090_D", "NVIDIA_GeForce_RTX_5090_Max_Q"])
    with pytest.raises(InvalidArgumentError, match="NVIDIA_GTX_5090, NVIDIA_RTX_5090;"):
        resolved_gpu_names(["5090"], ["NVIDIA_RTX_5090", "NVIDIA_GTX_5090", "NVIDIA_RTX_5090_D"])
    # Another spelling of a documented name means the same GPU.
    assert resolved_gpu_names(["4090"], ["NVIDIA GeForce RTX 4090"]) == {"nvidiageforcertx4090"}


@pytest.mark.parametrize("text", ["MI300X", "409", "090", "TX 4090"])
def test_text_in_no_gpu_name_is_refused_with_those_on_offer(text: str) -> None:
    with pytest.raises(
        InvalidArgumentError, match=f"^gpu_name: no GPU is called '{text}'; the GPUs on offer are A, B$"
    ):
        resolved_gpu_names([text], ["B", "A", "B"])
    with pytest.raises(InvalidArgumentError, match="the GPUs on offer are none"):
        resolved_gpu_names([text], [])
    # The service may have a GPU that it does not document.
    assert resolved_gpu_names([text], [f"NVIDIA_{text}"]) == {"nvidia" + text.lower().replace(" ", "")}


def test_several_texts_resolve_to_several_gpus() -> None:
    assert resolved_gpu_names(["4090", "H100", "RTX 4090"], []) == {"nvidiageforcertx4090", "nvidiah100sxm580gb"}
    assert resolved_gpu_names([], []) == frozenset()
    with pytest.raises(InvalidArgumentError, match="'A100' may mean"):
        resolved_gpu_names(["4090", "A100"], [])


def spelled(words: list[str], separator: str, upper: int) -> str:
    """Return words joined by a separator, with some letters in capitals."""
    text = separator.join(words)
    return "".join(letter.upper() if upper >> place % 16 & 1 else letter.lower() for place, letter in enumerate(text))


separators = st.sampled_from(["", " ", "_", "-", "/", ". "])
gpus = st.sampled_from(DOCUMENTED_GPUS)


def words_of(name: str) -> list[str]:
    return [word for word in re.split("[_ ]", name) if word]


@given(name=gpus, separator=separators, upper=st.integers(0, 2**16))
def test_documented_gpu_resolves_by_its_own_name_in_any_spelling(name: str, separator: str, upper: int) -> None:
    found = resolved_gpu_names([spelled(words_of(name), separator, upper)], [])
    assert found == {"".join(words_of(name)).lower()}
    requirements = Requirements(gpu_names=found)
    fitting = {
        gpu
        for gpu in DOCUMENTED_GPUS
        if requirements.first_unmet(Machine(node_name="n", gpu_name=gpu), ServiceProfile()) is None
    }
    assert fitting == {name}


@given(name=gpus, first=st.integers(0, 5), count=st.integers(1, 6), separator=separators, upper=st.integers(0, 2**16))
def test_part_of_a_gpu_name_resolves_to_one_gpu_or_is_refused(
    name: str, first: int, count: int, separator: str, upper: int
) -> None:
    words = words_of(name)[first : first + count] or words_of(name)
    text = spelled(words, separator, upper)
    whole = "".join(words).lower()
    having = {
        other
        for other in DOCUMENTED_GPUS
        for start in range(len(words_of(other)))
        for end in range(start + 1, len(words_of(other)) + 1)
        if "".join(words_of(other)[start:end]).lower() == whole
    }
    names = {"".join(words_of(other)).lower(): other for other in having}
    called = {
        other
        for other in having
        for start in range(len(words_of(other)))
        if {word.lower() for word in words_of(other)[:start]} <= {"nvidia", "geforce", "rtx", "gtx"}
        and "".join(words_of(other)[start:]).lower() == whole
    }
    assert name in having
    try:
        found = resolved_gpu_names([text], [])
    except InvalidArgumentError as error:
        assert len(having) > 1
        assert whole not in names
        assert len(called) != 1
        assert all(other in str(error) for other in having)
    else:
        meant = called if len(called) == 1 else having
        assert found == ({whole} if whole in names else {"".join(words_of(other)).lower() for other in meant})
