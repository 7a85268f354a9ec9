"""A batch on its device: crops that are not made yet are made there and then treated as any others."""

import torch

from dinov2.train.device_batch import to_device


class GreyCrops:
    def crops(self, device: torch.device) -> dict[str, torch.Tensor]:
        """One crop of grey level 51."""
        return {"collated_global_crops": torch.full((1, 1, 4, 4), 51, dtype=torch.uint8, device=device)}


def test_crops_are_made_on_the_device_and_normalised_there():
    images = {"crops_on_device": GreyCrops(), "upperbound": 3}
    batch = to_device(
        images, torch.device("cpu"), mean=torch.tensor([0.0, 0.1, 0.2]), std=torch.tensor([1.0, 1.0, 0.5])
    )
    assert set(batch) == {"collated_global_crops", "upperbound"}
    expected = torch.tensor([0.2, 0.1, 0.0])[None, :, None, None].expand(1, 3, 4, 4)
    torch.testing.assert_close(batch["collated_global_crops"], expected)
    assert "crops_on_device" in images
