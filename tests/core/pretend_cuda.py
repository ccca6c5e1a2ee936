"""Tensors that say they are on a CUDA device and are computed on the CPU: what mixes devices fails without a GPU.

Every operation goes through `PretendCuda`, which holds real CPU tensors behind wrappers whose `device` is cuda:0. An
operation on tensors of both devices raises as CUDA does; a copy between them is allowed only through `to` and its like.
Autograd's engine asks the CUDA driver for a context, so this shows the forward pass, without gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda:0")
_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default, torch.ops.aten._pin_memory.default}
# CUDA takes a CPU tensor as an index; and a CPU scalar (0 dimensions) in any place.
_INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default}

# Questions that only CUDA's library can answer.
_ASKED_OF_CUDA = {torch.ops.aten._use_cudnn_ctc_loss.Tensor, torch.ops.aten._use_miopen_ctc_loss.Tensor}


class OnCuda(Tensor):
    held: Tensor

    @staticmethod
    def __new__(cls, real: Tensor) -> OnCuda:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=CUDA,
            requires_grad=False,
        )

    def __init__(self, real: Tensor) -> None:
        self.held = real

    def __repr__(self) -> str:
        return f"OnCuda({self.held})"

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with PretendCuda():
            return func(*args, **(kwargs or {}))


class PretendCuda(TorchDispatchMode):
    """While active, tensors made on, or moved to, cuda are pretended ones. doubles=False: float64 is refused there, as
    on Apple's GPUs."""

    def __init__(self, doubles: bool = True) -> None:
        super().__init__()
        self.doubles = doubles

    def __enter__(self) -> PretendCuda:
        self._lazy_init, torch.cuda._lazy_init = torch.cuda._lazy_init, lambda: None  # there may be no driver to wake
        self._overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # `module.to` puts wrappers where tensors were
        self._cudnn = torch.backends.cudnn.enabled
        torch.backends.cudnn.enabled = False  # its batch norm is an operation of its own, which the CPU lacks
        torch._C._ensureCUDADeviceGuardSet()  # a guard that does nothing, where there is no device
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.cuda._lazy_init, torch.backends.cudnn.enabled = self._lazy_init, self._cudnn
        torch.__future__.set_overwrite_module_params_on_conversion(self._overwrite)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ASKED_OF_CUDA:
            return False
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        wrapped = [isinstance(t, OnCuda) for t in tensors]
        on_cuda = any(wrapped)
        if "device" in kwargs and kwargs["device"] is not None:
            on_cuda = torch.device(kwargs["device"]).type == "cuda"
            kwargs["device"] = torch.device("cpu")
        elif func in _COPIES:
            on_cuda = wrapped[0]
        elif on_cuda:
            self._refuse_mixture(func, tensors, wrapped)
        kwargs.pop("pin_memory", None)
        real_args, real_kwargs = tree_map(_real, (args, kwargs))
        out = func(*real_args, **real_kwargs)
        if out is None:
            return None
        if _in_place(func):
            return args[0]
        if on_cuda and not self.doubles:
            self._refuse_doubles(func, out)
        return tree_map(OnCuda, out, is_leaf=lambda x: isinstance(x, Tensor)) if on_cuda and _has_tensor(out) else out

    @staticmethod
    def _refuse_doubles(func: Callable, out: Any) -> None:
        if any(isinstance(x, Tensor) and x.dtype == torch.float64 for x in tree_flatten(out)[0]):
            raise TypeError(f"{func}: there is no float64 on this device")

    @staticmethod
    def _refuse_mixture(func: Callable, tensors: list[Tensor], wrapped: list[bool]) -> None:
        if func in _INDEXING:
            if not wrapped[0]:
                raise RuntimeError(f"{func}: a CPU tensor is indexed by one of cuda:0")
            return
        for tensor, there in zip(tensors, wrapped, strict=True):
            if not there and tensor.ndim:
                shape = tuple(tensor.shape)
                raise RuntimeError(f"{func}: expected all tensors on one device, found cuda:0 and cpu {shape}")


def _real(x: Any) -> Any:
    return x.held if isinstance(x, OnCuda) else x


def _has_tensor(out: Any) -> bool:
    return any(isinstance(x, Tensor) for x in tree_flatten(out)[0])


def _in_place(func: Any) -> bool:
    return func._schema.name.endswith("_") and not func._schema.name.endswith("__")
