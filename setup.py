"""What the wheel carries inside the package: conf/ and the paper's values (setup.cfg has everything else).

An editable installation reads both from the checkout, and is a plain path, which type checkers follow.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithData(build_py):
    """Copies the files of two top-level folders into ``miselbo/``, keeping their places below it."""

    def run(self):
        """After the modules."""
        super().run()
        if not self.editable_mode:
            for source, target in self.carried():
                self.mkpath(str(Path(target).parent))
                self.copy_file(str(source), target)

    def carried(self):
        """Each file with its place in the build."""
        for folder, pattern, place in (("conf", "*.yaml", "conf"), ("experiments", "paper.csv", "published")):
            for source in sorted(Path(folder).rglob(pattern)):
                yield source, str(Path(self.build_lib, "miselbo", place, source.relative_to(folder)))

    def get_outputs(self, include_bytecode=True):
        """Modules and carried files."""
        own = [] if self.editable_mode else [target for _, target in self.carried()]
        return [*super().get_outputs(include_bytecode), *own]


setup(cmdclass={"build_py": BuildWithData})
