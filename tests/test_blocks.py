"""Layers that are quicker than the library's own must say what the library's say."""

import pytest
import torch
import torch.nn.functional as F

from metavoxel.nets.blocks import conv


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_convolution_is_the_librarys_for_any_batch(rows, kernel):
    torch.manual_seed(rows)
    layer, x = conv(3, 5, 7, kernel).double(), torch.randn(rows, 5, 4, 6, 3, dtype=torch.float64)
    expected = F.conv3d(x, layer.weight, layer.bias, padding=kernel // 2)
    single = layer.float()(x.float())
    assert torch.allclose(layer.double()(x), expected, atol=1e-12)
    assert torch.allclose(single.double(), expected, atol=1e-5)


def test_a_single_items_gradients_are_those_of_a_batch():
    torch.manual_seed(0)
    layer, x = conv(3, 4, 6), torch.randn(1, 4, 5, 5, 5)
    grads = []
    for batch, weight in ((x, 1.0), (x.expand(2, -1, -1, -1, -1), 0.5)):
        layer.zero_grad()
        (weight * layer(batch).square().sum()).backward()
        grads.append([parameter.grad.clone() for parameter in layer.parameters()])
    for one, other in zip(*grads):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)
