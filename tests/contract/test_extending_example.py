"""The plugin that docs/extending.md shows: it is taken from the page and used as a reader would use it."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The page's module, importable; what it registers is forgotten after the test."""
    from dinov2.data.registry import AUGMENTATIONS, DATASETS
    from dinov2.loss.routing import ROUTERS

    for registry in (AUGMENTATIONS, DATASETS, ROUTERS):
        monkeypatch.setattr(registry, "_objects", dict(registry._objects))
    (tmp_path / "my_plugin.py").write_text(blocks("python")[0], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield "my_plugin"
    sys.modules.pop("my_plugin", None)


def test_the_example_on_the_extending_page_makes_a_batch_and_a_routing(plugin: str, tmp_path: Path) -> None:
    from dinov2.configs import dinov2_default_config
    from dinov2.data import make_dataset
    from dinov2.data.registry import build_augmentation
    from dinov2.loss.routing import CropSlots, build_router
    from dinov2.utils.plugins import load_plugins

    image_path = tmp_path / "one.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(image_path)
    (tmp_path / "images.txt").write_text(f"{image_path}\n", encoding="utf-8")
    own = OmegaConf.create(blocks("yaml")[0])
    cfg = OmegaConf.merge(dinov2_default_config, own, {"crops": {"global_crops_size": 32, "local_crops_size": 16}})

    load_plugins(own.plugins)
    n_local = cfg.crops.local_crops_number
    router = build_router(cfg.routing, n_local)
    dataset_str = cfg.train.dataset_path.replace("images.txt", str(tmp_path / "images.txt"))
    dataset = make_dataset(dataset_str=dataset_str, transform=build_augmentation(cfg, router.layout))

    crops, _ = dataset[0]
    assert [tuple(crop.shape) for crop in crops["global_crops"]] == [(3, 32, 32)] * 2
    assert [tuple(crop.shape) for crop in crops["local_crops"]] == [(3, 16, 16)] * n_local
    weights = router(CropSlots.of_layout(router.layout, 1))
    assert float(weights.dino_global.sum() + weights.dino_local.sum()) == pytest.approx(1)
    assert float(weights.dino_local[0, 0, 0] / weights.dino_global[0, 1, 0]) == pytest.approx(0.25)
    assert router.describe().startswith("weighted_locals")
