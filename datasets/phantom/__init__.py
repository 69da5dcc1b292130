"""Synthetic chests, in CheXpert's and CheXlocalize's own layout, so that all of it runs anywhere."""

from datasets.phantom.write import write_phantoms as write_phantoms
