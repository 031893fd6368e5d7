"""A configuration, or a part of one, as plain Python values."""

from typing import Any

from omegaconf import OmegaConf


def plain(node: object) -> dict[str, Any]:
    """Nested dictionaries and lists with every interpolation resolved; a plain mapping stays as it is.

    Example:
        >>> plain(OmegaConf.create({"a": 1, "b": "${a}"}))
        {'a': 1, 'b': 1}
    """
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node  # type: ignore
