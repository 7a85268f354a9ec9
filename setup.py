"""Packaging of VET-DINO: one distribution, `vet-dino`, with two import packages, `dinov2` and `vet_extensions`.

The tested versions of everything are in constraints.txt: `pip install -c constraints.txt -e .`
"""

import re
from pathlib import Path

from setuptools import find_namespace_packages, setup

HERE = Path(__file__).parent

CORE = [
    "torch>=2.10",
    "numpy>=1.26",
    "scipy>=1.13",
    "omegaconf>=2.3",
    "pyyaml>=6.0",
    "fvcore>=0.1.5.post20221221",
    "submitit>=1.5",
    "pydicom>=3.0",
    "pylibjpeg>=2.0",
    "pylibjpeg-openjpeg>=2.4",
    "pylibjpeg-rle>=2.1",
    "pyjpegls>=1.5",
    "python-gdcm>=3.0.24",
    "pyarrow>=17",
    "pillow>=10.4",
    "opencv-python-headless>=4.10",
    "scikit-learn>=1.5",
    "matplotlib>=3.9",
    "jinja2>=3.1",
    "typer>=0.15",
    "rich>=13.7",
    "safetensors>=0.4.5",
    "tensorboard>=2.17",
]

EXTRAS = {
    "xformers": ["xformers>=0.0.30"],
    "hf": ["transformers>=4.50"],
    "timm": ["timm>=1.0", "torchvision"],
    "peft": ["peft>=0.15"],
    "seg": ["monai>=1.4"],
    "volumes": ["nibabel>=5.2", "h5py>=3.11"],
    "onnx": ["onnx>=1.16", "onnxruntime>=1.18", "onnxscript>=0.2"],
    "net": ["dicomweb-client>=0.60", "pynetdicom>=3.0"],
    "track": ["wandb>=0.19", "mlflow-skinny>=2.20"],
    # pyright brings its own Node.js from the package index with [nodejs]; without it, it would want one on the machine.
    "dev": [
        "pytest>=8.2",
        "pytest-xdist>=3.6",
        "hypothesis>=6.100",
        "ruff>=0.9",
        "pyright[nodejs]>=1.1.400",
        "import-linter>=2.1",
        # The tests of DICOMweb, for which CI also installs an Orthanc server.
        "dicomweb-client>=0.60",
        # Optional packages of the evaluation, whose tests are skipped without them: LoRA, volumes, segmentation, networks of
        # others.
        # Not timm: beside a CPU build of torch it wants a torchvision that is not to be had.
        "peft>=0.15",
        "transformers>=4.50",
        "monai>=1.4",
        "nibabel>=5.2",
        "h5py>=3.11",
    ],
}


def version() -> str:
    """The `__version__` of vet_extensions, read without importing it."""
    text = (HERE / "vet_extensions" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, flags=re.MULTILINE)
    if found is None:
        raise RuntimeError('vet_extensions/__init__.py must hold a line like __version__ = "1.2.3"')
    return found.group(1)


setup(
    name="vet-dino",
    version=version(),
    description="Multi-view DINOv2 for radiograph studies: from DICOM to an evaluated, explained and exported backbone",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    python_requires=">=3.11",
    # Namespace packages too: dinov2/run/train and dinov2/run/eval have no __init__.py, as in the official package.
    packages=find_namespace_packages(
        include=["dinov2", "dinov2.*", "vet_extensions", "vet_extensions.*"], exclude=["*.__pycache__"]
    ),
    package_data={
        "dinov2": ["configs/*.yaml", "configs/**/*.yaml"],
        "vet_extensions": ["**/*.yaml", "**/templates/*"],
    },
    include_package_data=False,
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["vetdino=vet_extensions.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
)
