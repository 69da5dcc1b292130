"""From a classifier's features to pseudo-masks: Grad-CAM, CRF, affinities, random walk, thresholds."""
