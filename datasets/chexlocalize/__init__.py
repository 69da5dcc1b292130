"""CheXlocalize: chest X-rays of CheXpert on which radiologists drew ten pathologies."""

from datasets.chexlocalize.builder import Chexlocalize as Chexlocalize
