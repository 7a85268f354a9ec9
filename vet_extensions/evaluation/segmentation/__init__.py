"""Organ segmentation with frozen or tuned backbones: label maps, decoders, training, and scores by case in millimetres.

`vetdino segment` calls `run.run_segmentation`; docs/evaluation_segmentation.md is the user's page. Losses and the sliding
window are monai's, from the extra `seg`.
"""
