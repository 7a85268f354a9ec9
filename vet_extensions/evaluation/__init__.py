"""Judging a frozen backbone: embed once, probe, measure with intervals over patients, compare with controls.

`suite.run_suite` is the way in; `features.prepare_image` is the one preprocessing that every room uses for stored images.
"""
