"""Anomaly detection: models, prompts, projectors, maps, memory banks, calibration, training and metrics."""
