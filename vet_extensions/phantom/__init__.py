"""The built-in synthetic archive: radiograph studies of a parametric dog, with labels and geometry that are known exactly.

`studies` draws an animal with its findings and exposures, `render` projects it to an image in closed form. numpy and
OpenCV only.

The body frame used throughout the room: x cranial (-) to caudal (+), y right (-) to left (+), z ventral (-) to dorsal
(+), origin at the cranial end of the first thoracic vertebra on the midline. Shapes are built in units of the
animal's trunk length (T1 to T13); the camera and everything a caller sees are in millimetres.
"""
