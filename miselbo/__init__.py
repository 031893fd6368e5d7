"""Deep ensembles of variational approximations: train them, and measure them as one mixture."""

__version__ = "0.1.0"
