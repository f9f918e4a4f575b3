"""An accelerator for tests: tensors on device `sim` are computed on the CPU, apart from its own.

What a GPU refuses is refused: operations over both devices, `.numpy()`, a CPU generator for a
device's tensor, indices on the wrong side; and as on Apple's GPUs, where asked for, float64.
`READS` lists the times the host waited for the device: `.item()`, `bool()`, `.tolist()` and copies
to the CPU. Run the code under test inside `with simulated():`; afterwards nothing of it is left but
the name of the device.

Limits: `torch.inference_mode` is `torch.no_grad` inside, since wrapped tensors cannot be made in
it; other threads, worker processes and C extensions do not see the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from evatok.core.compute import devices

NAME = "sim"
READS: list[str] = []

aten = torch.ops.aten
ITEM = aten._local_scalar_dense.default
INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
COPIES = {aten.copy_.default, aten._to_copy.default}
MIXED = {ITEM, *INDEXING, *COPIES}  # may meet tensors of both devices, as on a GPU


class _Backend:
    """The module `torch.sim`: what PyTorch asks of a device's module."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.default_generator.get_state()

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def synchronize(self, device: object = None) -> None:
        pass


_setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
DEVICE = torch.device(NAME, 0)

# What autocast does on a GPU, as far as the models here need it; all else keeps its dtype.
LOWERED = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "conv1d", "conv2d", "conv3d",
           "scaled_dot_product_attention")  # fmt: skip
RAISED = ("layer_norm", "softmax.int", "log_softmax.int", "mse_loss", "exp", "log", "cumsum")


def _autocast(name: str, dtype: torch.dtype | None) -> Any:
    """An operation that first casts its floats to autocast's dtype, or to the given one."""
    operation = getattr(torch.ops.aten, name.split(".")[0])
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)  # type: ignore[attr-defined]

    def cast(x: Tensor) -> Tensor:
        is_small = x.is_floating_point() and x.dtype != torch.float64
        return x.to(dtype or torch.get_autocast_dtype(NAME)) if is_small else x

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(key):
            args, kwargs = tree_map_only(Tensor, cast, (args, kwargs))
            return operation(*args, **kwargs)

    return run


_LIBRARIES = (torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL"))
_LIBRARIES[0].fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
for _name in (*LOWERED, *RAISED):
    _kernel = _autocast(_name, torch.float32 if _name in RAISED else None)
    _LIBRARIES[1].impl(_name, _kernel, "AutocastPrivateUse1")


class SimulatedTensor(Tensor):
    """A CPU tensor under the name of the device."""

    host: Tensor

    @staticmethod
    def __new__(cls, data: Tensor) -> SimulatedTensor:
        out = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            data.shape,
            strides=data.stride(),
            storage_offset=data.storage_offset(),
            dtype=data.dtype,
            device=DEVICE,
        )
        out.host = data
        return out

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"SimulatedTensor({self.host!r})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _is_ours(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation: refuse it as a GPU would, or compute it on the CPU."""
    flat = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    ours = [x for x in flat if isinstance(x, SimulatedTensor)]
    asked = kwargs.get("device")
    to_sim = _is_ours(asked)
    _refuse(func, args, kwargs, flat, bool(ours), to_sim)
    if ours and (func is ITEM or (asked is not None and not to_sim)):
        READS.append(str(func))
    if func is aten.copy_.default and ours and not isinstance(args[0], SimulatedTensor):
        READS.append(str(func))
    plain_args, plain = tree_map_only(SimulatedTensor, lambda x: x.host, (args, kwargs))
    if asked is not None and (to_sim or torch.device(asked).type != "meta"):
        plain = {**plain, "device": torch.device("cpu")}
    if to_sim:
        plain.pop("pin_memory", None)
    out = func(*plain_args, **plain)
    wraps = to_sim or (bool(ours) and asked is None)
    if func in MIXED - {aten._to_copy.default, ITEM}:
        wraps = isinstance(args[0], SimulatedTensor)
    if func is ITEM or not wraps:
        return out
    out = tree_map_only(Tensor, _on_device, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if ours else out


def _on_device(x: Tensor) -> SimulatedTensor:
    if x.dtype == torch.float64 and not devices.has_float64(DEVICE):
        raise TypeError(f"Cannot convert a tensor to float64: {DEVICE} has none")
    return SimulatedTensor(x)


def _refuse(
    func: Any, args: Any, kwargs: dict[str, Any], flat: list[Tensor], has_ours: bool, to_sim: bool
) -> None:
    others = [x for x in flat if not isinstance(x, SimulatedTensor) and x.dim() > 0]
    if has_ours and others and func not in MIXED:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{DEVICE} and cpu! ({func})"
        )
    if has_ours and func in INDEXING and not isinstance(args[0], SimulatedTensor):
        raise RuntimeError(
            "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
        )
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type == "cpu" and (to_sim or has_ours):
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _Python(TorchFunctionMode):
    """Entry points of Python that reach no dispatcher key of the device."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, SimulatedTensor):
            if func is Tensor.tolist:
                READS.append("tolist")
                return first.host.tolist()
            if func is Tensor.numpy:
                raise TypeError(
                    f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first"
                )
            if func in (Tensor.__getitem__, Tensor.__setitem__):
                return self._indexed(func, args)
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and _is_ours(
            kwargs.get("device")
        ):
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        return func(*args, **kwargs)

    def _indexed(self, func: Any, args: Any) -> Any:
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        index = tuple(torch.tensor(i) if isinstance(i, list) else i for i in index)
        if func is Tensor.__setitem__ and not isinstance(args[2], Tensor):
            value = torch.full((), args[2], dtype=args[0].dtype, device=DEVICE)
            return func(args[0], index, value)
        return func(args[0], index, *args[2:])


@contextmanager
def simulated(has_float64: bool = True) -> Iterator[torch.device]:
    """Make the device work, with an empty list of reads, perhaps without float64; yields it."""
    READS.clear()
    without = devices.NO_FLOAT64
    devices.NO_FLOAT64 = without if has_float64 else without | {NAME}
    real = torch.inference_mode
    torch.inference_mode = lambda mode=True: (  # type: ignore[misc, assignment]
        torch.no_grad() if mode else nullcontext()
    )
    try:
        with _Dispatch(), _Python():
            yield DEVICE
    finally:
        torch.inference_mode = real  # type: ignore[misc]
        devices.NO_FLOAT64 = without
