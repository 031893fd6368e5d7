"""Which bits were scored: a hash of every example, by which runs are matched, and one of all, for the protocol."""

import hashlib

import numpy as np

from miselbo.data.interface import Data


def hash_examples(data: Data, split: str, limit: int | None = None) -> tuple[np.ndarray, str]:
    """Hashes of the examples of a split as the members are given them, after binarisation.

    Args:
        data: data module (:class:`miselbo.data.interface.Data`).
        split: which one.
        limit: the first so many examples; None for all.

    Returns:
        [N] int64, BLAKE2b of dtype, shape and bytes of each example; SHA-256 of their numbers and hashes, in
        hexadecimal digits.

    Example:
        >>> from miselbo.data.replicates import Replicates
        >>> hashes, whole = hash_examples(Replicates("one", 3), "test")
        >>> len(hashes), len(whole), hash_examples(Replicates("one", 3), "test", 2)[1] == whole
        (3, 64, False)
    """
    found, numbers = list[int](), list[int]()
    for batch in data.evaluation_batches(split, 100):
        array = np.ascontiguousarray(batch[data.input_key].cpu().numpy())
        about = f"{array.dtype.str} {array.shape[1:]} ".encode()
        for number, example in zip(batch["index"].tolist(), array, strict=True):
            digest = hashlib.blake2b(about + example.tobytes(), digest_size=8).digest()
            found.append(int.from_bytes(digest, "little", signed=True))
            numbers.append(number)
        if limit is not None and len(found) >= limit:
            break
    hashes = np.array(found[:limit], dtype="<i8")
    index = np.array(numbers[:limit], dtype="<i8")
    return hashes, hashlib.sha256(index.tobytes() + hashes.tobytes()).hexdigest()
