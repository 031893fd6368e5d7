"""The packages of the wheel: miselbo, and two top-level folders it carries inside (setup.cfg has everything else)."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["miselbo*"]), "miselbo.conf", "miselbo.published"],
    package_dir={"miselbo.conf": "conf", "miselbo.published": "experiments"},
)
