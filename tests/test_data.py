import numpy as np
import pytest
from grain.python import ReadOptions

from chexseg_jax.training.data import (
    Subset,
    augment,
    letterboxed,
    mix,
    ordered_batches,
    pad,
    process_batches,
    sample_indices,
    shuffled_repeated,
)


class Numbers:
    """Sixty examples that say who they are: their picture's grey level."""

    fingerprint = "numbers"

    def __init__(self, start=0, count=60):
        self.start, self.count, self.reads = start, count, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.reads += 1
        number = self.start + int(index)
        image = np.full((40, 32, 1), number, np.uint8)
        masks = np.zeros((40, 32), np.uint16)
        masks[8:16, 8:16] = 1
        return {
            "image_id": f"p{number}",
            "image": image,
            "labels": np.full(14, index % 2, np.int8),
            "masks": masks,
        }


def sources(dataset, count):
    """Which source each of the first examples came from: 1 expert, 0 pseudo."""
    return np.array([dataset[i]["images"].max() >= 100 for i in range(count)])


def mixture(rho, seed=0):
    expert = shuffled_repeated(letterboxed(Numbers(100), 16), seed)
    pseudo = shuffled_repeated(letterboxed(Numbers(1), 16), seed + 1)
    return mix(expert, pseudo, rho, seed)


@pytest.mark.parametrize("rho", [0.05, 0.37, 0.5, 0.85, 0.9, 0.99])
def test_rho_is_the_chance_of_an_expert(rho):
    drawn = sources(mixture(rho), 2000)
    assert abs(drawn.mean() - rho) < 4 * np.sqrt(rho * (1 - rho) / 2000)
    runs = np.diff(np.flatnonzero(np.diff(drawn.astype(int))))
    assert len(set(runs.tolist())) > 3  # drawn, not dealt out in turn


@pytest.mark.parametrize(("rho", "expert"), [(0.0, 0), (1.0, 500)])
def test_the_ends_see_one_source(rho, expert):
    assert sources(mixture(rho), 500).sum() == expert


def test_near_rhos_differ():
    # The release's tenths make these the same.
    assert (sources(mixture(0.85), 2000) != sources(mixture(0.8), 2000)).any()


def test_a_mix_is_a_function_of_seed_and_index():
    first, again, other = mixture(0.6), mixture(0.6), mixture(0.6, seed=1)
    for index in (0, 7, 555):
        np.testing.assert_array_equal(first[index]["images"], again[index]["images"])
    assert (sources(first, 200) != sources(other, 200)).any()


@pytest.mark.parametrize("rho", [-0.1, 1.5, float("nan")])
def test_rho_outside_the_unit_interval_is_refused(rho):
    with pytest.raises(ValueError, match="rho must lie in"):
        mixture(rho)


def test_an_epoch_sees_everything_once_and_the_next_in_another_order():
    dataset = shuffled_repeated(letterboxed(Numbers(), 16), 3)
    epochs = [[int(dataset[i]["images"].max()) for i in range(s, s + 60)] for s in (0, 60)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(60))
    assert epochs[0] != epochs[1]


def test_resuming_is_slicing():
    dataset = process_batches(mixture(0.5), 8)
    whole = [batch["images"] for batch in dataset[:6]]
    later = [batch["images"] for batch in dataset[3:6]]
    np.testing.assert_array_equal(whole[3:], later)


def test_a_batch_that_does_not_divide_over_the_devices_is_refused():
    with pytest.raises(ValueError, match=r"batch of 12 .* 8 devices"):
        process_batches(mixture(0.5), 12)


def test_once_gives_everything_in_order_and_pads_the_last():
    batches = list(ordered_batches(letterboxed(Numbers(), 16), 16))
    assert [count for _, count in batches] == [16, 16, 16, 12]
    assert all(len(batch["images"]) == 16 for batch, _ in batches)
    ids = [name for batch, count in batches for name in batch["image_id"][:count]]
    assert ids == [f"p{i}" for i in range(60)]
    np.testing.assert_array_equal(
        batches[-1][0]["images"][12:], batches[-1][0]["images"][:1].repeat(4, 0)
    )


def test_nothing_gives_no_batches():
    assert list(ordered_batches(letterboxed(Subset(Numbers(), []), 16), 16)) == []


def test_pad_of_a_full_batch_is_the_batch():
    batch = {"a": np.arange(4)}
    np.testing.assert_array_equal(pad(batch, 4)["a"], np.arange(4))


def test_what_is_kept_is_read_once():
    source = Numbers(count=5)
    kept = letterboxed(source, 16, cache=3)
    for _ in range(2):
        for index in range(5):
            assert kept[index]["image_id"] == f"p{index}"
    assert source.reads == 5 + 2


def test_validation_again_decodes_nothing_again():
    source = Numbers(count=20)
    validation = letterboxed(source, 16, cache=20)
    passes = [[batch["images"] for batch, _ in ordered_batches(validation, 8)] for _ in range(3)]
    assert source.reads == 20
    np.testing.assert_array_equal(passes[2], passes[0])


def test_subsets_and_choices():
    assert sample_indices(10, None, 0) == list(range(10)) == sample_indices(10, 20, 0)
    chosen = sample_indices(60, 7, 1)
    assert len(set(chosen)) == 7 and chosen == sample_indices(60, 7, 1) != sample_indices(60, 7, 2)
    assert [Subset(Numbers(), chosen)[i]["image_id"] for i in range(7)] == [f"p{i}" for i in chosen]


def test_another_choice_is_another_fingerprint():
    prints = {Subset(Numbers(), chosen).fingerprint for chosen in ([0, 1], [1, 0], [0, 2], [0])}
    assert len(prints) == 4
    assert Subset(Numbers(), [0, 1]).fingerprint == Subset(Numbers(), [0, 1]).fingerprint


def test_masks_and_seeds_move_with_the_image():
    image = np.zeros((64, 64, 1), np.uint8)
    image[20:40, 16:48] = 200
    example = {
        "images": image,
        "masks": (image > 0).astype(np.uint8),
        "seeds": np.where(image[::4, ::4] > 0, 1, 0).astype(np.int8),
    }
    for seed in range(5):
        moved = augment(example, np.random.default_rng(seed), strength=0.4)
        drawn, mask = moved["images"][..., 0] > 60, moved["masks"][..., 0] > 0
        assert (drawn & mask).sum() > 0.85 * (drawn | mask).sum()
        seeds = moved["seeds"][..., 0]
        assert set(np.unique(seeds)) <= {-1, 0, 1}
        found, wanted = seeds == 1, mask[2::4, 2::4]
        assert (found & wanted).sum() > 0.6 * (found | wanted).sum()


def test_no_strength_changes_nothing():
    image = np.random.default_rng(0).integers(1, 255, (32, 32, 1)).astype(np.uint8)
    moved = augment({"images": image}, np.random.default_rng(0), strength=0.0)
    np.testing.assert_array_equal(moved["images"], image)


def test_a_source_of_nothing_is_refused():
    with pytest.raises(ValueError, match="holds no examples"):
        shuffled_repeated(Subset(Numbers(), []), 0)


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_a_batch_is_the_same_over_any_number_of_processes(monkeypatch, processes):
    def batches():
        expert = shuffled_repeated(letterboxed(Numbers(100), 16), 0, strength=0.3)
        pseudo = shuffled_repeated(letterboxed(Numbers(1, count=3), 16), 1, strength=0.2)
        return list(process_batches(mix(expert, pseudo, 0.5, 0), 16)[5:12])

    alone = batches()
    monkeypatch.setattr("jax.process_count", lambda: processes)
    parts = []
    for index in range(processes):
        monkeypatch.setattr("jax.process_index", lambda index=index: index)
        parts.append(batches())
    for batch, *split in zip(alone, *parts, strict=True):
        for name, values in batch.items():
            together = np.concatenate([part[name] for part in split])
            np.testing.assert_array_equal(together, values)


def test_a_process_reads_only_its_rows(monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 4)
    source = Numbers()
    process_batches(shuffled_repeated(letterboxed(source, 16), 0), 16)[3]
    assert source.reads == 4


@pytest.mark.parametrize("threads", [0, 1, 4, 8])
def test_the_number_of_reading_threads_changes_no_batch(threads):
    experts = shuffled_repeated(letterboxed(Numbers(100), 16), 0, strength=0.3)
    dataset = process_batches(
        mix(experts, shuffled_repeated(letterboxed(Numbers(), 16), 1, strength=0.1), 0.5, 0), 16
    )
    read = iter(dataset[3:].to_iter_dataset(ReadOptions(num_threads=threads)))
    for step in range(3, 9):
        for name, values in next(read).items():
            np.testing.assert_array_equal(values, dataset[step][name], err_msg=name)


def test_exposure_is_a_shift_and_a_gain_of_grey_levels():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)

    class Still(np.random.Generator):
        """A generator that neither zooms nor moves, and draws a known gain and bias."""

        draws = iter([0.0, np.zeros(2), 0.5, 0.25])

        def uniform(self, *_):
            return next(self.draws)

    moved = augment({"images": image}, Still(np.random.PCG64()), strength=0.2)["images"].astype(int)
    levels = (image.astype(float) - 128) * (1 + 0.2 * 0.5) + 128 + 255 * 0.2 * 0.25 / 2
    expected = np.where(image > 0, np.clip(levels, 0, 255), 0)
    assert np.abs(moved - expected).max() <= 1
    assert moved.min() == 0 and moved[0, 0, 0] == 0


def test_exposure_and_geometry_have_strengths_of_their_own():
    image = np.zeros((32, 32, 1), np.uint8)
    image[8:24, 6:20] = 100
    moved = augment({"images": image}, np.random.default_rng(0), strength=0.4, exposure=0)["images"]
    assert (moved != image).any() and moved.max() == 100  # moved, in the same grey
    exposed = augment({"images": image}, np.random.default_rng(0), strength=0, exposure=0.4)
    assert np.unique(exposed["images"]).size == 2 and exposed["images"].max() != 100
    np.testing.assert_array_equal(exposed["images"] > 0, image > 0)


def test_a_random_gamma_lies_between_its_bounds():
    image = np.array([[[0], [64], [255]]], np.uint8)
    levels = [
        augment({"images": image}, np.random.default_rng(seed), strength=0, gamma=1)["images"][
            0, 1, 0
        ]
        for seed in range(300)
    ]
    darkest, brightest = 255 * (64 / 255) ** 2, 255 * (64 / 255) ** 0.5
    assert darkest - 1 <= min(levels) < darkest + 3 and brightest - 3 < max(levels) <= brightest
    assert np.median(levels) == pytest.approx(64, abs=12)  # as often brighter as darker
    dataset = shuffled_repeated(letterboxed(Numbers(100), 16), 0, gamma=1.0)
    plain = shuffled_repeated(letterboxed(Numbers(100), 16), 0)
    assert any((dataset[i]["images"] != plain[i]["images"]).any() for i in range(5))
