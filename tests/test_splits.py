from hypothesis import given
from hypothesis import strategies as st

from datasets.chexlocalize.splits import choose_validation


def divide(patients: dict[str, str], presence: dict[str, int]) -> tuple[set[str], set[str]]:
    chosen = choose_validation(patients, presence)
    return set(patients) - chosen, chosen


def test_the_187_annotated_images_are_147_and_40():
    patients = {f"i{n}": f"p{n % 170}" for n in range(187)}  # 17 patients have two images
    presence = {image: 1 | (n < 18) << 2 for n, image in enumerate(patients)}  # lesions: 9.6 %
    train, val = divide(patients, presence)
    assert (len(train), len(val)) == (147, 40)
    assert {f"i{n}" for n in range(18)} <= train
    assert {f"i{170 + n}" for n in range(17)} <= train  # the same patients' other images
    assert divide(dict(reversed(patients.items())), presence) == (train, val)


def test_a_tenth_of_the_images_is_not_rare():
    patients = {f"i{n}": f"p{n}" for n in range(20)}
    common = {image: 1 if n < 2 else 2 for n, image in enumerate(patients)}
    rare = {image: 1 if n < 1 else 2 for n, image in enumerate(patients)}
    ever_common, ever_rare = set(), set()
    for name in range(30):  # thirty orders of the patients
        ids = {image: f"{name} {patient}" for image, patient in patients.items()}
        ever_common |= divide(ids, common)[1]
        ever_rare |= divide(ids, rare)[1]
    assert ever_common & {"i0", "i1"}
    assert "i0" not in ever_rare and "i1" in ever_rare


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 1023)), min_size=1, max_size=60))
def test_validation_has_no_rare_pathology_and_shares_no_patient(images):
    patients = {f"i{n}": f"p{patient}" for n, (patient, _) in enumerate(images)}
    presence = {f"i{n}": bits for n, (_, bits) in enumerate(images)}
    train, val = divide(patients, presence)
    assert not {patients[image] for image in train} & {patients[image] for image in val}
    assert len(val) <= len(images) * 40 / 187 + 0.5
    for k in range(10):
        share = sum(bits >> k & 1 for bits in presence.values()) / len(images)
        if share < 0.1:
            assert not any(presence[image] >> k & 1 for image in val)
