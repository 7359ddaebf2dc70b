"""What pyproject.toml cannot say: the recipes of `configs/` become a package of the wheel."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["dolg_tf*"]), "dolg_tf.configs"],
    package_dir={"dolg_tf.configs": "configs"},
)
