"""One dtype from its name, its numpy form or its torch form. Called where a configuration names a dtype."""

import numpy as np
import torch

TypeSpec = str | np.dtype | torch.dtype

_BY_NAME: dict[str, torch.dtype] = {
    "bool": torch.bool,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,  # not in the official table, which numpy's own names limit
    "float32": torch.float32,
    "float64": torch.float64,
    "complex64": torch.complex64,
    "complex128": torch.complex128,
}


PRECISIONS: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""The names that `compute_precision` uses."""


def as_torch_dtype(dtype: TypeSpec) -> torch.dtype:
    """torch.float32 for "float32", np.dtype("float32") or torch.float32. Raises AssertionError for anything unknown."""
    if isinstance(dtype, torch.dtype):
        return dtype
    name = dtype.name if isinstance(dtype, np.dtype) else dtype
    assert isinstance(name, str), f"expected a dtype or its name, got {type(dtype).__name__}"
    assert name in _BY_NAME, f"unknown dtype '{name}'; known: {', '.join(_BY_NAME)}"
    return _BY_NAME[name]
