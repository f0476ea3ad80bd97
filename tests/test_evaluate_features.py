"""Features from weights that others publish: stand-ins of their layout, held against a forward pass written out here."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import resnet
from safetensors.torch import save_file
from torch import Tensor

import metavoxel as mv
from metavoxel.errors import MetavoxelError
from metavoxel.evaluate.dedicated import Dedicated
from metavoxel.evaluate.features import CHILDREN, MEAN, PLANES, medicalnet, radimagenet, trained
from metavoxel.files import checksum

State = dict[str, Tensor]
SCANS = np.random.default_rng(0).random((2, 20, 24, 28)).astype(np.float32)


def stand_in(spatial: int, depth: int, **options: object) -> State:
    """Random weights of a published layout, small enough to keep activations in range."""
    network = getattr(resnet, f"resnet{depth}")(spatial_dims=spatial, feed_forward=False, **options)
    state = network.state_dict()
    for name, tensor in state.items():
        if name.endswith(("running_mean", "bias")):
            tensor.normal_(0, 0.1)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def layer(state: State, x: Tensor, name: str, after: str, epsilon: float, stride: int = 1, dilation: int = 1) -> Tensor:
    """Convolution and normalisation."""
    weight = state[f"{name}.weight"]
    convolve: Callable[..., Tensor] = {4: F.conv2d, 5: F.conv3d}[weight.dim()]
    x = convolve(x, weight, state.get(f"{name}.bias"), stride, dilation * (weight.shape[-1] // 2), dilation)
    own = [state[f"{after}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(x, *own, eps=epsilon)


def resnet50(state: State, x: Tensor, keras: bool) -> Tensor:
    """He et al. 2016. As Keras has it, with strides in a block's first convolution; else in its second."""
    e = 1.001e-5 if keras else 1e-5
    x = F.max_pool2d(layer(state, x, "conv1", "bn1", e, 2).relu(), 3, 2, 1)
    for number, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            at, stride = f"layer{number}.{block}", 2 if number > 1 and block == 0 else 1
            first, second = (stride, 1) if keras else (1, stride)
            y = layer(state, x, f"{at}.conv1", f"{at}.bn1", e, first).relu()
            y = layer(state, y, f"{at}.conv2", f"{at}.bn2", e, second).relu()
            y = layer(state, y, f"{at}.conv3", f"{at}.bn3", e)
            if block == 0:
                x = layer(state, x, f"{at}.downsample.0", f"{at}.downsample.1", e, stride)
            x = (x + y).relu()
    return x.mean((2, 3))


def medical_resnet10(state: State, x: Tensor) -> Tensor:
    """Chen et al. 2019: the third and fourth layers keep the grid, their kernels are spaced out by 2 and 4."""
    e = 1e-5
    x = F.max_pool3d(layer(state, x, "conv1", "bn1", e, 2).relu(), 3, 2, 1)
    for number, (stride, spaced) in enumerate(((1, 1), (2, 1), (1, 2), (1, 4)), start=1):
        at = f"layer{number}.0"
        y = layer(state, x, f"{at}.conv1", f"{at}.bn1", e, stride, spaced).relu()
        y = layer(state, y, f"{at}.conv2", f"{at}.bn2", e, 1, spaced)
        if number > 1:
            x = layer(state, x, f"{at}.downsample.0", f"{at}.downsample.1", e, stride)
        x = (x + y).relu()
    return x.mean((2, 3, 4))


@pytest.fixture(scope="module")
def rad() -> State:
    return stand_in(2, 50, n_input_channels=3, bias_downsample=False)


def slices(scan: np.ndarray, axis: int) -> Tensor:
    """MAISI's: the middle 40 %, 0 to 1, less a mean for each of three equal channels."""
    size = scan.shape[axis]
    some = torch.from_numpy(scan).movedim(axis, 0)[int(0.3 * size) : int(0.7 * size)]
    some = (some - some.min()) / (some.max() - some.min())
    return torch.stack([some - mean for mean in MEAN], 1)


def test_radimagenet_from_keras(rad: State, tmp_path: Path) -> None:
    """The release that MAISI uses; a bias after a strided convolution and one on a shortcut both count."""
    state = {**rad, **{f"{name.removesuffix('.weight')}.bias": torch.randn(len(tensor)) * 0.1
                       for name, tensor in rad.items() if tensor.dim() == 4}}  # fmt: skip
    torch.save(state, tmp_path / "w.pth")
    extractor = radimagenet(tmp_path / "w.pth")
    assert "preparation and number are the same; MMD does not" in extractor.remark
    assert extractor.checksum == checksum(tmp_path / "w.pth") and extractor.name == "radimagenet"
    found = extractor.features(SCANS)
    assert set(found) == set(PLANES)
    for axis, plane in enumerate(PLANES):
        expected = torch.cat([resnet50(state, slices(scan, axis), keras=True) for scan in SCANS]).numpy()
        assert found[plane].shape == expected.shape and expected.std() > 0.01
        assert np.allclose(found[plane], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_radimagenet_for_pytorch_and_safetensors(rad: State, tmp_path: Path) -> None:
    """Its own release numbers the layers; both files hold the same weights and see the same."""
    numbers = {name: number for number, name in CHILDREN.items()}
    own = {f"backbone.{numbers[name.split('.')[0]]}.{name.partition('.')[2]}": tensor for name, tensor in rad.items()}
    torch.save(own, tmp_path / "w.pt")
    save_file({**rad, "fc.weight": torch.zeros(3, 2048), "fc.bias": torch.zeros(3)}, tmp_path / "w.safetensors")
    one, two = (radimagenet(tmp_path / name).features(SCANS[:1]) for name in ("w.pt", "w.safetensors"))
    for axis, plane in enumerate(PLANES):
        expected = resnet50(rad, slices(SCANS[0], axis), keras=False).numpy()
        assert np.array_equal(one[plane], two[plane])
        assert np.allclose(one[plane], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_medicalnet(tmp_path: Path) -> None:
    state = stand_in(3, 10, n_input_channels=1, shortcut_type="B", bias_downsample=False)
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "w.pth")
    extractor = medicalnet(tmp_path / "w.pth")
    assert "preparation and number are the same; MMD does not" in extractor.remark
    x = torch.from_numpy(SCANS)[:, None]
    normal = (x - x.mean((1, 2, 3, 4), keepdim=True)) / (x.std((1, 2, 3, 4), keepdim=True) + 1e-5)
    expected = medical_resnet10(state, normal).numpy()
    assert extractor.name == "medicalnet 10" and expected.std() > 0.01
    assert np.allclose(extractor.features(SCANS)["whole"], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_medicalnet_with_shortcuts_without_weights(tmp_path: Path) -> None:
    """Of depth 18 and 34 the shortcut is a pooling, which must keep the grid as its layer does."""
    torch.save(stand_in(3, 18, n_input_channels=1, shortcut_type="A"), tmp_path / "w.pth")
    assert medicalnet(tmp_path / "w.pth").features(SCANS[:1])["whole"].shape == (1, 512)


def test_files_that_do_not_fit_are_refused(rad: State, tmp_path: Path) -> None:
    def refused(content: object, open_it: Callable[..., object] = radimagenet) -> str:
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(MetavoxelError) as error:
            open_it(tmp_path / "x.pth")
        assert "\n" not in str(error.value) and "x.pth" in str(error.value)
        return str(error.value)

    without = {name: tensor for name, tensor in rad.items() if name != "layer3.2.bn1.weight"}
    assert "lacks layer3.2.bn1.weight (1 missing, 0 strange)" in refused(without)
    assert "has layer9.weight, which the network has not" in refused({**rad, "layer9.weight": torch.zeros(1)})
    assert "conv1.weight has the shape (64, 1, 7, 7)" in refused({**rad, "conv1.weight": torch.zeros(64, 1, 7, 7)})
    assert "has the shape" in refused(rad, medicalnet)
    assert "has (0, 0, 0, 0) blocks" in refused({"weight": torch.zeros(1)}, medicalnet)
    assert "no state dict" in refused([1, 2]) and "no state dict" in refused({"epoch": 3})
    assert "could run code" in refused(torch.nn.Linear(1, 1))
    (tmp_path / "cut.pth").write_bytes((tmp_path / "x.pth").read_bytes()[:100])
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 50)
    for name in ("cut.pth", "cut.safetensors"):
        with pytest.raises(MetavoxelError, match="truncated or no weights file"):
            radimagenet(tmp_path / name)
    for open_it, place in ((radimagenet, "huggingface.co/MONAI"), (medicalnet, "huggingface.co/TencentMedicalNet")):
        with pytest.raises(MetavoxelError, match=f"no such file; download .* by hand from https://{place}"):
            open_it(tmp_path / "none.pth")


def test_no_code_is_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    (tmp_path / "x.pth").write_bytes(pickle.dumps(Trap(), protocol=2))
    with pytest.raises(MetavoxelError, match="could run code"):
        radimagenet(tmp_path / "x.pth")
    assert not (tmp_path / "sprung").exists()


def test_features_of_a_network_trained_here(tmp_path: Path) -> None:
    schema = mv.Schema([mv.Image("T1w", (32, 32, 32), (6.0, 6.0, 6.0)), mv.Continuous("age")])
    network = Dedicated("densenet", {"init_features": 4, "growth_rate": 2}, schema, ["age"]).eval()
    network.save(tmp_path / "network-1.safetensors")
    extractor = trained(tmp_path / "network-1.safetensors")
    scans = np.random.default_rng(1).random((35, 32, 32, 32)).astype(np.float32)
    found = extractor.features(scans)["whole"]
    one = network.features(torch.from_numpy(scans[34:])[:, None]).detach().numpy()
    assert found.shape == (35, one.shape[1]) and np.allclose(found[34:], one, atol=1e-5)
    assert "never across papers" in extractor.remark
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(MetavoxelError, match="is no network of metavoxel baselines"):
        trained(tmp_path / "other.safetensors")
