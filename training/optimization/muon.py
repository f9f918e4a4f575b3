"""Muon (Jordan et al. 2024) for all matrices of one shape at a time.

`torch.optim.Muon` takes one matrix after the other, some thirty small operations each. Here the
matrices of one shape are stacked, so that a network of equal layers needs a few batched products.
State, settings and, within rounding, the steps are those of `torch.optim.Muon`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from evatok.core.compute.precision import has_bfloat16
from training.sharding import is_sharded


def orthogonalised(
    matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """Bring all singular values of each matrix near 1 by Newton–Schulz iterations.

    In bfloat16; in float32 on a CPU that has no bfloat16 products.

    Args:
        matrices: (n, rows, columns).
        coefficients: of x, x³ and x⁵ in the polynomial that is applied to the singular values.
        steps: iterations.
        eps: smallest norm that a matrix is divided by.

    Returns:
        (n, rows, columns) of that type.
    """
    a, b, c = coefficients
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16() if has_bfloat16(matrices.device.type) else matrices.float()
    x = (x.mT if is_tall else x).contiguous()  # (n, short, long)
    x /= torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp_min(eps)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if is_tall else x


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` whose step takes the matrices of one shape together."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; matrices that are sharded over processes are taken one by one."""
        if any(is_sharded(p) for group in self.param_groups for p in group["params"]):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[Any, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault((p.shape, p.dtype, p.device), []).append(p)
            for parameters in alike.values():
                self._step_of_equals(parameters, group)
        return loss

    def _step_of_equals(self, parameters: Sequence[Tensor], group: dict[str, Any]) -> None:
        """Step of parameters of one shape."""
        momentum, lr = group["momentum"], float(group["lr"])
        gradients = [p.grad for p in parameters if p.grad is not None]
        for p in parameters:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        for buffer, gradient in zip(buffers, gradients, strict=True):
            buffer.lerp_(gradient, 1 - momentum)
        stacked = torch.stack(buffers)
        if group["nesterov"]:
            stacked = torch.stack(gradients).lerp_(stacked, momentum)
        update = orthogonalised(
            stacked, group["ns_coefficients"], group["ns_steps"], group["eps"]
        ).to(parameters[0].dtype)
        rows, columns = parameters[0].shape
        if group["adjust_lr_fn"] == "match_rms_adamw":
            scale = 0.2 * max(rows, columns) ** 0.5
        else:
            scale = max(1.0, rows / columns) ** 0.5
        for parameter, own in zip(parameters, update, strict=True):
            parameter.mul_(1 - lr * group["weight_decay"]).add_(own, alpha=-lr * scale)
