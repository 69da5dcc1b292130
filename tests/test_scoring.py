import json

import numpy as np

from chexseg_jax.evaluation.metrics import hits, iou_per_image
from chexseg_jax.evaluation.scoring import record_of, score_image, score_of
from chexseg_jax.images import unletterbox
from chexseg_jax.masks import pack, pack_rles, unpack


def random_example():
    """An image's masks, a reader's, three methods' maps, some on a threshold, and thresholds."""
    generator = np.random.default_rng(0)
    bits = [generator.integers(0, 512, (40, 36)).astype(np.uint16) for _ in range(2)]
    example = dict(image_id="p", masks=bits[0], reader_masks=bits[1], benchmarked=True)
    maps = {n: generator.random((32, 32, 10), np.float32) for n in ("run", "cam", "prior")}
    maps["run"][0, :20] = (np.arange(20) * 0.05).astype(np.float32)[:, None]
    return {**example, "annotated": True}, maps, {name: np.arange(10) * 0.05 for name in maps}


def test_one_pathology_at_a_time_equals_ten_at_once():
    example, maps, thresholds = random_example()
    score = score_image(example, maps, thresholds)
    targets = unpack(example["masks"]) > 0
    native = {name: unletterbox(values, 40, 36) for name, values in maps.items()}
    masks = {name: values > thresholds[name] for name, values in native.items()}
    masks["human"] = unpack(example["reader_masks"]) > 0
    for name, mask in masks.items():
        for only in (True, False):
            expected = iou_per_image(targets, mask, true_pos_only=only)
            np.testing.assert_array_equal(score.ious[name][only], expected)
    np.testing.assert_array_equal(score.hit, hits(native["cam"], targets))
    np.testing.assert_array_equal(score.prediction, pack(masks["run"]))


def test_scores_come_back_from_their_record():
    score = score_image(*random_example())
    record = record_of(score)
    again = score_of(record)
    assert (again.image_id, again.annotated) == ("p", True)
    assert list(again.counts) == list(score.counts) == ["run", "cam", "prior", "human"]
    for name, counts in score.counts.items():
        for field, values in vars(counts).items():
            np.testing.assert_array_equal(getattr(again.counts[name], field), values)
        for only in (True, False):
            np.testing.assert_array_equal(again.ious[name][only], score.ious[name][only])
    np.testing.assert_array_equal(again.hit, score.hit)
    prediction = pack_rles(json.loads(str(record["rles"])))
    np.testing.assert_array_equal(prediction, score.prediction)
