"""Small networks with weights, ready to export."""

from chexseg_jax.descriptions import Decoder, Description
from chexseg_jax.images import IMAGENET
from chexseg_jax.networks import Network
from chexseg_jax.pathologies import PATHOLOGIES

SMALL = Network("resnet", (1, 1, 1, 1), width=8)
SIDE = 64
THRESHOLDS = {name: (k + 1) / 20 for k, name in enumerate(PATHOLOGIES)}
SEGMENTER = Description("segmenter", SMALL, 14, 16, SIDE, IMAGENET, decoder=Decoder(8, (1, 2, 3)))
CLASSIFIER = Description("classifier", SMALL, 14, 32, SIDE, IMAGENET)
IRNET = Description("irnet", SMALL, 14, 16, SIDE, IMAGENET, dilated=False)
STATED = {
    "trained": {"fingerprint": "0123456789ab", "settings": {"seed": 17}, "inputs": {}},
    "versions": {"jax": "0"},
    "thresholds": THRESHOLDS,
}
