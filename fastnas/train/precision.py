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


def autocast(precision: str, device: torch.device | str = "cpu"):
    """Context for `precision` = auto | bf16 | fp32; auto takes bf16 where it pays."""
    use = precision == "bf16" or precision == "auto" and bf16_pays(device)
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=use)
