"""Which number format pays on this processor or GPU."""

import torch


def bf16_pays(device: torch.device | str = "cpu") -> bool:
    """True where bfloat16 matrix arithmetic runs in hardware: AMX or AVX512-BF16 on the CPU, sm_80 and later on a GPU.

    Without such instructions bf16 is emulated on the CPU and slower than fp32.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def computed_in(precision: str, device: torch.device | str = "cpu") -> torch.dtype:
    """The type of convolutions for `precision` = auto | bf16 | fp32; auto takes bf16 where it pays."""
    use = precision == "bf16" or precision == "auto" and bf16_pays(device)
    return torch.bfloat16 if use else torch.float32


def autocast(precision: str, device: torch.device | str = "cpu"):
    """Context in which convolutions are computed in that type."""
    enabled = computed_in(precision, device) == torch.bfloat16
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=enabled)
