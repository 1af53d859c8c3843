"""Input and output: images, data sets, artifacts, reports."""
