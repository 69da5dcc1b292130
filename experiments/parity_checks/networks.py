"""The networks against the references: forward, loss, gradients, statistics, and Grad-CAM."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from chexseg_jax.evaluation.metrics import THRESHOLDS, count, stack, threshold_bins
from chexseg_jax.losses import classification_loss, dice
from chexseg_jax.models.deeplab import DeepLabV3Plus
from chexseg_jax.models.densenet import DenseNet
from chexseg_jax.models.irnet import IRNet
from chexseg_jax.models.resnet import ResNet
from chexseg_jax.pseudolabels.affinity import affinities, pair_losses
from chexseg_jax.pseudolabels.gradcam import grad_cam
from chexseg_jax.weights.convert import load_torch, to_torch
from experiments.parity_checks.fixtures import Arrays, Fixtures, Line, compare, failure
from experiments.parity_checks.gradients import Gradients, compare_key, gradients, rounded

FORWARD = 1e-4
LOSS = 1e-5
SIDE = 1e-5
"""How near a threshold, relative to the largest logit, a pixel may fall on either side of it."""

VANISHING = (-104.0, -87.0)
"""Logits whose probability is too small for float32's normal numbers, and not for all its others."""

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
"""The columns of the reference's loss terms, and our names of them."""


def channels_last(maps: np.ndarray) -> jax.Array:
    """Returns maps of (b, c, h, w) as (b, h, w, c)."""
    return jnp.asarray(np.moveaxis(maps, 1, -1))


def channels_first(maps: Any) -> np.ndarray:
    """Returns maps of (b, h, w, c) as (b, c, h, w)."""
    return np.moveaxis(np.asarray(maps), -1, 1)


def parts(model: nnx.Module) -> tuple[Any, Any, Any]:
    """Returns a network's graph, its parameters, and the rest of its state."""
    found: Any = nnx.split(model, nnx.Param, ...)
    return found


class Networks:
    """The networks of one folder of fixtures, compared file by file."""

    def __init__(self, fixtures: Fixtures) -> None:
        """Builds nothing yet."""
        self.fixtures = fixtures

    def densenet(self, arrays: Arrays) -> Iterator[Line]:
        """Compares the classifier.

        The arrays `grad/` hold the gradient of the loss plus that of the sum of all logits, which the
        passes for the CAMs added to it; `gradnorm/` was taken before and is the loss's alone.
        """
        kind, images = "densenet121", channels_last(arrays["images_nchw"])
        labels = arrays["labels"].astype(np.int32)
        shapes = self.fixtures.shapes(kind)
        outputs = shapes["classifier.weight"][0]
        model = nnx.eval_shape(lambda: DenseNet(outputs, rngs=nnx.Rngs(0)))
        yield self._fill(kind, model)
        graph, params, rest = parts(model)

        @jax.jit
        def evaluate(params: Any, images: jax.Array, cotangents: jax.Array) -> tuple[Any, ...]:
            def forward(params: Any) -> tuple[jax.Array, jax.Array]:
                network = nnx.merge(graph, params, rest, copy=True)
                features = network.features(images)
                return network.classify(features), features

            logits, pull_back, features = jax.vjp(forward, params, has_aux=True)
            return logits, features, pull_back(cotangents)[0]

        def loss(logits: jax.Array) -> jax.Array:
            return classification_loss(logits, jnp.asarray(labels), ("ignore",) * labels.shape[1])

        logits, features, _ = evaluate(params, images, jnp.zeros(labels.shape))
        yield compare("features", channels_first(features), arrays["features"], FORWARD)
        yield compare("logits", logits, arrays["logits"], FORWARD)
        yield compare("probs", jax.nn.sigmoid(logits), arrays["probs"], FORWARD)
        value, cotangents = jax.value_and_grad(loss)(logits)
        yield compare("loss", value, arrays["loss"], LOSS)

        def gradient(number: int) -> tuple[Gradients, Gradients]:
            pixels = rounded(images, number)
            pair = (evaluate(params, pixels, cotangents + more)[2] for more in (1, 0))
            accumulated, plain = (self._named(graph, one, rest) for one in pair)
            return accumulated, plain

        yield from gradients(arrays, gradient)
        cams, _ = jax.jit(lambda f: grad_cam(f, model.classify))(features)
        size = (cams.shape[0], *images.shape[1:3], cams.shape[-1])
        large = channels_first(jax.image.resize(cams, size, "linear"))
        yield compare("gradcam", large[:, :, ::4, ::4], arrays["gradcam"], FORWARD)
        # Clamped corners are flat: the peak is where the reference has it if ours is as high there.
        peaks = arrays["gradcam_argmax"]
        there = np.take_along_axis(
            large.reshape(*large.shape[:2], -1),
            (peaks[..., 0] * large.shape[-1] + peaks[..., 1])[..., None],
            -1,
        )
        yield compare("gradcam_argmax", there[..., 0], large.max((2, 3)), FORWARD)

        @jax.jit
        def train(params: Any, rest: Any) -> tuple[jax.Array, Any]:
            network = nnx.merge(graph, params, rest, copy=True)
            return network(images, train=True), nnx.state(network, nnx.BatchStat)

        logits, statistics = train(params, rest)
        yield compare("logits_train", logits, arrays["logits_train"], FORWARD)
        nnx.update(model, statistics)
        after = to_torch(model)
        for key in arrays.under("after_train/"):
            yield compare_key("after_train/", key, after, arrays, FORWARD)

    def deeplab(self, arrays: Arrays) -> Iterator[Line]:
        """Compares a segmenter; `arrays` names the encoder."""
        kind, images = arrays.name.removesuffix(".npz"), channels_last(arrays["images_nchw"])
        shape = tuple(arrays["masks_shape"].tolist())
        bits = np.unpackbits(arrays["masks_nchw"], count=int(np.prod(shape))).reshape(shape)
        masks = channels_last(bits)
        encoders = {"resnet18": ResNet, "resnet50": ResNet.resnet50}
        encoder = kind.partition("_")[2]
        if encoder not in encoders:
            raise ValueError(f"no encoder of ours is {encoder}; there are {', '.join(encoders)}")
        model = DeepLabV3Plus(
            encoders[encoder](1, output_stride=16, rngs=nnx.Rngs(0)),
            outputs=shape[1],
            rngs=nnx.Rngs(0),
        )
        yield self._fill(kind, model)
        graph, params, rest = parts(model)

        @jax.jit
        def evaluate(params: Any, images: jax.Array) -> Any:
            def loss(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
                logits = nnx.merge(graph, params, rest, copy=True)(images)
                scores = dice(logits, masks, jnp.ones(shape[:2]))
                return 1 - scores.mean(), (scores, logits)

            return jax.value_and_grad(loss, has_aux=True)(params)

        (loss, (scores, logits)), _ = evaluate(params, images)
        large = channels_first(logits)
        yield compare("logits", large[:, :, ::2, ::2], arrays["logits"], FORWARD)
        yield compare("logits_sum", large.astype(np.float64).sum(), arrays["logits_sum"], FORWARD)
        yield compare("loss", loss, arrays["loss"], LOSS)
        yield compare("dice", scores, arrays["dice"], LOSS)

        def gradient(number: int) -> tuple[Gradients, Gradients]:
            named = self._named(graph, evaluate(params, rounded(images, number))[1], rest)
            return named, named

        yield from gradients(arrays, gradient)
        yield compare("thresholds", THRESHOLDS, arrays["thresholds"], 1e-7)
        yield from counted(np.asarray(logits), np.asarray(masks) != 0, arrays)

    @cached_property
    def _irnet(self) -> tuple[Line, IRNet, Any]:
        """The IRNet with its weights, and its backbone as a compiled function."""
        backbone = ResNet.resnet50(1, output_stride=16, dilated=False, rngs=nnx.Rngs(0))
        model = IRNet(backbone, rngs=nnx.Rngs(0))
        line = self._fill("irnet", model)
        return line, model, jax.jit(lambda images: model.stages(images))

    def irnet(self, arrays: Arrays) -> Iterator[Line]:
        """Compares IRNet's training: maps, loss terms, and the gradients of its heads.

        `pos_sum` and `neg_sum` are the costs of all pairs, whatever their labels: as if every pair
        were alike, and as if every pair differed.
        """
        line, model, backbone = self._irnet
        yield line
        radius = int(arrays.name.removeprefix("irnet_r").removesuffix(".npz"))
        images = channels_last(arrays["images_nchw"])
        labels = jnp.asarray(np.moveaxis(arrays["ir_labels"], 0, -1)[None].astype(np.int32))
        graph, params, rest = parts(model.heads)

        @jax.jit
        def evaluate(params: Any, stages: Any) -> Any:
            def loss(params: Any) -> tuple[jax.Array, Any]:
                heads = nnx.merge(graph, params, rest, copy=True)
                edges, moves = heads.boundary(stages), heads.displacement(stages, train=True)
                terms = pair_losses(edges, moves, labels, radius)
                return terms["total"].sum(), (edges, moves, terms)

            return jax.value_and_grad(loss, has_aux=True)(params)

        (total, (edges, moves, terms)), _ = evaluate(params, backbone(images))
        yield compare("edge_logits", edges[:, None], arrays["edge_logits"], FORWARD)
        yield compare("displacement", channels_first(moves), arrays["displacement"], FORWARD)
        table, columns = arrays["terms"], arrays["terms_columns"].tolist()
        if set(columns) != set(TERMS):
            yield failure("terms_columns", f"they are {', '.join(columns)}")
        for index, column in enumerate(columns):
            if column in TERMS:
                exact = 0.0 if column.startswith("n_") else LOSS
                yield compare(f"terms/{column}", terms[TERMS[column]], table[:, index], exact)
        yield compare("total", total, arrays["total"], LOSS)
        reach = radius - 1
        bounds = affinities(jax.nn.sigmoid(edges), radius)
        alike = np.asarray(bounds[:, :, : edges.shape[1] - reach, reach : edges.shape[2] - reach])
        # As in the release, the costs are float32 and clipped by 1e-5; the sums are not.
        costs = {"pos_sum": alike + np.float32(1e-5), "neg_sum": np.float32(1 + 1e-5) - alike}
        for name, values in costs.items():
            yield compare(name, -np.log(values).sum(dtype=np.float64), arrays[name], LOSS)

        def gradient(number: int) -> tuple[Gradients, Gradients]:
            changed = nnx.clone(model)
            nnx.update(changed.heads, evaluate(params, backbone(rounded(images, number)))[1])
            named = {key: v for key, v in to_torch(changed).items() if key.startswith("fc_")}
            return named, named

        yield from gradients(arrays, gradient)

    def inference(self, arrays: Arrays) -> Iterator[Line]:
        """Compares IRNet's boundaries and displacements of an image and its mirror image."""
        line, model, backbone = self._irnet
        yield line
        images = channels_last(arrays["images_nchw"])
        mirrored = float((images[:1, :, ::-1] != images[1:]).sum())
        yield Line("images_nchw", mirrored, 0.0, "pixels of the second that are not the first's")
        bounds = jax.jit(lambda images: model.boundaries(images))(images[:1])
        yield compare("edge", bounds, arrays["edge"], FORWARD)
        _, moves = model.from_features(backbone(images[:1]))
        yield compare("displacement", channels_first(moves)[0], arrays["displacement"], FORWARD)

    def _fill(self, kind: str, model: nnx.Module) -> Line:
        """Loads the drawn weights as a user would, and counts the tensors that come out changed."""
        state = self.fixtures.state(kind)
        load_torch(state, model)
        back, names = to_torch(model), set(state) - self.fixtures.aliases(kind)
        changed = [n for n in names & set(back) if not np.array_equal(back[n], state[n])]
        note = f"{len(names)} tensors in and out again"
        return Line(f"weights of {kind}", len(changed) + len(names ^ set(back)), 0.0, note)

    @staticmethod
    def _named(graph: Any, gradient: Any, rest: Any) -> dict[str, np.ndarray]:
        """Returns gradients under PyTorch's names and in its layout."""
        return to_torch(nnx.merge(graph, gradient, rest, copy=True))


def counted(logits: np.ndarray, masks: np.ndarray, arrays: Arrays) -> Iterator[Line]:
    """Compares pixels in intersection and union at every threshold.

    Of pixels too near a threshold to tell, any number may differ. At threshold 0 these are the ones
    whose probability float32 may or may not tell from zero.
    """
    chances = np.asarray(jax.nn.sigmoid(logits))
    pairs = zip(threshold_bins(chances), masks, strict=True)
    ours = stack([count(bins, truth) for bins, truth in pairs]).pooled()
    reach = SIDE * np.abs(logits).max()
    cuts = np.log(THRESHOLDS[1:]) - np.log1p(-THRESHOLDS[1:])
    near = [(logits > VANISHING[0]) & (logits < VANISHING[1])]
    near += [np.abs(logits - cut) <= reach for cut in cuts]
    inside = np.stack([(some & masks).sum((0, 1, 2)) for some in near])
    outside = np.stack([(some & ~masks).sum((0, 1, 2)) for some in near])
    unions = ours.predicted_area + ours.target_area[None] - ours.intersection
    for name, found, doubt in (
        ("intersection", ours.intersection, inside),
        ("union", unions, outside),
    ):
        reference = arrays[name]
        if reference.shape != found.shape:
            yield failure(name, f"ours has shape {found.shape}, the reference {reference.shape}")
            continue
        beyond = np.maximum(np.abs(found - reference) - doubt, 0)
        yield Line(name, float(beyond.max()), 0.0, f"pixels; {doubt.sum()} too near to tell")
