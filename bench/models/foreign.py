"""Networks as users have them: wrappers off, modes set, answers read as logits."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bench.errors import BadInput

M = TypeVar("M", bound=nn.Module)


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside torch.compile, DataParallel and the like: the same function of an image,
    without kernels of its own and on one device.
    """
    while True:
        if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
            network = network.module
        elif _is_compiled(network):
            network = network.get_submodule("_orig_mod")
        else:
            return network


def _is_compiled(network: nn.Module) -> bool:
    # By name: importing torch's compiler takes seconds.
    kind = type(network)
    return kind.__name__ == "OptimizedModule" and kind.__module__.startswith("torch._dynamo")


def is_training(module: nn.Module) -> bool:
    """Whether a module is in training mode; frozen TorchScript has no modes."""
    return bool(getattr(module, "training", False))


def set_training(module: nn.Module, mode: bool) -> None:
    """`module.train(mode)`, also where it holds a graph of torch.export, which refuses the call:
    its modes were settled when it was made.
    """
    try:
        module.train(mode)
    except NotImplementedError:
        for part in module.modules():
            part.training = mode


def copied(module: M) -> M:
    """A deep copy, which can be trained. Raises what copy.deepcopy raises."""
    memo: dict[int, Any] = {}
    remember_torchscript(module, memo)
    return copy.deepcopy(module, memo)


def remember_torchscript(module: nn.Module, memo: dict[int, Any]) -> None:
    """Enter copies of a module's TorchScript into the memo of a deep copy: written and read again,
    since its own copies are no leaves of autograd and cannot be trained.
    """
    inside: set[int] = set()
    for part in module.modules():
        if isinstance(part, torch.jit.ScriptModule) and id(part) not in inside:
            memo.setdefault(id(part), _reloaded(part))
            inside.update(id(inner) for inner in part.modules())


def _reloaded(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # torch.jit is deprecated as a whole, which users of it know.
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(module, buffer)
        buffer.seek(0)
        fresh: torch.jit.ScriptModule = torch.jit.load(buffer)
    return fresh


def allow_gradients(module: nn.Module) -> None:
    """Let all weights take gradients that can: integers cannot."""
    for parameter in module.parameters():
        if parameter.is_floating_point() or parameter.is_complex():
            parameter.requires_grad_(True)


def dtypes(network: nn.Module) -> list[torch.dtype]:
    """The kinds of floating-point numbers in a network's weights, in order of appearance."""
    return list(dict.fromkeys(p.dtype for p in _weights(network) if p.is_floating_point()))


def _weights(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def mixes_images(network: nn.Module) -> bool:
    """Whether an image's answer depends on its batch by design: dynamic quantisation takes its
    scale from the largest activation of the whole batch.
    """
    return any(".quantized.dynamic" in type(part).__module__ for part in network.modules())


def as_logits(output: Any, n: int, num_classes: int) -> Tensor:
    """What a network answered for n images, as float32 logits (n, K).

    - An object with `logits`, as models of Hugging Face return, is opened.
    - (n, K, 1, 1) loses its last axes.
    - One logit z an image, (n, 1) or (n,), becomes [0, z] where there are two classes: the softmax
      of these is the sigmoid of z, the probability of class 1.

    Raises `BadInput` for anything that is no tensor of logits. Other shapes come back as they are.
    """
    logits = _tensor(output)
    if logits.is_quantized:
        logits = logits.dequantize()
    if logits.dtype != torch.float32:
        logits = logits.float()
    if logits.dim() > 2 and logits.shape[2:].numel() == 1:
        logits = logits.flatten(1)
    if num_classes == 2 and logits.shape in ((n, 1), (n,)):
        single = logits.reshape(n, 1)
        logits = torch.cat([torch.zeros_like(single), single], 1)
    return logits


def _tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple | list) and len(output) == 1:
        return _tensor(output[0])
    inner = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(inner, Tensor):
        return inner
    raise BadInput(
        f"the network returned {_contents(output)} where a tensor of logits was expected: wrap it "
        "in a module that returns the logits alone"
    )


def _contents(output: Any) -> str:
    kind = type(output).__name__
    if isinstance(output, tuple | list):
        return f"{kind} of {len(output)} values"
    return kind
