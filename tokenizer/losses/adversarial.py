"""Adversarial training of the tokenizer (method section 3): losses, and both sides' part in a step.

The discriminator's logits are above 0 for "real". All losses are means over logits, so that a
batch may be cut into parts and shared among processes; they are computed in float32.

Shape letters: B batch, F frames, H W pixels, N logits of a clip.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Discriminator, Field, Tag, model_validator
from torch import Tensor, nn

from evatok.core.config import AdversaryConfig
from evatok.core.errors import EvatokError
from evatok.core.processes.distributed import mean_over_processes
from tokenizer.losses.patch_discriminator import PatchDiscriminator, PatchDiscriminatorConfig
from tokenizer.losses.semantic_discriminator import (
    SemanticDiscriminator,
    SemanticDiscriminatorConfig,
)
from video.clips import Size

AdversarialKind = Literal["hinge", "non_saturating"]


def _kind_of(settings: Any) -> Any:
    if isinstance(settings, Mapping):
        return settings.get("kind", "patch")
    return getattr(settings, "kind", None)


class AdversarialConfig(AdversaryConfig):
    """Weight, losses and the discriminator. Weight 0 = nothing of it is built."""

    weight: float = Field(default=0.0, ge=0)  # of the generator's loss
    kind: AdversarialKind = "hinge"
    # non_saturating: real and fake targets are off 1 and 0 by |N(0, σ)|, at most 2 σ; LARP: 0.15.
    smoothing: float = Field(default=0.0, ge=0, le=0.5)
    lecam: float = Field(default=0.0, ge=0)  # weight of the regulariser in the discriminator's loss
    lecam_decay: float = Field(default=0.999, ge=0, lt=1)  # of the running mean logits
    # Multiply `weight` by how much stronger the other terms pull at the decoder's last layer.
    # It is found for each part of a step by itself (`train.grad_accumulation`).
    adaptive: bool = False
    discriminator: Annotated[
        Annotated[PatchDiscriminatorConfig, Tag("patch")]
        | Annotated[SemanticDiscriminatorConfig, Tag("semantic")],
        Discriminator(_kind_of),
    ] = PatchDiscriminatorConfig()

    @model_validator(mode="after")
    def _only_targets_are_smoothed(self) -> AdversarialConfig:
        if self.smoothing and self.kind == "hinge":
            raise EvatokError("smoothing needs kind non_saturating: hinge has no targets")
        return self


# --- losses ---------------------------------------------------------------------------------------


def generator_loss(fake: Tensor, kind: AdversarialKind) -> Tensor:
    """Adversarial loss of the tokenizer.

    Args:
        fake: (B, N) logits of reconstructions.
        kind: hinge (Lim & Ye, arXiv:1705.02894): −logit; non_saturating (Goodfellow et al.,
            arXiv:1406.2661): −log sigmoid(logit).
    """
    return -fake.float().mean() if kind == "hinge" else F.softplus(-fake.float()).mean()


def discriminator_loss(
    real: Tensor,
    fake: Tensor,
    kind: AdversarialKind,
    smoothing: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Loss of the discriminator: the mean over real and fake clips.

    Args:
        real: (B, N) logits of clips.
        fake: (B, N) logits of reconstructions.
        kind: see `generator_loss`.
        smoothing: σ of the noise on the targets, see `AdversarialConfig`; not for hinge.
        generator: on the CPU, draws that noise, one number a logit.
    """
    real, fake = real.float(), fake.float()
    if kind == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    if not smoothing:
        return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())

    def off(logits: Tensor) -> Tensor:
        noise = torch.randn(logits.shape, generator=generator).mul(smoothing).abs()
        return noise.clamp(max=2 * smoothing).to(logits.device)

    on_real = F.binary_cross_entropy_with_logits(real, 1 - off(real))
    return 0.5 * (on_real + F.binary_cross_entropy_with_logits(fake, off(fake)))


def lecam_loss(real: Tensor, fake: Tensor, mean_real: Tensor, mean_fake: Tensor) -> Tensor:
    """LeCAM regulariser (Tseng et al., arXiv:2104.03310, equation 6), one-sided as in its code.

    Holds the logits of either kind within reach of the other kind's running mean. LARP squares the
    batch's mean instead of each logit, and applies its weight 0.001 twice, which makes 1e-6; here
    `AdversarialConfig.lecam` applies once.

    Args:
        real: (B, N) logits of clips.
        fake: (B, N) logits of reconstructions.
        mean_real: () running mean of real logits.
        mean_fake: () likewise of fake ones.
    """
    above = F.relu(real.float() - mean_fake).square().mean()
    return above + F.relu(mean_real - fake.float()).square().mean()


def adaptive_weight(others: Tensor, judged: Tensor, last: Tensor) -> Tensor:
    """VQGAN's weight of the adversarial term (Esser et al., arXiv:2012.09841, equation 7).

    Args:
        others: (), the sum of the other loss terms.
        judged: (), the generator's loss, unweighted.
        last: weight of the decoder's last layer.

    Returns:
        (), |∂ others / ∂ last| / (|∂ judged / ∂ last| + 1e-4), at most 1e4; no gradient. The
        gradients are those of the batch of all processes.

    Raises:
        EvatokError: a term does not depend on the last layer.
    """
    norms = []
    for term in (others, judged):
        (gradient,) = torch.autograd.grad(term, last, retain_graph=True, allow_unused=True)
        if gradient is None:
            raise EvatokError("an adaptive weight needs another loss term that looks at pixels")
        norms.append(mean_over_processes(gradient).norm())
    return (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4)


# --- the two sides --------------------------------------------------------------------------------


class Adversary(nn.Module):
    """A discriminator with the running means of its logits, which are saved with it."""

    mean_real: Tensor
    mean_fake: Tensor

    def __init__(self, config: AdversarialConfig, num_frames: int, size: Size) -> None:
        super().__init__()
        self.discriminator = build_discriminator(config.discriminator, num_frames, size)
        self.register_buffer("mean_real", torch.zeros(()))
        self.register_buffer("mean_fake", torch.zeros(()))

    def forward(self, clips: Tensor) -> Tensor:
        """Logits (B, N) of clips (B, 3, F, H, W)."""
        return self.discriminator(clips)


def build_discriminator(
    config: PatchDiscriminatorConfig | SemanticDiscriminatorConfig, num_frames: int, size: Size
) -> nn.Module:
    """The configured discriminator of clips (B, 3, F, H, W) of a shape."""
    if isinstance(config, SemanticDiscriminatorConfig):
        return SemanticDiscriminator(config)
    return PatchDiscriminator(config, num_frames, size)


def make_objective(
    config: AdversarialConfig, num_frames: int, size: Size
) -> AdversarialObjective | None:
    """Both sides, or None where the weight is 0; initial weights from torch's global generator."""
    return AdversarialObjective(config, num_frames, size) if config.weight else None


class AdversarialObjective:
    """Both sides' losses of a step.

    Calls follow each other as in `training.stage.Adversarial`: `generator_side` and
    `discriminator_side` for each part, `after_step` at the end.
    """

    def __init__(self, config: AdversarialConfig, num_frames: int, size: Size) -> None:
        self.config = config
        self.adversary = Adversary(config, num_frames, size)
        self._made: tuple[Tensor, Tensor] | None = None  # clips and their reconstructions
        self._logits: list[Tensor] = []  # mean real and fake logits (2,) of each part of the step

    def generator_side(
        self, critic: nn.Module, clips: Tensor, made: Tensor, others: Tensor, last: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the judgement to the tokenizer's loss.

        Args:
            critic: the adversary, frozen.
            clips: (B, 3, F, H, W) in [−1, 1].
            made: their reconstructions, with gradient; not clamped, so that the way back into
                range has a gradient.
            others: (), the sum of the other terms.
            last: weight of the decoder's last layer.

        Returns:
            The loss, and "adversarial" (unweighted), "adaptive_weight" where configured.
        """
        self._made = (clips, made.detach())
        if not self.config.adaptive:
            judged = generator_loss(critic(made.float()), self.config.kind)
            return others + self.config.weight * judged, {"adversarial": judged.detach()}
        # Backward through the discriminator once: to a leaf, whose gradient serves both the
        # weight and, as a term that is linear in the reconstruction, the loss.
        leaf = made.detach().requires_grad_()
        judged = generator_loss(critic(leaf.float()), self.config.kind)
        (gradient,) = torch.autograd.grad(judged, leaf)
        linear = (made * gradient).float().sum()
        adaptive = adaptive_weight(others, linear, last)
        judged = judged.detach()
        loss = others + self.config.weight * adaptive * (judged + linear - linear.detach())
        return loss, {"adversarial": judged, "adaptive_weight": adaptive}

    def discriminator_side(
        self, net: nn.Module, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss on the clips and reconstructions of `generator_side`.

        Returns:
            The loss, and mean logits, "lecam" (unweighted) where configured.
        """
        assert self._made is not None, "the generator's side comes first"
        config, made = self.config, self._made
        self._made = None
        # one forward: wrapped for several processes, a module may run once before its backward
        logits = net(torch.cat([made[0].float(), made[1].float()])).float()
        real, fake = logits.chunk(2)
        loss = discriminator_loss(real, fake, config.kind, config.smoothing, generator)
        terms = {"logit_real": real.detach().mean(), "logit_fake": fake.detach().mean()}
        if config.lecam:
            self._logits.append(torch.stack(list(terms.values())))
            means = self.adversary.mean_real, self.adversary.mean_fake
            lecam = lecam_loss(real, fake, *means)
            loss, terms["lecam"] = loss + config.lecam * lecam, lecam.detach()
        return loss, terms

    @torch.no_grad()
    def after_step(self) -> None:
        """Follow the mean logits of the step's batch, over its parts and all processes."""
        if not self._logits:
            return
        real, fake = mean_over_processes(torch.stack(self._logits).mean(0))
        self.adversary.mean_real.lerp_(real, 1 - self.config.lecam_decay)
        self.adversary.mean_fake.lerp_(fake, 1 - self.config.lecam_decay)
        self._logits = []
