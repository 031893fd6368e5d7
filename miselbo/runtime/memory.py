"""Running out of memory: how it shows, on any device."""

import gc

import torch


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device.

    Example:
        >>> out_of_memory(MemoryError()), out_of_memory(RuntimeError("sizes differ"))
        (True, False)
    """
    text = str(error).lower()
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or "out of memory" in text
        or "can't allocate" in text
    )


def free() -> None:
    """Give back what a failed pass has left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
