"""Maps the four folders of the source tree to the subpackages of one import package, `hardfast`.

The folders keep short names in the tree (`engine/`, `kernels/`, ...) and are never installed under them: `kernels`
alone is the name of another well-known package.
"""

from setuptools import find_packages, setup

FOLDERS = ("engine", "kernels", "loaders", "bench")


def packages() -> tuple[list[str], dict[str, str]]:
    """All import packages, and the folder of each."""
    folder_of = {f"hardfast.{folder}": folder for folder in FOLDERS}
    for folder in FOLDERS:
        for sub in find_packages(folder):
            folder_of[f"hardfast.{folder}.{sub}"] = f"{folder}/{sub.replace('.', '/')}"
    return list(folder_of), folder_of


names, folder_of = packages()

setup(
    name="hardfast",
    version="0.1.0",
    description="A fast, exact training engine for adversarially robust image classifiers",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=names,
    package_dir=folder_of,
    package_data={name: ["py.typed", "*.csv"] for name in names},  # the figures of the paper are read at run time
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",  # the release for that torch; resnet50 alone needs it
        # The CUDA build of torch brings it; a CPU build does not, and the kernels are defined everywhere.
        "triton; platform_system == 'Linux'",
        "numpy",
        "scikit-learn",  # the embedded digits
        "matplotlib",  # the pictures of profile
        "safetensors",
        "pydantic>=2.12",  # strict reading of config.json
        "tyro>=1,<2",  # parsing.py reads the layout of its messages
        "tqdm",
        "pillow",  # the JPEGs of Tiny ImageNet
    ],
    extras_require={
        "eval": ["pyautoattack==0.2.0"],
        # Compiled on the spot, with OpenCV and libturbojpeg: see `system` in the Makefile.
        "ffcv": ["ffcv==1.0.2; platform_system == 'Linux'"],
        "dali": ["nvidia-dali-cuda130; platform_system == 'Linux' and platform_machine == 'x86_64'"],
        "test": [
            *("pytest", "pytest-xdist", "hypothesis", "mypy", "pytest-benchmark", "ruff", "types-tqdm"),
            "scikit-image",  # photographs
        ],
    },
    entry_points={"console_scripts": ["hardfast=hardfast.engine.cli:main"]},
)
