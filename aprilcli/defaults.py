"""Defaults and names that the options share with the modules they configure. Imports nothing, so help loads fast."""

TINY, PAPER = "tiny", "paper"  # models
VISA, MVTEC = "visa", "mvtec"  # published projectors
LAYOUTS = ("mvtec", "loco", "btad", "ad2", "visa", "folder")
SHOTS = (0, 1, 2, 4)  # the paper's
FALSE_ALARM_RATE = 0.01
LEARNING_RATE = 1e-3
MOSAIC_SHARE = 0.2  # of the images of an epoch, as in the paper on MVTec AD
# Checked before decoding. This many take 450 MB as RGB, and up to 20 times that while 16 bits or floats are scaled.
MAX_PIXELS = 150_000_000
