import json

import numpy as np

from chexseg_jax.evaluation.scoring import record_of, score_image, score_of
from chexseg_jax.masks import pack_rles


def test_scores_come_back_from_their_record():
    generator = np.random.default_rng(0)
    masks = (generator.random((40, 36)) < 0.4).astype(np.uint16)
    example = dict(image_id="p", masks=masks, reader_masks=masks, benchmarked=True, annotated=True)
    maps = {n: generator.random((32, 32, 10), np.float32) for n in ("run", "cam", "prior")}
    score = score_image(example, maps, {name: np.full(10, 0.5) for name in maps})
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
    drawn = pack_rles(json.loads(str(record["rles"])))
    np.testing.assert_array_equal(drawn, score.prediction)
