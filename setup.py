"""What pyproject.toml cannot say: the demo lies beside the package and is shipped in it."""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

DEMO = {"self_ensemble.demo": "demo", "self_ensemble.demo.model": "demo/model"}


class BuildPackage(build_py):
    """The demo's model and questions without the script that trained the one on the other."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        return [] if package in DEMO else super().find_package_modules(package, package_dir)


setup(
    packages=[*find_packages(include=["self_ensemble", "self_ensemble.*"]), *DEMO],
    package_dir=DEMO,
    package_data={
        "self_ensemble": ["py.typed"],
        "self_ensemble.paraphrasing": ["english_words.txt.gz"],
        "self_ensemble.demo": ["questions.parquet", "choices.parquet", "few_shot.jsonl"],
        "self_ensemble.demo.model": ["*.json", "*.safetensors"],
    },
    include_package_data=False,
    cmdclass={"build_py": BuildPackage},
)
