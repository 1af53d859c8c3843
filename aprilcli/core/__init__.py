"""The method: backbone, prompts, projector, maps, memory bank, calibration, metrics."""
