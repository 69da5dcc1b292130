"""Losses of classifier and segmenter: cross entropy with uncertain labels, and soft Dice.

Uncertain labels are treated as the CheXpert paper proposes (Irvin et al. 2019, §3). The release's
Dice counts every pathology of every image; ours leaves out the ignored ones.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8

from chexseg_jax.pathologies import BLANK, OBSERVATIONS, UNCERTAIN

Policy = Literal["ignore", "zeros", "ones", "3-class", "self-trained"]
"""How the classifier is trained on an uncertain label. A blank label is always negative."""

POLICIES: tuple[Policy, ...] = get_args(Policy)

PAPER_POLICIES: dict[str, Policy] = {
    "Atelectasis": "ones",
    "Cardiomegaly": "3-class",
    "Consolidation": "self-trained",
    "Edema": "ones",
    "Pleural Effusion": "3-class",
}
"""The best policy for each observation on CheXpert's validation set (Irvin et al. 2019, table 3)."""


def policies_of(choice: Policy | Literal["per-finding"]) -> tuple[Policy, ...]:
    """Return the policy of each observation; `per-finding` is the CheXpert paper's choice.

    The paper names one for five observations; the other nine ignore uncertain labels.
    """
    if choice == "per-finding":
        return tuple(PAPER_POLICIES.get(name, "ignore") for name in OBSERVATIONS)
    return (choice,) * len(OBSERVATIONS)


def classification_loss(
    outputs: Float[Array, "b m"],
    labels: Int[Array, "b n"],
    policies: tuple[Policy, ...],
    teacher_probs: Float[Array, "b n"] | None = None,
) -> Float[Array, ""]:
    """Compute the mean cross entropy over the labels that are not ignored.

    On a head of three logits an observation, (uncertain, negative, positive), the `3-class` policy takes
    the softmax of all three and the others the difference of the last two, so that one head serves any
    mixture of policies.

    Args:
        outputs: of the head, one an observation, or three.
        labels: 1, 0, -1 uncertain, -2 blank.
        policies: one for each of the n observations.
        teacher_probs: a teacher's probabilities, the targets of uncertain labels under the policy
            `self-trained`; without them such labels are ignored.
    """
    policy = np.asarray(policies)[None]
    labels = jnp.where(labels == BLANK, 0, labels)
    uncertain = labels == UNCERTAIN
    uncertain_targets = jnp.where(policy == "ones", 1.0, 0.0)
    if teacher_probs is not None:
        uncertain_targets = jnp.where(policy == "self-trained", teacher_probs, uncertain_targets)
    ignored = (policy == "ignore") | ((policy == "self-trained") & (teacher_probs is None))
    targets = jnp.where(uncertain, uncertain_targets, labels.astype(jnp.float32))
    outputs = outputs.astype(jnp.float32)
    losses = optax.sigmoid_binary_cross_entropy(finding_logits(outputs, labels.shape[1]), targets)
    if outputs.shape[1] != labels.shape[1]:
        scores = outputs.reshape(*labels.shape, 3)
        ternary = optax.softmax_cross_entropy_with_integer_labels(scores, labels + 1)
        losses = jnp.where(policy == "3-class", ternary, losses)
    valid = (~(uncertain & ignored)).astype(jnp.float32)
    return (losses * valid).sum() / jnp.maximum(valid.sum(), 1)


def finding_logits(outputs: Float[Array, "b m"], observations: int) -> Float[Array, "b n"]:
    """Return the log odds of positive against negative, ignoring the uncertain logit."""
    if outputs.shape[1] == observations:
        return outputs
    scores = outputs.reshape(outputs.shape[0], observations, 3)
    return scores[..., 2] - scores[..., 1]


SegmentationLoss = Literal["dice", "dice+cross-entropy"]
SegmentationTargets = Literal["hard", "soft", "confident"]

UNSURE = (0.25, 0.75)
"""Between these, probabilities are ignored as `confident` targets."""


def segmentation_targets(
    masks: UInt8[Array, "b h w k"], valid: Bool[Array, "b k"], kind: SegmentationTargets
) -> tuple[Float[Array, "b h w k"], Float[Array, "b #h #w k"]]:
    """Return the targets of 8-bit masks, and the weight of each, 1 or 0.

    hard: whether a mask is more likely than not; soft: its probability; confident: hard, with a weight
    of 0 where the probability lies within `UNSURE`. All three are the same for hard masks, of 0 and 255.
    A pathology that is not `valid` in an image has no weight there.
    """
    weights = valid[:, None, None].astype(jnp.float32)
    probs = masks.astype(jnp.float32) / 255
    if kind == "soft":
        return probs, weights
    if kind == "confident":
        weights = weights * ((probs <= UNSURE[0]) | (probs >= UNSURE[1]))
    return (probs > 0.5).astype(jnp.float32), weights


def segmentation_loss(
    logits: Float[Array, "b h w k"],
    targets: Shaped[Array, "b h w k"],
    weights: Shaped[Array, "#b #h #w #k"],
    kind: SegmentationLoss,
) -> Float[Array, ""]:
    """Compute 1 minus the mean Dice score, plus the mean cross entropy if asked.

    Dice alone is the paper's; the sum is nnU-Net's (Isensee et al. 2021), whose gradient does not vanish
    where a mask is empty. Targets may be soft, on [0, 1]. The cross entropy is averaged over the pixels
    of each pathology in each image, then over those that have any weight.
    """
    loss = 1 - dice(logits, targets, weights).mean()
    if kind == "dice":
        return loss
    targets = targets.astype(jnp.float32)
    entropies = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets)
    weights = jnp.broadcast_to(weights.astype(jnp.float32), entropies.shape)
    pixels = weights.sum((1, 2))
    means = (entropies * weights).sum((1, 2)) / jnp.maximum(pixels, 1)
    return loss + means.sum() / jnp.maximum((pixels > 0).sum(), 1)


def dice(
    logits: Float[Array, "b h w k"],
    targets: Shaped[Array, "b h w k"],
    weights: Shaped[Array, "#b #h #w #k"],
) -> Float[Array, "k"]:
    """Compute the soft Dice score of each pathology, pooled over the batch.

    (2 sum p g + 1) / (sum p + sum g + 1), as in the release, over the pixels with a weight. The loss is
    1 minus the mean.
    """
    weights = weights.astype(jnp.float32)
    probs = jax.nn.sigmoid(logits.astype(jnp.float32)) * weights
    targets = targets.astype(jnp.float32) * weights
    intersection = (probs * targets).sum((0, 1, 2))
    return (2 * intersection + 1) / (probs.sum((0, 1, 2)) + targets.sum((0, 1, 2)) + 1)
