"""DOLG in plain PyTorch, and the works that `beside_torch.py` times with it.

The modules have the names of the authors' checkpoints, so that the state dict goes through
`dolg convert` as theirs does. What they compute is written from the paper and `dolg_tf/modeling`.

Photos are uint8 RGB (B, H, W, 3): permuted, they are PyTorch's channels-last without a copy.
"""

import itertools
import math
import os
import pathlib
from collections import OrderedDict, defaultdict

import numpy as np
import torch
from torch import nn
from torch.nn import functional

BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
torch.set_num_threads(len(os.sched_getaffinity(0)))  # as TensorFlow does
# Of BGR levels in [0, 1], as in the authors' code.
MEAN, STD = (0.406, 0.456, 0.485), (0.225, 0.224, 0.229)


# --- the network ------------------------------------------------------------------------------


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-5, momentum=0.1)


class Residual(nn.Module):
    """A bottleneck with its stride on the 3x3 convolution, ResNet v1.5."""

    def __init__(self, inputs: int, inner: int, stride: int):
        super().__init__()
        outputs = 4 * inner
        self.proj = None
        if inputs != outputs or stride > 1:
            self.proj = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.bn = _norm(outputs)
        parts = {
            "a": nn.Conv2d(inputs, inner, 1, bias=False),
            "a_bn": _norm(inner),
            "a_relu": nn.ReLU(inplace=True),
            "b": nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False),
            "b_bn": _norm(inner),
            "b_relu": nn.ReLU(inplace=True),
            "c": nn.Conv2d(inner, outputs, 1, bias=False),
            "c_bn": _norm(outputs),
        }
        self.f = nn.Sequential(OrderedDict(parts))

    def forward(self, x):
        shortcut = x if self.proj is None else self.bn(self.proj(x))
        return functional.relu_(self.f(x).add_(shortcut))


class ResNet(nn.Module):
    """The maps of stride 16 and 32."""

    def __init__(self, blocks: tuple[int, ...]):
        super().__init__()
        stem = {
            "conv": nn.Conv2d(3, 64, 7, 2, padding=3, bias=False),
            "bn": _norm(64),
            "relu": nn.ReLU(inplace=True),
            "pool": nn.MaxPool2d(3, 2, padding=1),
        }
        self.stem = nn.Sequential(OrderedDict(stem))
        inputs = 64
        for stage, count in enumerate(blocks, 1):
            inner, parts = 32 * 2**stage, OrderedDict()
            for number in range(1, count + 1):
                stride = 2 if stage > 1 and number == 1 else 1
                parts[f"b{number}"] = Residual(inputs, inner, stride)
                inputs = 4 * inner
            setattr(self, f"s{stage}", nn.Sequential(parts))

    def forward(self, x):
        p4 = self.s3(self.s2(self.s1(self.stem(x))))
        return p4, self.s4(p4)


class MultiAtrous(nn.Module):
    """A pooled, a point-wise and three dilated branches, concatenated and reduced."""

    def __init__(self, channels: int = 1024, dilations: tuple[int, ...] = (6, 12, 18)):
        super().__init__()
        half = channels // 2
        dilated = [nn.Conv2d(channels, half, 3, padding=d, dilation=d) for d in dilations]
        self.aspp = nn.ModuleList([nn.Conv2d(channels, half, 1), *dilated])
        self.im_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, half, 1))
        joined = half * (len(self.aspp) + 1)
        self.conv_after = nn.Sequential(nn.Conv2d(joined, channels, 1), nn.ReLU(inplace=True))

    def forward(self, x):
        pooled = functional.relu_(self.im_pool(x)).expand(-1, -1, *x.shape[2:])
        return self.conv_after(torch.cat([pooled, *(conv(x) for conv in self.aspp)], dim=1))


class LocalBranch(nn.Module):
    """Unit local features, weighed by an attention map."""

    def __init__(self, multi_atrous: bool, channels: int = 1024):
        super().__init__()
        self.aspp = MultiAtrous(channels) if multi_atrous else nn.Identity()
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.bn = _norm(channels)
        self.conv2 = nn.Conv2d(channels, 1, 1)

    def forward(self, x):
        features = self.bn(self.conv1(self.aspp(x)))
        attention = functional.softplus(self.conv2(features.relu()))
        return attention * functional.normalize(features, dim=1)


class Dolg(nn.Module):
    """uint8 RGB (B, H, W, 3) -> descriptors (B, 512), not normalised.

    Args:
      backbone: a name of `BLOCKS`.
      multi_atrous: whether the local branch begins with it.
    """

    def __init__(self, backbone: str, multi_atrous: bool = True):
        super().__init__()
        self.globalmodel = ResNet(BLOCKS[backbone])
        self.localmodel = LocalBranch(multi_atrous)
        self.fc_t = nn.Linear(2048, 1024)
        self.fc = nn.Linear(2048, 512)
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, photos):
        """Takes float RGB in [0, 1], (B, 3, H, W)."""
        p4, p5 = self.globalmodel((photos.flip(1) - self.mean) / self.std)
        pooled = p5.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3)  # GeM
        whole = self.fc_t(pooled)
        # The mean of the orthogonal parts is the orthogonal part of the mean.
        local = self.localmodel(p4).mean((2, 3))
        share = (local * whole).sum(1, keepdim=True) / whole.square().sum(1, keepdim=True)
        return self.fc(torch.cat([whole, local - share * whole], dim=1))


def draw_weights(network: nn.Module, seed: int) -> None:
    """Fills a network with numbers for which its maps neither vanish nor explode."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, module in network.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                last = name.endswith("c_bn")  # of a residual branch
                module.weight.uniform_(*((0.1, 0.3) if last else (0.8, 1.2)))
                module.bias.normal_(0, 0.1)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                gain = 2 if isinstance(module, nn.Conv2d) else 1
                module.weight.normal_(0, math.sqrt(gain / module.weight[0].numel()))
                if module.bias is not None:
                    module.bias.normal_(0, 0.1)


def write_weights(backbone: str, multi_atrous: bool, path: pathlib.Path) -> None:
    """Writes a network with drawn weights as a checkpoint of the authors' code."""
    network = Dolg(backbone, multi_atrous)
    draw_weights(network, seed=0)
    torch.save(network.state_dict(), path)


def read_network(path: pathlib.Path) -> Dolg:
    state = torch.load(path, weights_only=True)
    count = sum(name.endswith("f.a.weight") for name in state)
    backbone = next(name for name, blocks in BLOCKS.items() if sum(blocks) == count)
    network = Dolg(backbone, any(".aspp." in name for name in state))
    network.load_state_dict(state)
    return network.to(memory_format=torch.channels_last)


def fold(network: nn.Module) -> nn.Module:
    """Folds each batch norm into the convolution before it, for inference."""
    for module in list(network.modules()):
        children = list(module.named_children())
        for (name, conv), (norm_name, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, nn.utils.fusion.fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
    return network


# --- the works --------------------------------------------------------------------------------


def describer(path: pathlib.Path, compiled: bool = False):
    """Returns a function of uint8 photos and scales -> unit descriptors, (B, 512)."""
    network = fold(read_network(path).eval())
    if compiled:  # for one size of photos, which takes a minute
        torch._inductor.config.freezing = True
        network = torch.compile(network, dynamic=False)

    @torch.inference_mode()
    def describe(photos: np.ndarray, scales: tuple[float, ...]) -> np.ndarray:
        floats = torch.from_numpy(photos).permute(0, 3, 1, 2).float().div_(255)
        total = 0
        for scale in scales:
            size = [round(side * scale) for side in photos.shape[1:3]]
            resized = floats
            if scale != 1:
                resized = functional.interpolate(floats, size, mode="bilinear")
            total = total + functional.normalize(network(resized))
        return functional.normalize(total).numpy()

    return describe


def training_step(path: pathlib.Path, photos, labels, centres, options):
    """Returns a function that takes a step and returns its loss.

    Args:
      path: the initial weights.
      photos: float RGB in [0, 1], (B, H, W, 3).
      labels: int (B,).
      centres: float (classes, 512), the initial class head.
      options: a `TrainingConfig`, of which SGD, momentum, coupled decay of the kernels, margin and
        scale are used.
    """
    network = read_network(path).train()
    centres = nn.Parameter(torch.from_numpy(centres))
    photos = torch.from_numpy(photos).permute(0, 3, 1, 2)
    labels = torch.from_numpy(labels).long()
    kernels = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim == 1]
    groups = [
        {"params": [*kernels, centres], "weight_decay": options.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, options.initial_lr, options.momentum, fused=True)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        descriptors = functional.normalize(network(photos))
        logits = functional.linear(descriptors, functional.normalize(centres))
        loss = functional.cross_entropy(_arcface(logits, labels, options), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _arcface(cosines, labels, options):
    """Returns the logits: the angle to the own class is `margin` wider (Deng et al., 2019)."""
    margin, rows = options.margin, torch.arange(len(labels))
    own = cosines[rows, labels]
    sines = (1 - own.square()).clamp(min=0).sqrt()
    wider = own * math.cos(margin) - sines * math.sin(margin)
    line = own - margin * math.sin(margin)
    wider = torch.where(own > -math.cos(margin), wider, line)
    return options.scale * cosines.index_put((rows, labels), wider)


def extract(weights: pathlib.Path, folder: pathlib.Path, scales, output: pathlib.Path) -> None:
    """Writes the descriptors of a folder's photos, in batches of up to 8 of one size."""
    from PIL import Image

    describe, rows, waiting = describer(weights), {}, defaultdict(dict)

    def describe_batch(batch: dict) -> None:
        rows.update(zip(batch, describe(np.stack([*batch.values()]), scales), strict=True))
        batch.clear()

    for path in sorted(folder.iterdir()):
        photo = np.asarray(Image.open(path).convert("RGB"))
        batch = waiting[photo.shape]
        batch[path] = photo
        if len(batch) == 8:
            describe_batch(batch)
    for batch in filter(None, waiting.values()):
        describe_batch(batch)
    np.save(output, np.stack([rows[path] for path in sorted(rows)]))
