"""Compare the networks: forward pass, loss, gradients, batch statistics, and Grad-CAM."""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from chexseg_jax.evaluation.metrics import THRESHOLDS, count, stack, threshold_bins
from chexseg_jax.losses import Policy, classification_loss, dice
from chexseg_jax.models.deeplab import DeepLabV3Plus
from chexseg_jax.models.densenet import DenseNet
from chexseg_jax.models.irnet import IRNet
from chexseg_jax.models.resnet import ResNet
from chexseg_jax.pseudolabels.affinity import affinities, pair_losses
from chexseg_jax.pseudolabels.gradcam import grad_cam
from chexseg_jax.weights.convert import load_torch, to_torch
from experiments.parity_checks.fixtures import (
    Comparison,
    Fixtures,
    ReferenceArrays,
    compare_values,
    failure,
)
from experiments.parity_checks.gradients import (
    Gradients,
    compare_gradients,
    compare_tensor,
    perturb_rounding,
)

FORWARD_TOLERANCE = 1e-4
LOSS_TOLERANCE = 1e-5
THRESHOLD_MARGIN = 1e-5
"""How close to a threshold, relative to the maximum logit, a pixel may fall on either side of it."""

UNDERFLOW = (-104.0, -87.0)
"""Logits whose probability is subnormal in float32, which may be flushed to zero."""

TERMS = {
    "bg_pos_aff": "background",
    "fg_pos_aff": "foreground",
    "neg_aff": "boundary",
    "dp_fg": "foreground_displacement",
    "dp_bg": "background_displacement",
    "n_bg_pairs": "background_pairs",
    "n_fg_pairs": "foreground_pairs",
    "n_neg_pairs": "boundary_pairs",
}
"""Our names of the reference's loss terms."""


def channels_last(maps: np.ndarray) -> jax.Array:
    """Transpose (b, c, h, w) to (b, h, w, c)."""
    return jnp.asarray(np.moveaxis(maps, 1, -1))


def channels_first(maps: Any) -> np.ndarray:
    """Transpose (b, h, w, c) to (b, c, h, w)."""
    return np.moveaxis(np.asarray(maps), -1, 1)


def split_params(model: nnx.Module) -> tuple[Any, Any, Any]:
    """Split a network into its graph, its parameters and its other variables."""
    parts: Any = nnx.split(model, nnx.Param, ...)
    return parts


def torch_tensors(graph: Any, params: Any, rest: Any) -> Gradients:
    """Return parameters, or their gradients, under PyTorch's names and in its layout."""
    return to_torch(nnx.merge(graph, params, rest, copy=True))


class NetworkComparisons:
    """Compare the files of one folder of fixtures that hold a network's outputs."""

    def __init__(self, fixtures: Fixtures) -> None:
        """Take the fixtures, which hold the weights."""
        self.fixtures = fixtures

    def densenet(self, arrays: ReferenceArrays) -> Iterator[Comparison]:
        """Compare the classifier.

        `grad/` holds the gradient of the loss plus that of the sum of all logits, which the backward
        passes for the CAMs added; `gradnorm/` was taken before them, from the loss alone.
        """
        network, images = "densenet121", channels_last(arrays["images_nchw"])
        labels = jnp.asarray(arrays["labels"].astype(np.int32))
        outputs = self.fixtures.shapes(network)["classifier.weight"][0]
        model = nnx.eval_shape(lambda: DenseNet(outputs, rngs=nnx.Rngs(0)))
        yield self._load_weights(network, model)
        graph, params, rest = split_params(model)

        @jax.jit
        def evaluate(params: Any, images: jax.Array, cotangents: jax.Array) -> tuple[Any, ...]:
            def forward(params: Any) -> tuple[jax.Array, jax.Array]:
                merged = nnx.merge(graph, params, rest, copy=True)
                features = merged.features(images)
                return merged.classify(features), features

            logits, vjp, features = jax.vjp(forward, params, has_aux=True)
            return logits, features, vjp(cotangents)[0]

        ignore: Policy = "ignore"

        def loss_of(logits: jax.Array) -> jax.Array:
            return classification_loss(logits, labels, (ignore,) * labels.shape[1])

        logits, features, _ = evaluate(params, images, jnp.zeros(labels.shape))
        loss, cotangents = jax.value_and_grad(loss_of)(logits)
        forward = {"logits": logits, "probs": jax.nn.sigmoid(logits)}
        for name, ours in {"features": channels_first(features), **forward}.items():
            yield compare_values(name, ours, arrays[name], FORWARD_TOLERANCE)
        yield compare_values("loss", loss, arrays["loss"], LOSS_TOLERANCE)

        def gradients_of(number: int) -> tuple[Gradients, Gradients]:
            perturbed = perturb_rounding(images, number)
            with_cams, plain = (
                torch_tensors(graph, evaluate(params, perturbed, cotangents + more)[2], rest)
                for more in (1, 0)
            )
            return with_cams, plain

        yield from compare_gradients(arrays, gradients_of)
        cams, _ = jax.jit(lambda f: grad_cam(f, model.classify))(features)
        size = (cams.shape[0], *images.shape[1:3], cams.shape[-1])
        maps = channels_first(jax.image.resize(cams, size, "linear"))
        reference = arrays["gradcam"]
        yield compare_values("gradcam", maps[:, :, ::4, ::4], reference, FORWARD_TOLERANCE)
        # Upsampled corners are constant, so that several pixels may share the maximum: at the
        # reference's pixel ours must be as high.
        peaks = arrays["gradcam_argmax"]
        at_peaks = np.take_along_axis(
            maps.reshape(*maps.shape[:2], -1),
            (peaks[..., 0] * maps.shape[-1] + peaks[..., 1])[..., None],
            -1,
        )[..., 0]
        yield compare_values("gradcam_argmax", at_peaks, maps.max((2, 3)), FORWARD_TOLERANCE)

        @jax.jit
        def train(params: Any, rest: Any) -> tuple[jax.Array, Any]:
            merged = nnx.merge(graph, params, rest, copy=True)
            return merged(images, train=True), nnx.state(merged, nnx.BatchStat)

        logits, statistics = train(params, rest)
        yield compare_values("logits_train", logits, arrays["logits_train"], FORWARD_TOLERANCE)
        nnx.update(model, statistics)
        after = to_torch(model)
        for key in arrays.suffixes("after_train/"):
            yield compare_tensor("after_train/", key, after, arrays, FORWARD_TOLERANCE)

    def deeplab(self, arrays: ReferenceArrays) -> Iterator[Comparison]:
        """Compare a segmenter; the file's name tells its encoder."""
        network, images = arrays.name.removesuffix(".npz"), channels_last(arrays["images_nchw"])
        shape = tuple(arrays["masks_shape"].tolist())
        bits = np.unpackbits(arrays["masks_nchw"], count=int(np.prod(shape))).reshape(shape)
        masks = channels_last(bits)
        encoders: dict[str, Callable[..., ResNet]] = {
            "resnet18": ResNet,
            "resnet50": ResNet.resnet50,
        }
        encoder = network.partition("_")[2]
        if encoder not in encoders:
            raise ValueError(f"no encoder of ours is {encoder}; there are {', '.join(encoders)}")
        model = DeepLabV3Plus(
            encoders[encoder](1, output_stride=16, rngs=nnx.Rngs(0)),
            outputs=shape[1],
            rngs=nnx.Rngs(0),
        )
        yield self._load_weights(network, model)
        graph, params, rest = split_params(model)

        @jax.jit
        def evaluate(params: Any, images: jax.Array) -> Any:
            def loss_of(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
                logits = nnx.merge(graph, params, rest, copy=True)(images)
                scores = dice(logits, masks, jnp.ones((1, 1, 1, 1)))
                return 1 - scores.mean(), (scores, logits)

            return jax.value_and_grad(loss_of, has_aux=True)(params)

        (loss, (scores, logits)), _ = evaluate(params, images)
        nchw = channels_first(logits)
        forward = {"logits": nchw[:, :, ::2, ::2], "logits_sum": nchw.astype(np.float64).sum()}
        for name, ours in forward.items():
            yield compare_values(name, ours, arrays[name], FORWARD_TOLERANCE)
        yield compare_values("loss", loss, arrays["loss"], LOSS_TOLERANCE)
        yield compare_values("dice", scores, arrays["dice"], LOSS_TOLERANCE)

        def gradients_of(number: int) -> tuple[Gradients, Gradients]:
            gradient = evaluate(params, perturb_rounding(images, number))[1]
            tensors = torch_tensors(graph, gradient, rest)
            return tensors, tensors

        yield from compare_gradients(arrays, gradients_of)
        yield compare_values("thresholds", THRESHOLDS, arrays["thresholds"], 1e-7)
        yield from compare_counts(np.asarray(logits), np.asarray(masks) != 0, arrays)

    @cached_property
    def _irnet(self) -> tuple[Comparison, IRNet, Any]:
        """The comparison of IRNet's weights, the network, and its jitted backbone."""
        backbone = ResNet.resnet50(1, output_stride=16, dilated=False, rngs=nnx.Rngs(0))
        model = IRNet(backbone, rngs=nnx.Rngs(0))
        comparison = self._load_weights("irnet", model)
        return comparison, model, jax.jit(lambda images: model.stages(images))

    def irnet_training(self, arrays: ReferenceArrays) -> Iterator[Comparison]:
        """Compare IRNet's training: maps, loss terms, and the gradients of its heads.

        `pos_sum` and `neg_sum` are the costs of all pairs as if every pair had the same label, and as if
        every pair had different ones.
        """
        comparison, model, backbone = self._irnet
        yield comparison
        radius = int(arrays.name.removeprefix("irnet_r").removesuffix(".npz"))
        images = channels_last(arrays["images_nchw"])
        labels = jnp.asarray(np.moveaxis(arrays["ir_labels"], 0, -1)[None].astype(np.int32))
        graph, params, rest = split_params(model.heads)

        @jax.jit
        def evaluate(params: Any, stages: Any) -> Any:
            def loss_of(params: Any) -> tuple[jax.Array, Any]:
                heads = nnx.merge(graph, params, rest, copy=True)
                edges, shifts = heads.boundary(stages), heads.displacement(stages, train=True)
                terms = pair_losses(edges, shifts, labels, radius)
                return terms["total"].sum(), (edges, shifts, terms)

            return jax.value_and_grad(loss_of, has_aux=True)(params)

        (loss, (edges, shifts, terms)), _ = evaluate(params, backbone(images))
        forward = {"edge_logits": edges[:, None], "displacement": channels_first(shifts)}
        for name, ours in forward.items():
            yield compare_values(name, ours, arrays[name], FORWARD_TOLERANCE)
        table, columns = arrays["terms"], arrays["terms_columns"].tolist()
        if set(columns) != set(TERMS):
            yield failure("terms_columns", f"they are {', '.join(columns)}")
        for index, column in enumerate(columns):
            if column in TERMS:
                tolerance = 0.0 if column.startswith("n_") else LOSS_TOLERANCE
                ours = terms[TERMS[column]]
                yield compare_values(f"terms/{column}", ours, table[:, index], tolerance)
        yield compare_values("total", loss, arrays["total"], LOSS_TOLERANCE)
        reach, (height, width) = radius - 1, edges.shape[1:3]
        planes = affinities(jax.nn.sigmoid(edges), radius)
        affinity = np.asarray(planes[:, :, : height - reach, reach : width - reach])
        # As in the release, the costs are float32 and offset by 1e-5, and their sums are float64.
        costs = {"pos_sum": affinity + np.float32(1e-5), "neg_sum": np.float32(1 + 1e-5) - affinity}
        for name, values in costs.items():
            total = -np.log(values).sum(dtype=np.float64)
            yield compare_values(name, total, arrays[name], LOSS_TOLERANCE)

        def gradients_of(number: int) -> tuple[Gradients, Gradients]:
            gradient = evaluate(params, backbone(perturb_rounding(images, number)))[1]
            changed = nnx.clone(model)
            nnx.update(changed.heads, gradient)
            tensors = {key: v for key, v in to_torch(changed).items() if key.startswith("fc_")}
            return tensors, tensors

        yield from compare_gradients(arrays, gradients_of)

    def irnet_inference(self, arrays: ReferenceArrays) -> Iterator[Comparison]:
        """Compare IRNet's boundaries and displacements of an image and its mirror image."""
        comparison, model, backbone = self._irnet
        yield comparison
        images = channels_last(arrays["images_nchw"])
        mirrored = float((images[:1, :, ::-1] != images[1:]).sum())
        note = "pixels of the second that are not the first's"
        yield Comparison("images_nchw", mirrored, 0.0, note)
        boundaries = jax.jit(lambda images: model.boundaries(images))(images[:1])
        yield compare_values("edge", boundaries, arrays["edge"], FORWARD_TOLERANCE)
        _, shifts = model.from_features(backbone(images[:1]))
        ours = channels_first(shifts)[0]
        yield compare_values("displacement", ours, arrays["displacement"], FORWARD_TOLERANCE)

    def _load_weights(self, network: str, model: nnx.Module) -> Comparison:
        """Load the fixtures' weights as a user would, and count tensors that a round trip changes."""
        state = self.fixtures.state_dict(network)
        load_torch(state, model)
        back, names = to_torch(model), set(state) - self.fixtures.aliases(network)
        changed = [n for n in names & set(back) if not np.array_equal(back[n], state[n])]
        note = f"{len(names)} tensors in and out again"
        return Comparison(f"weights of {network}", len(changed) + len(names ^ set(back)), 0.0, note)


def compare_counts(
    logits: np.ndarray, masks: np.ndarray, arrays: ReferenceArrays
) -> Iterator[Comparison]:
    """Compare pixels of intersection and union at every threshold.

    Pixels within rounding error of a threshold may differ. At threshold 0 these are the ones whose
    probability is subnormal.
    """
    probs = np.asarray(jax.nn.sigmoid(logits))
    pairs = zip(threshold_bins(probs), masks, strict=True)
    ours = stack([count(bins, target) for bins, target in pairs]).pooled()
    margin = THRESHOLD_MARGIN * np.abs(logits).max()
    cutoffs = np.log(THRESHOLDS[1:]) - np.log1p(-THRESHOLDS[1:])
    close = [(logits > UNDERFLOW[0]) & (logits < UNDERFLOW[1])]
    close += [np.abs(logits - cutoff) <= margin for cutoff in cutoffs]
    union = ours.predicted_area + ours.target_area[None] - ours.intersection
    for name, pixels, target in (
        ("intersection", ours.intersection, masks),
        ("union", union, ~masks),
    ):
        ambiguous = np.stack([(near & target).sum((0, 1, 2)) for near in close])
        reference = arrays[name]
        if reference.shape != pixels.shape:
            yield failure(name, f"ours has shape {pixels.shape}, the reference {reference.shape}")
            continue
        excess = np.maximum(np.abs(pixels - reference) - ambiguous, 0)
        note = f"pixels; {ambiguous.sum()} too near to tell"
        yield Comparison(name, float(excess.max()), 0.0, note)
