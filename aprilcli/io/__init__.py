"""Input and output: images, data sets, artifacts, results."""
