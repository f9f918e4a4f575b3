"""All scores of two sets of features, by name.

| name | what |
| --- | --- |
| `fvd` | Fréchet distance, `evaluation.metrics.frechet` |
| `fvd-infinity` | the same, extrapolated to infinitely many clips,
`evaluation.metrics.fvd_infinity` |
| `kvd`, `jedi` | kernel distances, `evaluation.metrics.kernel` |
| `precision`, `recall` | k = 3, `evaluation.metrics.prdc` |
| `density`, `coverage` | k = 5, likewise |

JEDi is named for its kernel and statistic; the published number also needs its network, which
stands in square brackets behind every score.

Shape letters: N, M vectors of the sets, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evaluation.metrics.frechet import frechet_distance
from evaluation.metrics.fvd_infinity import Ids, extrapolated
from evaluation.metrics.kernel import jedi_distance, kernel_distance
from evaluation.metrics.prdc import coverage
from evatok.core.processes.threads import one_thread

NEIGHBOURS = ("precision", "recall", "density", "coverage")
METRICS = ("fvd", "fvd-infinity", "kvd", "jedi", *NEIGHBOURS)


def scores(
    real: Tensor,
    fake: Tensor,
    metrics: Sequence[str] = ("fvd",),
    biased: bool = True,
    ids: Ids | None = None,
) -> dict[str, float]:
    """Score two sets.

    Args:
        real: (N, D) float.
        fake: (M, D) float.
        metrics: names of `METRICS`, at least one.
        biased: as in `evaluation.metrics.frechet.frechet_distance`, for "fvd" and "fvd-infinity".
        ids: of both sides' clips, as in `evaluation.metrics.fvd_infinity.extrapolated`.

    Raises:
        KeyError: no such metric.
        EvatokError: too few vectors for one of them.
    """
    near = (
        coverage(real, fake, k=5, k_precision=3)._asdict() if set(metrics) & set(NEIGHBOURS) else {}
    )
    ways = {
        "fvd": lambda: frechet_distance(real, fake, biased),
        "fvd-infinity": lambda: extrapolated(real, fake, ids=ids, biased=biased),
        "kvd": lambda: kernel_distance(real, fake),
        "jedi": lambda: jedi_distance(real, fake),
    }
    with one_thread():  # the same bits on any machine
        return {name: near[name] if name in near else ways[name]() for name in metrics}
