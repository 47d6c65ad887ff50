"""RecurrentSpectrum: eigenvalues and time constants of a network's recurrence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..period import Period
from .arguments import steps_or_epochs
from .base import Callback

if TYPE_CHECKING:
    import numpy as np

    from ..core.module import Module, Phases
    from ..strategies.base import Learner
    from .run import Run


class RecurrentSpectrum(Callback):
    """Draws the eigenvalues of the recurrence and their time constants, and logs the largest absolute value.

    The eigenvalues are those of the Jacobian of the hidden state with respect to the previous one, at the last time
    step of the first sequence of a training batch; if it is padded at its end, that is one of the padding. An
    eigenvalue has the time constant ``-dt / ln|eigenvalue|``, with ``dt`` of ``Module.environ`` or else in time steps.
    The figure has the tag ``spectrum``; without ``run_dir`` and ``loggers``, nothing is written. The log gets
    ``spectrum/radius``, which is NaN, without a figure, if the Jacobian is not finite.

    >>> callbacks = [RecurrentSpectrum(every="1ep"), TensorBoard()]

    Args:
        every: Steps or epochs between figures.

    Raises:
        ValueError: ``every`` is not a number of steps or epochs.
    """

    rank = "produce"

    def __init__(self, every: int | str | Period):
        self.probe_every = steps_or_epochs(every, "RecurrentSpectrum")

    def probe(self, module: Module, learner: Learner, phases: Phases) -> dict[str, Any]:
        import jax

        from ..strategies.jacobian import recurrent_jacobian

        dt = jax.tree.map(jax.numpy.asarray, module.environ.get("dt", 1.0))
        return {"jacobian": recurrent_jacobian(learner, phases), "dt": dt}

    def on_probe(self, run: Run, values: Any) -> None:
        import numpy as np
        import saiunit as u

        from .drawing import spectrum

        dt, unit = float(u.get_mantissa(values["dt"])), u.get_unit(values["dt"])
        if not np.isfinite(jacobian := values["jacobian"].astype(np.float64)).all():
            run.log({"spectrum/radius": np.nan})  # a run with nonfinite="skip" goes on
            return
        eigenvalues = np.linalg.eigvals(jacobian)
        run.log({"spectrum/radius": float(np.abs(eigenvalues).max())})
        name = "time steps" if unit.is_unitless else str(unit)
        run.figure("spectrum", spectrum(eigenvalues, time_constants(eigenvalues, dt), name, run.step))


def time_constants(eigenvalues: np.ndarray, dt: float) -> np.ndarray:
    """The time constants ``-dt / ln|eigenvalue|``: 0 for the eigenvalue 0, and infinite from absolute value 1 on."""
    import numpy as np

    with np.errstate(divide="ignore"):
        decay = -np.log(np.abs(eigenvalues))
        return np.where(decay > 0, dt / decay, np.inf)
