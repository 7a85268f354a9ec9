"""Lets packages that import torchvision load beside a torch that torchvision was not built for. Used by tests of timm and others.

There is no CPU build of torchvision on the package index: beside CPU torch its import fails for want of two operators. Defined
here without an implementation, they let the import pass; nothing that the tests use calls them.
"""

import contextlib

import torch

_KEPT = []


def define() -> None:
    """Define the operators that torchvision registers fakes for, where they are not there."""
    with contextlib.suppress(RuntimeError):  # torchvision's own, or ours from another test module
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)  # an operator lives as long as its library
