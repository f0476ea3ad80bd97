"""Whether a model is right: accuracy, calibration, images, privacy, fairness, on any cohort with one command."""
