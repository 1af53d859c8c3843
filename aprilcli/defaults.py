"""Defaults and names that the options share with the modules they configure. Imports nothing, so help loads fast."""

TINY, PAPER = "tiny", "paper"  # models
VISA, MVTEC = "visa", "mvtec"  # published projectors
LAYOUTS = ("mvtec", "loco", "btad", "ad2", "visa", "folder")
SHOTS = (0, 1, 2, 4)  # the paper's
APRIL_GAN, PATCHCORE, PADIM, SPADE = "april-gan", "patchcore", "padim", "spade"
WINCLIP, SUBSPACEAD = "winclip", "subspacead"
METHODS = (APRIL_GAN, SPADE, PADIM, PATCHCORE, WINCLIP, SUBSPACEAD)  # how references are used
WITHOUT_REFERENCES = (APRIL_GAN, WINCLIP)  # methods that also work without any
WITH_ROTATIONS = (SUBSPACEAD,)  # methods that need each reference turned and mirrored, too
MUTUAL = "mutual"  # the images of a folder score each other
FALSE_ALARM_RATE = 0.01
LEARNING_RATE = 1e-3
MOSAIC_SHARE = 0.2  # of the images of an epoch, as in the paper on MVTec AD
# Checked before decoding. This many take 450 MB as RGB, and up to 20 times that while 16 bits or floats are scaled.
MAX_PIXELS = 150_000_000
