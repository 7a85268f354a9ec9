"""One exposure: everything that belongs to the moment of taking a view and not to the animal.

`sample_exposure` draws it, independently for every view of a study, so that no acquisition variable can tell two views
of one study from two views of different studies. `camera`, `scene` and `formation` read it.
"""

from dataclasses import dataclass

import numpy as np

from vet_extensions.schema import View, ViewFamily, view_family

PHANTOM_VIEWS = (View.LATERAL_LEFT, View.LATERAL_RIGHT, View.VD, View.DV)
"""The views that can be rendered."""

LATERAL_VIEWS = PHANTOM_VIEWS[:2]
FRONTAL_VIEWS = PHANTOM_VIEWS[2:]


@dataclass(frozen=True)
class Exposure:
    """Positioning, breathing, beam, detector and display variables of one view; the defaults are a textbook exposure.

    Angles in radians; offsets in trunk lengths; tube voltage, scatter, collimation and the marker's place in [0, 1].
    """

    view: View
    # Positioning
    roll: float = 0.0
    pitch: float = 0.0
    yaw: float = 0.0
    in_plane_rotation: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    zoom: float = 1.0
    limb_pose: tuple[float, ...] = (0.0,) * 8
    # Physiology of the moment
    inspiration: float = 0.0
    """-1.3 (expiration) to 1 (deep inspiration)."""
    heart_phase: float = 0.0
    """Relative size change of the heart over the beat."""
    gas_drift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    # Beam and detector
    tube_voltage: float = 0.5
    """0 = soft beam, 1 = hard beam; mixes the two spectra of `formation`."""
    tube_load: float = 1.0
    """Relative mAs: the photons that reach the detector."""
    scatter: float = 0.3
    collimation: tuple[float, float, float, float] = (0.5, 0.5, 0.5, 0.5)
    """How far the left, top, right and bottom blades close."""
    noise_seed: int = 0
    # Lead marker
    has_marker: bool = True
    marks_right_side: bool = True
    """Frontal views: the letter is R and lies beside the animal's right. Laterals carry the side on the table."""
    marker_along: float = 0.5
    marker_is_low: bool = True
    # Display processing
    display_gamma: float = 1.0
    window_shift: float = 0.0
    window_width: float = 0.0
    local_contrast: float = 0.5

    @property
    def is_lateral(self) -> bool:
        return view_family(self.view) is ViewFamily.LATERAL


def sample_exposure(view: View, *, rng: np.random.Generator) -> Exposure:
    """Draw the nuisance variables of one view.

    The spreads are those of everyday practice: a few degrees of malpositioning, breathing between expiration and deep
    inspiration, a factor of about 1.6 in dose, a different look of the display processing each time.
    """
    roll, pitch, yaw, in_plane = np.deg2rad(rng.normal(0.0, (4.5, 3.0, 3.0, 3.0)))
    shift = rng.normal(0.0, 0.03, 2)
    marker = rng.uniform(0.0, 1.0, 4)
    return Exposure(
        view=view,
        roll=float(roll),
        pitch=float(pitch),
        yaw=float(yaw),
        in_plane_rotation=float(in_plane),
        shift=(float(shift[0]), float(shift[1])),
        zoom=float(np.exp(rng.normal(0.0, 0.06))),
        limb_pose=tuple(rng.normal(0.0, 1.0, 8).tolist()),
        inspiration=float(np.clip(rng.normal(0.0, 0.5), -1.3, 1.0)),
        heart_phase=float(rng.normal(0.0, 0.02)),
        gas_drift=tuple(rng.normal(0.0, 1.0, 3).tolist()),
        tube_voltage=float(rng.uniform()),
        tube_load=float(np.exp(rng.normal(0.0, 0.45))),
        scatter=float(rng.uniform(0.1, 0.55)),
        collimation=tuple(rng.uniform(0.0, 1.0, 4).tolist()),
        noise_seed=int(rng.integers(1 << 31)),
        has_marker=bool(marker[3] < 0.85),
        marks_right_side=bool(marker[0] < 0.5),
        marker_along=float(marker[1]),
        marker_is_low=bool(marker[2] < 0.6),
        display_gamma=float(np.exp(rng.normal(0.0, 0.22))),
        window_shift=float(rng.normal(0.0, 0.05)),
        window_width=float(rng.normal(0.0, 0.05)),
        local_contrast=float(rng.uniform(0.2, 0.75)),
    )
