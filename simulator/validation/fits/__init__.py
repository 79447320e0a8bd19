"""Where calibrations come from: each file fits one table of ``cluster_configs/calibration/NAME/`` on published measurements.

``moesim calibrate published FOLDER`` runs them all. A fit has few coefficients, each with a meaning; what it reports of itself
(median, 90th percentile, bias, band) is cross-validated: whole model shapes are left out in turn, never random rows.
"""
