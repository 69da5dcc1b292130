"""Read files that PyTorch wrote, and load files that we wrote into PyTorch.

Not part of the suite, which needs no PyTorch:

    pip install torch torchvision segmentation-models-pytorch safetensors
    python -m pytest tests/with_torch/check_torch_files.py
"""

import json
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from flax import nnx
from safetensors.torch import load_file, save_file

from chexseg_jax.images import CHEXPERT, IMAGENET
from chexseg_jax.models.deeplab import DeepLabV3Plus
from chexseg_jax.models.densenet import DenseNet
from chexseg_jax.models.irnet import IRNet
from chexseg_jax.models.resnet import ResNet
from chexseg_jax.weights.convert import load_torch, save_safetensors, to_torch
from chexseg_jax.weights.safetensors import read_safetensors
from chexseg_jax.weights.torch_checkpoint import TorchFileError, read_torch
from experiments.parity_checks.fixtures import Fixtures

INDEX = Path(__file__).parents[1] / "goldens" / "parity"


def theirs(kind):
    """Make a network of PyTorch's, with running statistics that are not the initial ones."""
    torch.manual_seed(0)
    model = {
        "densenet121": lambda: torchvision.models.densenet121(num_classes=14),
        "resnet18": lambda: torchvision.models.resnet18(num_classes=14),
        "resnet50": lambda: torchvision.models.resnet50(num_classes=14),
        "deeplab": lambda: smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=10),
    }[kind]()
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5) if name.endswith("var") else buffer.normal_(0, 0.1)
    return model.eval()


def ours(kind):
    """Make the same network of ours."""
    rngs = nnx.Rngs(0)
    return {
        "densenet121": lambda: DenseNet(14, rngs=rngs),
        "resnet18": lambda: ResNet(14, rngs=rngs),
        "resnet50": lambda: ResNet.resnet50(14, rngs=rngs),
        "deeplab": lambda: DeepLabV3Plus(ResNet(1, output_stride=16, rngs=rngs), rngs=rngs),
    }[kind]()


def assert_equal(result, state):
    """Check that the tensors of a state dict were read, in order and bit for bit."""
    assert list(result) == list(state)
    for key, tensor in state.items():
        expected = tensor.detach()
        if expected.dtype == torch.bfloat16:
            assert result[key].dtype == jnp.bfloat16
            expected = expected.float()
            np.testing.assert_array_equal(np.asarray(result[key], np.float32), expected.numpy())
        else:
            assert result[key].dtype == expected.numpy().dtype
            np.testing.assert_array_equal(result[key], expected.numpy())


def loaded(path, model, state, **options):
    """Load a file into our network and check every tensor; return the normalization."""
    normalization = load_torch(path, model, **options)
    for key, tensor in to_torch(model).items():
        if key in state:
            np.testing.assert_array_equal(tensor, state[key].numpy(), err_msg=key)
    return normalization


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", ["densenet121", "resnet18", "resnet50"])
def test_plain_state_dict(tmp_path, kind, zipped):
    state = theirs(kind).state_dict()
    path = tmp_path / f"{kind}.pth"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    assert_equal(read_torch(path), state)
    assert loaded(path, ours(kind), state) == IMAGENET


@pytest.mark.parametrize("zipped", [True, False])
def test_lightning_checkpoint(tmp_path, zipped):
    model = theirs("densenet121")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    model(torch.randn(1, 3, 64, 64)).sum().backward()
    optimizer.step()
    state = model.state_dict()
    checkpoint = {
        "epoch": 2,
        "global_step": 4800,
        "pytorch-lightning_version": "0.9.0",
        "checkpoint_callback_best_model_score": torch.tensor(0.9),
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "state_dict": OrderedDict((f"model.model.{k}", v) for k, v in state.items()),
        "hparams_name": "hparams",
        "hyper_parameters": {
            "model_args": Namespace(model="DenseNet121", pretrained=True),
            "optim_args": Namespace(lr=1e-4, betas=(0.9, 0.999), gpus=None),
            "data_args": Namespace(paths=[Namespace(root="data")], uncertain="ignore"),
        },
    }
    path = tmp_path / "epoch=2.ckpt"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    assert_equal(read_torch(path)["state_dict"], checkpoint["state_dict"])
    assert loaded(path, ours("densenet121"), state) == IMAGENET


def test_moco(tmp_path):
    model, state = theirs("resnet18"), {}
    for key, tensor in model.state_dict().items():
        if not key.startswith("fc."):
            state |= {f"module.encoder_q.{key}": tensor, f"module.encoder_k.{key}": tensor + 1}
    for encoder in ("encoder_q", "encoder_k"):
        for layer, outputs in ((0, 512), (2, 128)):
            state[f"module.{encoder}.fc.{layer}.weight"] = torch.randn(outputs, 512)
            state[f"module.{encoder}.fc.{layer}.bias"] = torch.randn(outputs)
    state["module.queue"] = torch.randn(128, 64)
    state["module.queue_ptr"] = torch.zeros(1, dtype=torch.long)
    path = tmp_path / "checkpoint.pth.tar"
    torch.save({"epoch": 20, "arch": "resnet18", "state_dict": state, "optimizer": {}}, path)
    plain = {key: value for key, value in model.state_dict().items() if not key.startswith("fc.")}
    assert loaded(path, ours("resnet18"), plain, head=False) == CHEXPERT


def test_segmenter(tmp_path):
    state = theirs("deeplab").state_dict()
    path = tmp_path / "best_model.pth"
    torch.save(state, path)
    assert_equal(read_torch(path), state)
    assert loaded(path, ours("deeplab"), state) is None  # smp states no normalization


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_every_protocol(tmp_path, protocol):
    state = theirs("resnet18").state_dict()
    path = tmp_path / "resnet18.pth"
    torch.save({"state_dict_ema": state, "epoch": 3}, path, pickle_protocol=protocol)
    assert loaded(path, ours("resnet18"), state) == IMAGENET


def test_irnet(tmp_path):
    fixtures = Fixtures(INDEX)
    values = fixtures.state_dict("irnet")
    # One storage for all the names of a tensor, as in a file of the release.
    tensors = {id(value): torch.from_numpy(value) for value in values.values()}
    state = {key: tensors[id(value)] for key, value in values.items()}
    state["path_indices0"] = torch.zeros(2, 4, dtype=torch.long)
    state["disp_target"] = torch.zeros(1, 2, 4, 1)
    path = tmp_path / "best_ir_model.pth"
    torch.save(state, path)
    assert path.stat().st_size < 1.1 * 4 * sum(tensor.numel() for tensor in tensors.values())
    assert_equal(read_torch(path), state)
    rngs = nnx.Rngs(0)
    model = IRNet(ResNet.resnet50(1, output_stride=16, dilated=False, rngs=rngs), rngs=rngs)
    assert loaded(path, model, state) == IMAGENET


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_every_kind(tmp_path, zipped):
    base = torch.arange(24.0).reshape(4, 6)
    state = {
        "view": base[1:3],
        "transposed": base.t(),
        "strided": base[:, ::2],
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "half": base.half(),
        "brain": base.bfloat16(),
        "double": base.double(),
        "bytes": base.byte(),
        "long": base.long(),
        "truths": base > 3,
        "parameter": torch.nn.Parameter(base + 1),
    }
    path = tmp_path / "tensors.pt"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    assert_equal(read_torch(path), state)


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    path = tmp_path / "expanded.pt"
    torch.save({"expanded": torch.ones(1, 3).expand(4, 3)}, path)
    with pytest.raises(TorchFileError, match=r"shape \(4, 3\) reaches beyond its storage"):
        read_torch(path)


def test_safetensors_that_torch_wrote(tmp_path):
    state = theirs("resnet18").state_dict()
    state["brain"] = torch.randn(3, 4).bfloat16()
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    result, _ = read_safetensors(path)
    assert_equal({key: result[key] for key in state}, state)


@pytest.mark.parametrize("kind", ["densenet121", "resnet18", "resnet50", "deeplab"])
def test_torch_loads_what_we_write(tmp_path, kind):
    source, target = theirs(kind), theirs(kind)
    model = ours(kind)
    load_torch({k: v.numpy() for k, v in source.state_dict().items()}, model)
    for parameter in target.parameters():
        parameter.data.zero_()
    path = tmp_path / "ours.safetensors"
    save_safetensors(path, to_torch(model), IMAGENET)
    target.load_state_dict(load_file(path), strict=True)
    images = np.random.default_rng(0).standard_normal((1, 64, 96, 3)).astype(np.float32)
    with torch.no_grad():
        expected = target(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    result = np.asarray(jax.jit(lambda model, images: model(images))(model, jnp.asarray(images)))
    result = np.moveaxis(result, -1, 1) if result.ndim == 4 else result
    np.testing.assert_allclose(result, expected, atol=1e-4 * np.abs(expected).max())


def test_index_names_the_tensors_of_torchvision():
    shapes = json.loads((INDEX / "index.json").read_text())["state_dicts"]["densenet121"]
    state = theirs("densenet121").state_dict()
    floating = {k: list(v.shape) for k, v in state.items() if v.is_floating_point()}
    assert floating == shapes
