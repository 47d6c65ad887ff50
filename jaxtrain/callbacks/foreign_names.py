"""Names that other frameworks give to events of a callback, and what to use here."""

import difflib
from collections.abc import Iterable

_INSTEAD = {
    "use on_fit_start": ("on_train_start", "on_train_begin", "on_fit_begin", "on_sanity_check_start"),
    "use on_fit_end": ("on_train_end", "on_fit_stop", "on_teardown"),
    "use on_fit_end, whose status is then 'interrupted'": ("on_keyboard_interrupt",),
    "use on_epoch_start": ("on_train_epoch_start", "on_epoch_begin", "on_train_epoch_begin"),
    "use on_epoch_end": ("on_train_epoch_end",),
    "use on_chunk_start": (
        "on_train_batch_start", "on_train_batch_begin", "on_batch_start", "on_batch_begin", "on_step_begin",
        "on_step_start",
    ),
    "use on_chunk_end, which gets an array with one value per step": (
        "on_train_batch_end", "on_batch_end", "on_step_end", "on_before_optimizer_step", "on_after_backward",
        "on_before_zero_grad",
    ),
    "use on_validation_start": (
        "on_test_begin", "on_validation_begin", "on_validation_epoch_start", "on_evaluate",
    ),
    "use on_validation_end": ("on_test_end", "on_validation_epoch_end"),
    "use on_validation_end, which gets the means over all batches": (
        "on_validation_batch_start", "on_validation_batch_end", "on_test_batch_begin", "on_test_batch_end",
    ),
    "use on_log": ("on_row", "on_log_metrics"),
    "use on_checkpoint": ("on_save",),
    "define state(), or use on_checkpoint": ("on_save_checkpoint",),
    "define load_state(state), or use on_restore": ("on_load_checkpoint", "on_load"),
    "define state()": ("state_dict",),
    "define load_state(state)": ("load_state_dict",),
}  # fmt: skip
FOREIGN_NAMES = {name: advice for advice, names in _INSTEAD.items() for name in names}
"""For each event of Lightning, Keras and others: what to use here."""


def advice(name: str, events: Iterable[str]) -> str | None:
    """What to do about a method that looks like an event but is none; None if it does not look like one."""
    if name in events or not (name.startswith("on_") or name in FOREIGN_NAMES):
        return None
    close = difflib.get_close_matches(name, events, n=1)
    return FOREIGN_NAMES.get(name) or (f"did you mean {close[0]}?" if close else "rename it without on_")
