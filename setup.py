"""The packages of the wheel: the run files of configs/ are installed as irm_jax/run_files. The rest: pyproject.toml."""

from setuptools import find_packages, setup

RUN_FILES = "irm_jax.run_files"

setup(
    packages=[*find_packages(include=["irm_jax", "irm_jax.*", "data_pipelines", "data_pipelines.*"]), RUN_FILES],
    package_dir={RUN_FILES: "configs"},
)
