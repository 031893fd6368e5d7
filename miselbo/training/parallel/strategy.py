"""Lightning's data-parallel strategy for processes that are there already."""

from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy

from miselbo.training.parallel import collectives


class Together(DDPStrategy):
    """DDP that starts no process: :mod:`miselbo.training.parallel.ranks` has, and has made the process group."""

    def _configure_launcher(self) -> None:
        """None is needed."""


class Local(LightningEnvironment):
    """The processes of one machine."""

    def __init__(self) -> None:
        super().__init__()
        self.set_global_rank(collectives.rank())
        self.set_world_size(collectives.size())

    @property
    def creates_processes_externally(self) -> bool:
        """They are there."""
        return True

    def local_rank(self) -> int:
        """Of this process."""
        return collectives.rank()

    def node_rank(self) -> int:
        """There is one machine."""
        return 0

    def teardown(self, *_: object) -> None:
        """Nothing was set."""
