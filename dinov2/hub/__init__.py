"""Entry points of `torch.hub` and `hubconf.py`."""
