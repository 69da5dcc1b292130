"""Specifications of small networks, and metadata for their exports."""

from chexseg_jax.images import IMAGENET
from chexseg_jax.models.spec import BackboneSpec, DecoderSpec, NetworkSpec
from chexseg_jax.pathologies import PATHOLOGIES

SMALL = BackboneSpec("resnet", (1, 1, 1, 1), width=8)
SIDE = 64
THRESHOLDS = {name: (k + 1) / 20 for k, name in enumerate(PATHOLOGIES)}
SEGMENTER = NetworkSpec(
    "segmenter", SMALL, 14, 16, SIDE, IMAGENET, decoder=DecoderSpec(8, (1, 2, 3))
)
CLASSIFIER = NetworkSpec("classifier", SMALL, 14, 32, SIDE, IMAGENET)
IRNET = NetworkSpec("irnet", SMALL, 14, 16, SIDE, IMAGENET, dilated=False)
STATED = {
    "trained": {"fingerprint": "0123456789ab", "settings": {"seed": 17}, "inputs": {}},
    "versions": {"jax": "0"},
    "thresholds": THRESHOLDS,
}
