"""Names and layouts: round trips, the additions of publishers, errors that list the keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from chexseg_jax.images import CHEXPERT, IMAGENET, XRV, Normalization
from chexseg_jax.models.deeplab import DeepLabV3Plus
from chexseg_jax.models.densenet import DenseNet
from chexseg_jax.models.irnet import IRNet
from chexseg_jax.models.resnet import ResNet
from chexseg_jax.weights.convert import (
    WeightsError,
    load_torch,
    save_safetensors,
    start_from,
    to_torch,
    torch_names,
)
from chexseg_jax.weights.safetensors import write_safetensors


def densenet(outputs=14, seed=0):
    return DenseNet(outputs, blocks=(1, 2, 1, 1), growth=4, stem=8, rngs=nnx.Rngs(seed))


def resnet(outputs=14, seed=0, **options):
    return ResNet(outputs, blocks=(1, 1, 1, 2), width=8, rngs=nnx.Rngs(seed), **options)


def deeplab(seed=0):
    return DeepLabV3Plus(resnet(seed=seed), outputs=3, width=8, low_level=4, rngs=nnx.Rngs(seed))


def irnet(seed=0):
    return IRNet(resnet(seed=seed, bottleneck=True), rngs=nnx.Rngs(seed))


MAKERS = [densenet, resnet, deeplab, irnet]


def random_state(make):
    """Make a state dict in which every number differs from a new network's."""
    generator = np.random.default_rng(1)
    return {
        key: generator.normal(size=tensor.shape).astype(np.float32)
        for key, tensor in to_torch(make()).items()
    }


@pytest.mark.parametrize("make", MAKERS)
def test_round_trips_are_exact(make, tmp_path):
    state = random_state(make)
    model = make(seed=3)
    load_torch(state, model)
    back = to_torch(model)
    assert back.keys() == state.keys()
    for key, tensor in state.items():
        np.testing.assert_array_equal(back[key], tensor)
    write_safetensors(tmp_path / "w.safetensors", back)
    other = make(seed=4)
    load_torch(tmp_path / "w.safetensors", other)
    assert all(np.array_equal(tensor, state[key]) for key, tensor in to_torch(other).items())


def test_abstract_networks_are_filled():
    state = random_state(densenet)
    model = nnx.eval_shape(densenet)
    load_torch(state, model)
    initialized = densenet(seed=2)
    load_torch(state, initialized)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), nnx.state(initialized))


def test_kernels_keep_their_meaning():
    model = resnet()
    tensors = to_torch(model)
    np.testing.assert_array_equal(
        tensors["conv1.weight"][5, 2, 1, 6], model.stem.kernel[...][1, 6, 2, 5]
    )
    np.testing.assert_array_equal(tensors["fc.weight"][3, 7], model.head.kernel[...][7, 3])
    np.testing.assert_array_equal(tensors["bn1.running_var"], model.stem_norm.var[...])
    depthwise = deeplab()
    tensor = to_torch(depthwise)["decoder.aspp.0.convs.2.0.0.weight"]
    assert tensor.shape == (64, 1, 3, 3)
    kernel = depthwise.pyramid.levels[2].depthwise.kernel[...]
    np.testing.assert_array_equal(tensor[9, 0, 2, 1], kernel[2, 1, 0, 9])


@pytest.mark.parametrize(
    ("make", "count", "names"),
    [
        (
            lambda: DenseNet(14, rngs=nnx.Rngs(0)),
            606,
            "features.conv0.weight features.norm0.running_var features.norm5.bias classifier.bias "
            "features.denseblock4.denselayer16.norm2.running_mean features.transition3.conv.weight "
            "features.denseblock1.denselayer6.conv1.weight features.transition1.norm.weight",
        ),
        (
            lambda: ResNet(14, rngs=nnx.Rngs(0)),
            102,
            "conv1.weight bn1.bias layer1.1.conv2.weight layer4.1.bn2.running_var fc.weight "
            "layer3.0.downsample.0.weight layer3.0.downsample.1.running_mean",
        ),
        (
            lambda: DeepLabV3Plus(ResNet(1, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0)),
            152,
            "encoder.conv1.weight encoder.layer4.1.conv2.weight decoder.aspp.0.convs.0.0.weight "
            "decoder.aspp.0.convs.0.1.running_mean decoder.aspp.0.convs.3.0.0.weight "
            "decoder.aspp.0.convs.3.0.1.weight decoder.aspp.0.convs.3.1.bias "
            "decoder.aspp.0.convs.4.1.weight decoder.aspp.0.convs.4.2.bias "
            "decoder.aspp.0.project.0.weight decoder.aspp.0.project.1.running_var "
            "decoder.aspp.1.0.weight decoder.aspp.1.1.weight decoder.aspp.2.weight "
            "decoder.block1.0.weight decoder.block1.1.bias decoder.block2.0.0.weight "
            "decoder.block2.0.1.weight decoder.block2.1.weight segmentation_head.0.bias",
        ),
        (
            lambda: IRNet(ResNet.resnet50(1, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0)),
            305,
            "resnet50.conv1.weight resnet50.layer4.2.bn3.running_var fc_edge1.0.weight "
            "fc_edge5.1.bias fc_edge6.weight fc_edge6.bias fc_dp5.0.weight fc_dp6.1.weight "
            "fc_dp7.0.weight fc_dp7.1.bias fc_dp7.3.weight mean_shift.running_mean",
        ),
    ],
)
def test_names_are_those_of_the_originals(make, count, names):
    result = set(torch_names(nnx.eval_shape(make)).values())
    assert len(result) == count
    assert set(names.split()) <= result


def test_a_wrong_state_is_listed_and_changes_nothing():
    model = densenet()
    before = to_torch(model)
    state = random_state(densenet)
    del state["features.norm0.bias"]
    state["features.norm9.bias"] = np.zeros(3, np.float32)
    with pytest.raises(
        ValueError, match=r"missing features\.norm0\.bias, left over features\.norm9\.bias"
    ):
        load_torch(state, model)
    shaped = random_state(densenet)
    shaped["features.norm5.weight"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match=r"norm5\.weight has shape \(3,\), ours has"):
        load_torch(shaped, model)
    counted = random_state(densenet) | {"features.norm5.weight": np.zeros(3, np.int32)}
    with pytest.raises(ValueError, match="no array of real numbers"):
        load_torch(counted, model)
    with pytest.raises(ValueError, match=r"missing bn1\.bias, bn1\.running_mean.* more, left over"):
        load_torch(random_state(densenet), resnet())
    assert all(np.array_equal(tensor, before[key]) for key, tensor in to_torch(model).items())


def test_a_head_for_other_outputs_stays_out():
    state = random_state(lambda: densenet(1000))
    model = densenet(42)
    with pytest.raises(ValueError, match="head=False"):
        load_torch(state, model)
    before = to_torch(model)["classifier.weight"]
    load_torch(state, model, head=False)
    np.testing.assert_array_equal(to_torch(model)["classifier.weight"], before)
    np.testing.assert_array_equal(
        to_torch(model)["features.conv0.weight"], state["features.conv0.weight"]
    )


def test_torchvisions_older_names_and_counters_are_read():
    state = random_state(densenet)
    old = {"features.norm0.num_batches_tracked": np.zeros((), np.int64)}
    for key, tensor in state.items():
        for part in ("norm1", "norm2", "conv1", "conv2"):
            key = key.replace(f".{part}.", f".{part[:4]}.{part[4]}.") if "layer" in key else key
        old[key] = tensor
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    model = densenet(seed=5)
    assert load_torch(old, model) == IMAGENET
    assert all(np.array_equal(tensor, state[key]) for key, tensor in to_torch(model).items())


def test_lightning_checkpoints_of_the_classifier():
    state = random_state(lambda: densenet(42))
    file = {"epoch": 3, "state_dict": {f"model.model.{key}": t for key, t in state.items()}}
    model = densenet(42, seed=5)
    assert load_torch(file, model) == IMAGENET
    assert all(np.array_equal(tensor, state[key]) for key, tensor in to_torch(model).items())


def test_moco_has_no_head():
    state = random_state(resnet)
    file = {f"module.encoder_q.{k}": t for k, t in state.items() if not k.startswith("fc.")}
    file |= {k.replace("encoder_q", "encoder_k"): t for k, t in file.items()}
    for extra in ("module.encoder_q.fc.0.weight", "module.encoder_q.fc.2.bias", "module.queue"):
        file[extra] = np.zeros(2, np.float32)
    model = resnet(seed=5)
    head = to_torch(model)["fc.weight"]
    assert load_torch({"state_dict": file}, model) == CHEXPERT
    loaded = to_torch(model)
    np.testing.assert_array_equal(loaded["fc.weight"], head)
    np.testing.assert_array_equal(loaded["layer4.1.bn2.bias"], state["layer4.1.bn2.bias"])


def test_torchxrayvisions_stem_for_one_channel_takes_three_equal_ones():
    state = random_state(densenet)
    grey = np.random.default_rng(2).normal(size=(8, 1, 7, 7)).astype(np.float32)
    file = state | {"features.conv0.weight": grey, "op_threshs": np.zeros(14, np.float32)}
    model = densenet(seed=5)
    assert load_torch(file, model) == XRV
    image = np.random.default_rng(3).normal(size=(1, 16, 16, 1)).astype(np.float32)
    result = model.stem(jnp.asarray(np.repeat(image, 3, -1)))
    window = np.pad(image[0, ..., 0], 3)[4:11, 6:13]
    expected = (grey[:, 0] * window).sum((1, 2))
    np.testing.assert_allclose(result[0, 2, 3], expected, atol=1e-4)


def test_a_stem_for_one_channel_is_known_by_its_shape():
    state = random_state(resnet)
    state["conv1.weight"] = state["conv1.weight"][:, :1]
    model = resnet(seed=5)
    assert load_torch(state, model) is None
    loaded = to_torch(model)["conv1.weight"]
    for channel in range(3):
        np.testing.assert_array_equal(loaded[:, channel], state["conv1.weight"][:, 0] / 3)


def wrapped(state, prefix="", wrappers=(), **beside):
    content = {f"{prefix}{key}": tensor for key, tensor in state.items()} | beside
    for wrapper in wrappers:
        content = {"epoch": 3, "best": np.zeros(2, np.float32), wrapper: content}
    return content


COUNTERS = {"n_averaged": np.zeros((), np.int64), "bn1.num_batches_tracked": np.zeros((), np.int64)}


@pytest.mark.parametrize("make", [densenet, resnet, irnet])
@pytest.mark.parametrize(
    "options",
    [
        {"prefix": "module."},
        {"prefix": "model."},
        {"prefix": "_orig_mod.module.", "wrappers": ["state_dict_ema"]},
        {"prefix": "encoder.", "wrappers": ["weights"]},
        {"wrappers": ["state_dict", "model"]},
        {"prefix": "module.", **COUNTERS},
    ],
)
def test_prefixes_and_wrappers_that_all_share_are_stripped(make, options):
    state = random_state(make)
    model = make(seed=5)
    assert load_torch(wrapped(state, **options), model) == IMAGENET
    assert all(np.array_equal(tensor, state[key]) for key, tensor in to_torch(model).items())


def test_publishers_are_known_under_a_prefix_too():
    state = random_state(densenet) | {"op_threshs": np.zeros(14, np.float32)}
    assert load_torch(wrapped(state, "module."), densenet()) == XRV
    moco = {f"module.encoder_q.{k}": t for k, t in random_state(resnet).items() if k[:2] != "fc"}
    assert load_torch(wrapped(moco, "model.", ["state_dict"]), resnet()) == CHEXPERT
    assert load_torch(wrapped(random_state(deeplab), "module."), deeplab()) is None


def test_of_two_state_dicts_the_plain_one_is_taken():
    state, averaged = random_state(resnet), to_torch(resnet())
    model = resnet(seed=5)
    load_torch({"state_dict_ema": averaged, "state_dict": state}, model)
    assert all(np.array_equal(tensor, state[key]) for key, tensor in to_torch(model).items())


def test_a_prefix_that_some_names_lack_is_named():
    content = wrapped(random_state(resnet), "model.", **{"loss.weight": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=r"its names begin with 'model\.': save") as error:
        load_torch(content, resnet())
    assert "\n" not in str(error.value)


def test_weights_that_state_no_normalization_are_used_with_the_networks(tmp_path, capsys):
    path = tmp_path / "best_model.safetensors"
    write_safetensors(path, random_state(deeplab))
    for normalization, name in ((IMAGENET, "imagenet"), (CHEXPERT, "chexpert")):
        start_from(path, deeplab(), normalization)
        said = capsys.readouterr().err
        assert f"normalized as {name} (--classifier.normalization)" in said
        assert said.count("\n") == 1


def test_irnets_aliases_are_dropped():
    state = random_state(irnet)
    extra = {
        "stage1.0.weight": state["resnet50.conv1.weight"],
        "backbone.0.0.weight": state["resnet50.conv1.weight"],
        "edge_layers.0.0.weight": state["fc_edge1.0.weight"],
        "dp_layers.6.0.weight": state["fc_dp7.0.weight"],
        "fc_dp7.4.running_mean": state["mean_shift.running_mean"],
        "path_indices12": np.zeros(4, np.int64),
        "disp_target": np.zeros((1, 2, 152, 1), np.float32),
    }
    model = irnet(seed=5)
    assert load_torch(state | extra, model) == IMAGENET
    assert all(np.array_equal(tensor, state[key]) for key, tensor in to_torch(model).items())


def test_segmenters_keep_the_heads_of_their_backbones():
    state = random_state(deeplab)
    model = deeplab(seed=5)
    head = np.asarray(model.backbone.head.kernel[...])
    assert load_torch(state, model) is None  # every user of smp has a normalization of their own
    np.testing.assert_array_equal(model.backbone.head.kernel[...], head)
    encoder = DeepLabV3Plus(densenet(), width=8, rngs=nnx.Rngs(0))
    names = torch_names(encoder).values()
    assert "encoder.features.denseblock2.denselayer2.conv2.weight" in names
    before = jax.tree.map(np.asarray, nnx.state(encoder.pyramid))
    load_torch(random_state(densenet), encoder.backbone)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(encoder.pyramid), before)


def test_files_without_a_state_dict_are_refused(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"\x80\x02K\x01.")
    with pytest.raises(ValueError, match=r"a\.pth: it is neither.*save model\.state_dict"):
        load_torch(tmp_path / "a.pth", resnet())
    with pytest.raises(ValueError, match="missing bn1"):
        load_torch({}, resnet())


def test_a_file_of_ours_states_the_normalization_its_weights_expect(tmp_path):
    path = tmp_path / "ours.safetensors"
    save_safetensors(path, to_torch(densenet()), CHEXPERT)
    assert load_torch(path, densenet(seed=1)) == CHEXPERT
    write_safetensors(path, to_torch(densenet()), {"normalization": '{"mean": [0.5], "std": [1]}'})
    with pytest.raises(ValueError, match=r"ours\.safetensors: its normalization"):
        load_torch(path, densenet(seed=1))
    for text in ('{"mean": [NaN, 0.5, 0.5], "std": [1.0, 1.0, 1.0]}', "[" * 100_000):
        write_safetensors(path, to_torch(densenet()), {"normalization": text})
        with pytest.raises(ValueError, match=r"ours\.safetensors: its normalization"):
            load_torch(path, densenet())
    text = '{"mean": [0.5, 0.5, 0.5], "std": [1.0, 0.0, 1.0]}'
    write_safetensors(path, to_torch(densenet()), {"normalization": text})
    with pytest.raises(ValueError, match=r"ours\.safetensors: its normalization"):
        load_torch(path, densenet())


def test_a_normalization_that_no_flag_offers_is_spelled_out(tmp_path):
    path = tmp_path / "ours.safetensors"
    save_safetensors(path, to_torch(resnet()), Normalization((0.5, 0.5, 0.5), (1.0, 1.0, 1.0)))
    with pytest.raises(WeightsError, match=r"ours\.safetensors.*mean \(0\.5, 0\.5, 0\.5\)"):
        start_from(path, resnet(), IMAGENET)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_weights_that_are_not_finite_are_refused(value):
    state = random_state(densenet)
    state["features.conv0.weight"] = state["features.conv0.weight"].astype(np.float64)
    state["features.conv0.weight"][0, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"features\.conv0\.weight has values that are not finite"):
        load_torch(state, densenet())


def test_a_nested_state_dict_needs_names_as_keys():
    with pytest.raises(ValueError, match="holds no state dict"):
        load_torch({"state_dict": {3: np.zeros(2, np.float32)}}, densenet())
