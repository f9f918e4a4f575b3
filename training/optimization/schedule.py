"""Learning-rate schedules: what the peak rate is multiplied by, as a pure function of the step.

Nothing is kept between steps, so a resumed run needs no schedule state.
"""

from __future__ import annotations

import math

from evatok.core.config import ScheduleConfig


def multiplier(config: ScheduleConfig, step: int, steps: int) -> float:
    """Factor of every optimiser's peak learning rate.

    Linear warm-up to 1, then constant, a half cosine (Loshchilov & Hutter, arXiv:1608.03983), or
    stable and then linear decay ("wsd", Hu et al., arXiv:2404.06395). The falling ones would reach
    `final_ratio` at step `steps`, one after the last, so that the last step still moves weights.

    Args:
        config: which one.
        step: 0 for the first step.
        steps: how many steps the run has.

    Returns:
        A number in (0, 1] for steps of the run.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.name == "constant":
        return 1.0
    start = config.warmup_steps
    if config.name == "wsd":
        start = max(start, steps - round(config.decay_fraction * steps))
    share = min(1.0, max(0.0, (step - start) / max(1, steps - start)))
    if config.name == "cosine":
        share = 0.5 - 0.5 * math.cos(math.pi * share)
    return 1.0 - (1.0 - config.final_ratio) * share
