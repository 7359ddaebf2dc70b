"""The scale sets at which photos are described, by name: the one place where they are written."""

# Factors of a photo's sides. The descriptors of all scales of a set are averaged.
SCALE_SETS: dict[str, tuple[float, ...]] = {
    "one": (1.0,),
    "three": (0.7071, 1.0, 1.4142),  # DELG's; each step is the square root of 2
    "five": (0.3535, 0.5, 0.7071, 1.0, 1.4142),  # the authors'
}

# DELF's and DELG's of local features, as the configurations of DELG's models have them.
LOCAL_SCALES = (0.25, 0.35355338, 0.5, 0.70710677, 1.0, 1.4142135, 2.0)

# HOW's, in the order in which its authors take them.
HOW_SCALES = (2.0, 1.414, 1.0, 0.707, 0.5, 0.353, 0.25)
