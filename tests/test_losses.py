import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chexseg_jax.losses import (
    classification_loss,
    dice,
    finding_logits,
    policies_of,
    segmentation_loss,
    segmentation_targets,
)
from chexseg_jax.pathologies import OBSERVATIONS

LABELS = jnp.array([[1, 0, -1, -2]])
LOGITS = jnp.array([[0.5, -1.0, 2.0, 0.3]])


def cross_entropy(logit, target):
    chance = 1 / (1 + np.exp(-logit))
    return -target * np.log(chance) - (1 - target) * np.log(1 - chance)


@pytest.mark.parametrize(("policy", "uncertain"), [("ignore", None), ("zeros", 0.0), ("ones", 1.0)])
def test_what_an_uncertain_label_means(policy, uncertain):
    terms = [cross_entropy(0.5, 1), cross_entropy(-1.0, 0), cross_entropy(0.3, 0)]
    if uncertain is not None:
        terms.append(cross_entropy(2.0, uncertain))
    loss = classification_loss(LOGITS, LABELS, (policy,) * 4)
    np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-6)


def test_a_teacher_is_used_only_by_the_self_trained_policy():
    policies = ("self-trained", "self-trained", "self-trained", "ignore")
    without = classification_loss(LOGITS, LABELS, policies)
    ignored = classification_loss(LOGITS, LABELS, ("ignore",) * 4)
    np.testing.assert_allclose(without, ignored)
    taught = classification_loss(LOGITS, LABELS, policies, jnp.full((1, 4), 0.8))
    terms = [
        cross_entropy(0.5, 1),
        cross_entropy(-1.0, 0),
        cross_entropy(2.0, 0.8),
        cross_entropy(0.3, 0),
    ]
    np.testing.assert_allclose(taught, np.mean(terms), rtol=1e-6)


def test_three_classes_and_two_share_a_head():
    scores = np.array([[0.1, 0.4, -0.2], [1.0, 0.2, 0.6], [0.3, -0.5, 0.9], [0.0, 0.7, 0.1]])
    outputs = jnp.float32(scores.reshape(1, 12))
    logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    terms = [-logs[0, 2], -logs[1, 1], -logs[2, 0], cross_entropy(0.1 - 0.7, 0)]
    policies = ("3-class", "3-class", "3-class", "ones")
    np.testing.assert_allclose(
        classification_loss(outputs, LABELS, policies), np.mean(terms), rtol=1e-6
    )
    odds = scores[:, 2] - scores[:, 1]
    np.testing.assert_allclose(finding_logits(outputs, 4)[0], odds, rtol=1e-5)


def test_all_labels_uncertain_is_no_loss():
    labels = jnp.full((1, 4), -1)
    assert float(classification_loss(LOGITS, labels, ("ignore",) * 4)) == 0.0


def test_the_papers_policies():
    policies = dict(zip(OBSERVATIONS, policies_of("per-finding"), strict=True))
    assert policies["Atelectasis"] == policies["Edema"] == "ones"
    assert policies["Cardiomegaly"] == policies["Pleural Effusion"] == "3-class"
    assert policies["Consolidation"] == "self-trained"
    assert policies["Fracture"] == "ignore"


def test_dice_by_hand():
    logits = jnp.array([[0.0, 10.0], [-10.0, 0.0]])[None, ..., None]
    masks = jnp.array([[1, 1], [0, 0]])[None, ..., None]
    chances = 1 / (1 + np.exp(-np.array([0.0, 10.0, -10.0, 0.0])))
    expected = (2 * (chances[0] + chances[1]) + 1) / (chances.sum() + 2 + 1)
    np.testing.assert_allclose(dice(logits, masks, jnp.ones((1, 1, 1, 1)))[0], expected, rtol=1e-6)


def test_dice_is_pooled_over_the_batch_and_skips_the_ignored():
    logits = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
    masks = jax.random.bernoulli(jax.random.key(1), 0.4, (3, 4, 4, 2)).astype(jnp.uint8)
    valid = jnp.array([[1, 1], [1, 0], [1, 1]])[:, None, None]
    scores = dice(logits, masks, valid)
    rows = jnp.array([0, 2])
    alone = dice(logits[rows], masks[rows], jnp.ones((1, 1, 1, 1)))
    np.testing.assert_allclose(scores[1], alone[1], rtol=1e-6)
    assert float(scores[0]) != pytest.approx(float(alone[0]))
    gradients = jax.grad(lambda z: dice(z, masks, valid).sum())(logits)
    assert float(jnp.abs(gradients[1, ..., 1]).max()) == 0.0


def test_cross_entropy_beside_dice_by_hand():
    logits = jnp.zeros((2, 1, 2, 1)).at[0, 0, 0, 0].set(2.0)
    masks = jnp.zeros((2, 1, 2, 1)).at[0, 0, 0, 0].set(1.0)
    valid = jnp.array([[True], [False]])[:, None, None]
    plain = 1 - dice(logits, masks, valid).mean()
    np.testing.assert_allclose(segmentation_loss(logits, masks, valid, "dice"), plain)
    entropy = (np.log1p(np.exp(-2.0)) + np.log(2)) / 2  # of the valid image's two pixels
    found = segmentation_loss(logits, masks, valid, "dice+cross-entropy")
    np.testing.assert_allclose(found, plain + entropy, rtol=1e-6)


def test_cross_entropy_moves_an_empty_mask_where_dice_hardly_does():
    masks, valid = jnp.zeros((1, 8, 8, 1)), jnp.ones((1, 1, 1, 1), bool)
    logits = jnp.full((1, 8, 8, 1), 5.0)
    both, alone = (
        jnp.abs(jax.grad(lambda x, k=kind: segmentation_loss(x, masks, valid, k))(logits)).sum()
        for kind in ("dice+cross-entropy", "dice")
    )
    assert float(both) > 10 * float(alone)


MASKS = np.array([[0, 51, 64, 128], [191, 192, 204, 255]], np.uint8)[None, ..., None]
TARGETS = {
    "hard": ([0, 0, 0, 1, 1, 1, 1, 1], [1] * 8),
    "soft": (MASKS.ravel() / 255, [1] * 8),
    "confident": ([0, 0, 0, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 1, 1, 1]),  # 64 is .251, 191 is .749
}


@pytest.mark.parametrize("kind", TARGETS)
def test_targets_of_8_bit_masks_by_hand(kind):
    targets, weights = segmentation_targets(jnp.array(MASKS), jnp.array([[True]]), kind)
    weights = jnp.broadcast_to(weights, targets.shape)
    np.testing.assert_allclose(np.ravel(targets), TARGETS[kind][0], rtol=1e-6)
    np.testing.assert_array_equal(np.ravel(weights), TARGETS[kind][1])
    _, none = segmentation_targets(jnp.array(MASKS), jnp.array([[False]]), kind)
    assert float(jnp.abs(none).sum()) == 0


@pytest.mark.parametrize("loss", ["dice", "dice+cross-entropy"])
def test_hard_masks_have_the_same_loss_as_any_targets(loss):
    logits = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
    masks = jax.random.bernoulli(jax.random.key(1), 0.4, (3, 4, 4, 2))
    valid = jnp.array([[True, True], [True, False], [True, True]])
    expected = segmentation_loss(logits, masks, valid[:, None, None], loss)
    for kind in TARGETS:
        targets = segmentation_targets(masks * jnp.uint8(255), valid, kind)
        assert float(segmentation_loss(logits, *targets, loss)) == float(expected)


def test_loss_of_soft_and_ignored_pixels_by_hand():
    logits = np.array([1.0, -2.0, 0.5, 3.0])
    targets, weights = np.array([0.8, 0.1, 0.5, 1.0]), np.array([1.0, 1.0, 0.0, 1.0])
    arrays = (jnp.float32(a).reshape(1, 2, 2, 1) for a in (logits, targets, weights))
    probs = 1 / (1 + np.exp(-logits))
    score = (2 * (probs * targets * weights).sum() + 1) / (
        (probs * weights).sum() + (targets * weights).sum() + 1
    )
    entropies = [cross_entropy(z, t) for z, t in zip(logits, targets, strict=True)]
    expected = 1 - score + (entropies[0] + entropies[1] + entropies[3]) / 3
    np.testing.assert_allclose(
        segmentation_loss(*arrays, "dice+cross-entropy"), expected, rtol=1e-6
    )


def test_an_ignored_pixel_has_no_gradient():
    masks = jnp.full((1, 2, 2, 1), 255, jnp.uint8).at[0, 0, 1, 0].set(120)
    targets = segmentation_targets(masks, jnp.ones((1, 1), bool), "confident")
    gradients = jax.grad(lambda z: segmentation_loss(z, *targets, "dice+cross-entropy"))(
        jnp.zeros((1, 2, 2, 1))
    )
    assert (np.ravel(gradients) != 0).tolist() == [True, False, True, True]
