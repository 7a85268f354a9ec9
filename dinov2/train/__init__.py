"""Training: the meta-architecture and the train loop.

The official re-exports are looked up on demand, so that `python -m dinov2.train.train` does not import its module twice.
"""

from typing import Any

__all__ = ["SSLMetaArch", "get_args_parser", "main"]


def __getattr__(name: str) -> Any:
    if name == "SSLMetaArch":
        from dinov2.train.ssl_meta_arch import SSLMetaArch

        return SSLMetaArch
    if name in ("get_args_parser", "main"):
        from dinov2.train import train

        return getattr(train, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
