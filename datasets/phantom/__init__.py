"""Synthetic chest X-rays in the layout of CheXpert and CheXlocalize, for runs without the real data."""

from datasets.phantom.write import write_phantoms as write_phantoms
