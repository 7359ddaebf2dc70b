"""Writes the files beside it; needs PyTorch, which the tests do not (made with torch 2.14)."""

import pathlib

import numpy as np
import torch

HERE = pathlib.Path(__file__).parent
torch.manual_seed(0)


def write(name, state, value):
    """Saves `value` in both formats, and what its tensors are."""
    torch.save(value, HERE / f"{name}.zip.pth")
    torch.save(value, HERE / f"{name}.legacy.pth", _use_new_zipfile_serialization=False)
    plain = {key: tensor.detach() for key, tensor in state.items()}
    plain = {key: t.float() if t.dtype == torch.bfloat16 else t for key, t in plain.items()}
    np.savez(HERE / f"{name}.npz", **{key: t.numpy() for key, t in plain.items()})


base, shared = torch.randn(5, 4, 3), torch.arange(24.0).reshape(4, 6)
tensors = {
    "float32": base,
    "float16": base.half(),
    "bfloat16": base.bfloat16(),
    "float64": base.double(),
    "int8": (base * 10).to(torch.int8),
    "int16": (base * 1e3).to(torch.int16),
    "int32": (base * 1e6).int(),
    "int64": (base * 1e12).long(),
    "uint8": (base.abs() * 10).to(torch.uint8),
    "bool": base > 0,
    "number": torch.tensor(3.5),
    "count": torch.tensor(2**40),
    "empty": torch.zeros(0, 4),
    "transposed": base.permute(2, 0, 1),
    "sliced": base[1:4:2, :, 1],
    "shared_rows": shared[1:],
    "shared_columns": shared[:, 2:4],
    "shared": shared,
    "channels_last": torch.randn(2, 3, 2, 2).to(memory_format=torch.channels_last),
    "not_finite": torch.tensor([float("nan"), float("inf"), -0.0]),
    "parameter": torch.nn.Parameter(torch.randn(3)),
}
write("tensors", tensors, tensors)

network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1, bias=False), torch.nn.BatchNorm2d(2))
optimizers = [
    torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=1e-4),
    torch.optim.Adam(network.parameters()),
]
for optimizer in optimizers:
    network(torch.randn(2, 3, 4, 4)).sum().backward()
    optimizer.step()
checkpoint = {
    "epoch": 99,
    "model_state": network.state_dict(),
    "optimizer_state": optimizers[0].state_dict(),
    "adam": optimizers[1].state_dict(),
    "schedule": torch.optim.lr_scheduler.MultiStepLR(optimizers[0], [3, 4]).state_dict(),
    "cfg": "MODEL:\n  DEPTH: 50\n",
    "best": np.float64(0.5),
    "history": np.arange(3),
    "random_state": torch.get_rng_state()[:16].clone(),
    "kinds": [torch.float32, torch.Size([1]), torch.device("cpu"), {1, 2}, b"bytes", None, 1.5],
}
write("checkpoint", network.state_dict(), checkpoint)
