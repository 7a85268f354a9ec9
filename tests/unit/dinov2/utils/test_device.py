"""CPU threads are lent and given back."""

import pytest
import torch

from dinov2.utils.device import cpu_threads


@pytest.mark.parametrize(("asked", "inside"), [(2, 2), (0, None)])
def test_threads_are_put_back_even_after_an_error(asked, inside):
    before = torch.get_num_threads()

    def work() -> None:
        with cpu_threads(asked):
            assert torch.get_num_threads() == (before if inside is None else inside)
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        work()
    assert torch.get_num_threads() == before
