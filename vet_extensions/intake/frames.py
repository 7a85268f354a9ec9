"""Files with several frames: which of them become images, and how these are told apart. `header` asks for each file."""

from vet_extensions.intake.deidentify import Pseudonyms
from vet_extensions.intake.refusal import Refusal
from vet_extensions.schema import Note, RejectionCode

MAX_FRAMES = 1000
"""A header may claim any number, and each frame becomes a record before its pixels are seen."""


def chosen_frames(n_frames: int, *, policy: str) -> range:
    """The numbers of the frames to read, from 0. policy: `IntakeOptions.multi_frame`. Errors: Refusal."""
    if n_frames == 1:
        return range(1)
    if policy == "reject":
        raise Refusal(RejectionCode.MULTI_FRAME, f"{n_frames} frames")
    if n_frames > MAX_FRAMES:
        raise Refusal(RejectionCode.TOO_LARGE, f"{n_frames:,} frames; at most {MAX_FRAMES:,} are read")
    return range(1 if policy == "first" else n_frames)


def frame_image_id(pseudonyms: Pseudonyms, sop_instance_uid: str, *, frame: int) -> str:
    """Frame 0 has the pseudonym of the file's SOPInstanceUID, so that labels by UID find it; the others have their own."""
    return pseudonyms.image(sop_instance_uid if frame == 0 else f"{sop_instance_uid} frame {frame}")


def frame_notes(n_frames: int, *, policy: str) -> tuple[Note, ...]:
    """What the manifest says of an image from a file with `n_frames` frames."""
    if n_frames == 1:
        return ()
    return (Note.FIRST_OF_FRAMES if policy == "first" else Note.ONE_OF_FRAMES,)
