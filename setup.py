from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent


class BuildWithCards(build_py):
    """Copy the card templates of hub_cards/ into the package that is built."""

    def run(self) -> None:
        super().run()
        if getattr(self, "editable_mode", False):
            return  # then the package finds them where they are
        target = Path(self.build_lib) / "tablet_hf" / "hub" / "hub_cards"
        self.mkpath(str(target))
        for path in sorted((here / "hub_cards").iterdir()):
            self.copy_file(str(path), str(target / path.name))


about: dict[str, str] = {}
exec((here / "src/tablet_hf/version.py").read_text(encoding="utf-8"), about)

setup(
    name="tablet-hf",
    version=about["__version__"],
    description="Whole fMRI runs as tokens of a natural-image autoencoder, modelled by a plain transformer (TABLeT)",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    package_dir={"": "src"},
    # A plugin in the namespace of another package, which has no __init__.py and so is not found.
    packages=[*find_packages("src"), "brainmarks.models"],
    cmdclass={"build_py": BuildWithCards},
    package_data={
        "tablet_hf": ["autoencoders/weights/*/*"],
        "tablet_hf.evaluation": ["evaluate_modules/*/*.py"],
    },
    install_requires=[
        "torch>=2.6",
        "transformers>=5.4,<6",
        "huggingface_hub>=1.32,<3",
        "jinja2>=3.1",
        "diffusers>=0.36",
        "safetensors>=0.5",
        "nibabel>=5.3",
        "nilearn>=0.11",
        "numpy>=1.26",
        "scipy>=1.12",
        "scikit-learn>=1.7",
        "pandas>=2.2",
        "datasets>=5.0",
        "evaluate>=0.4.3",
        "accelerate>=1.1",
        "filelock>=3.13",
        "psutil>=5.9",
        "matplotlib>=3.9",
        "typer>=0.15",
        "rich>=13",
        "tqdm>=4.66",
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.9",
            "parameterized>=0.9",
            "tensorboardX>=2.6",
        ],
        "report": ["pillow>=10"],
        "brainmarks": ["brainmarks>=0.1.1"],
        "train": ["peft>=0.15", "pillow>=10", "tensorboardX>=2.6"],
    },
    entry_points={"console_scripts": ["tablet-hf=tablet_hf.cli.__main__:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
)
