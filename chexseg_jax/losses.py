"""Losses of the three trainings that need no geometry: masked cross entropies and class-average Dice.

Uncertain labels are treated as the CheXpert paper proposes (Irvin et al. 2019, §3). The release's
Dice counts every pathology of every image; ours leaves out those whose truth is not known.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Shaped

from chexseg_jax.pathologies import BLANK, OBSERVATIONS, UNCERTAIN

Policy = Literal["ignore", "zeros", "ones", "3-class", "self-trained"]
"""What an uncertain label means to the classifier. A blank label is always negative."""

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
    """Returns the policy of each observation; `per-finding` is the CheXpert paper's choice.

    The paper names one for five observations; the other nine then ignore uncertain labels.
    """
    if choice == "per-finding":
        return tuple(PAPER_POLICIES.get(name, "ignore") for name in OBSERVATIONS)
    return (choice,) * len(OBSERVATIONS)


def classification_loss(
    outputs: Float[Array, "b m"],
    labels: Int[Array, "b n"],
    policies: tuple[Policy, ...],
    beliefs: Float[Array, "b n"] | None = None,
) -> Float[Array, ""]:
    """Returns the mean cross entropy of the labels that count.

    With a head of three scores an observation, (uncertain, negative, positive), the `3-class` policy
    compares all three and the others the last two, so that one head serves any mixture of policies.

    Args:
        outputs: the head's, one an observation, or three.
        labels: 1, 0, -1 uncertain, -2 blank.
        policies: one for each of the n observations.
        beliefs: probabilities that stand in for uncertain labels where the policy is `self-trained`;
            without them such labels are ignored.
    """
    chosen = np.asarray(policies)[None]
    labels = jnp.where(labels == BLANK, 0, labels)
    uncertain = labels == UNCERTAIN
    stand_in = jnp.where(chosen == "ones", 1.0, 0.0)
    if beliefs is not None:
        stand_in = jnp.where(chosen == "self-trained", beliefs, stand_in)
    ignored = (chosen == "ignore") | ((chosen == "self-trained") & (beliefs is None))
    targets = jnp.where(uncertain, stand_in, labels.astype(jnp.float32))
    outputs = outputs.astype(jnp.float32)
    losses = optax.sigmoid_binary_cross_entropy(finding_logits(outputs, labels.shape[1]), targets)
    if outputs.shape[1] != labels.shape[1]:
        scores = outputs.reshape(*labels.shape, 3)
        ternary = optax.softmax_cross_entropy_with_integer_labels(scores, labels + 1)
        losses = jnp.where(chosen == "3-class", ternary, losses)
    counted = (~(uncertain & ignored)).astype(jnp.float32)
    return (losses * counted).sum() / jnp.maximum(counted.sum(), 1)


def finding_logits(outputs: Float[Array, "b m"], observations: int) -> Float[Array, "b n"]:
    """Returns the log odds of positive against negative, whatever the uncertain score says."""
    if outputs.shape[1] == observations:
        return outputs
    scores = outputs.reshape(outputs.shape[0], observations, 3)
    return scores[..., 2] - scores[..., 1]


def dice(
    logits: Float[Array, "b h w k"], masks: Shaped[Array, "b h w k"], known: Shaped[Array, "b k"]
) -> Float[Array, "k"]:
    """Returns the soft Dice score of each pathology, pooled over the batch.

    (2 sum p g + 1) / (sum p + sum g + 1), as in the release; pathologies of images where `known` is 0
    take no part. The loss is 1 minus the mean.
    """
    weights = known[:, None, None, :].astype(jnp.float32)
    probabilities = jax.nn.sigmoid(logits.astype(jnp.float32)) * weights
    truths = masks.astype(jnp.float32) * weights
    shared = (probabilities * truths).sum((0, 1, 2))
    return (2 * shared + 1) / (probabilities.sum((0, 1, 2)) + truths.sum((0, 1, 2)) + 1)
