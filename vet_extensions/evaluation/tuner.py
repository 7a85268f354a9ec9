"""How the suite asks for trainings: each backbone by each protocol that tunes it, once, however many levels want its scores."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from vet_extensions.evaluation.cohort import LabelledImages
from vet_extensions.evaluation.embedding import Backbone
from vet_extensions.evaluation.finetune import Tuned, tune
from vet_extensions.evaluation.suite_config import SuiteConfig
from vet_extensions.evaluation.tuning_config import TUNED_LEVELS, TUNED_PROTOCOLS
from vet_extensions.evaluation.tuning_data import rows_of
from vet_extensions.schema import Split


class Tuner:
    """The trainings of one suite. n_images: training images that pass through a backbone in all of them, for progress."""

    def __init__(
        self, images: LabelledImages, config: SuiteConfig, *, folder: Path, device: torch.device | str
    ) -> None:
        self._images, self._config, self._folder, self._device = images, config, folder, device
        is_wanted = bool(set(TUNED_LEVELS) & set(config.levels))
        self._protocols = [name for name in config.protocols if name in TUNED_PROTOCOLS and is_wanted]
        tuning, self._n_each = config.tuning, 0
        if self._protocols:
            self._n_each = len(tuning.learning_rate_factors) * tuning.epochs * len(rows_of(images, Split.TRAIN))
        self.n_images = len(self._protocols) * self._n_each

    def of(self, backbone: Backbone, on_progress: Callable[[int], None]) -> Callable[[str], Tuned]:
        """Trains a backbone by the protocol that it is called with; the same protocol again is answered at once."""

        @cache
        def tuned(protocol: str) -> Tuned:
            """Progress counts on from the protocols that come before this one."""
            before = self._protocols.index(protocol) * self._n_each
            return tune(
                backbone,
                self._images,
                method=protocol,
                config=self._config.tuning,
                image_size_px=self._config.image_size_px,
                tokens=self._config.tokens,
                device=self._device,
                folder=self._folder,
                on_progress=lambda done, _: on_progress(before + done),
            )

        return tuned
