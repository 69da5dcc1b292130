"""CheXlocalize: chest X-rays of CheXpert with radiologists' masks of ten pathologies."""

from datasets.chexlocalize.builder import Chexlocalize as Chexlocalize
