"""Running out of memory: how it shows, on any device."""

import errno
import gc
import re

_WORDS = (
    r"out of memory|can't allocate|cannot allocate memory|bad allocation|std::bad_alloc"
    r"|could not create a (primitive|memory)(?! descriptor)"  # oneDNN's, whatever the reason: mostly this one
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device.

    Example:
        >>> out_of_memory(MemoryError()), out_of_memory(RuntimeError("sizes differ"))
        (True, False)
        >>> out_of_memory(RuntimeError("could not create a primitive"))
        True
    """
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or re.search(_WORDS, str(error).lower()) is not None
    )


def free() -> None:
    """Give back what a failed pass has left."""
    import torch  # takes seconds

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
