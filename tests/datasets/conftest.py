"""Stores of random tokens, small in frames and of the shape of the paper's."""

from pathlib import Path

import pytest
import torch
from preprocessing import PREPROCESSING

from tablet_hf.datasets import TokenStoreWriter
from tablet_hf.sources import ScanRecord

SUBJECTS = [("01", 150, {"age": 31, "sex": "F"}), ("02", 64, {"age": None, "sex": "M"}), ("03", 5, {"age": 28.5})]


@pytest.fixture(scope="session")
def preprocessing():
    return PREPROCESSING


@pytest.fixture(scope="session")
def known_tokens():
    """By subject, (frames, cells, features) float32: static anatomy, and small changes."""
    generator = torch.Generator().manual_seed(0)
    anatomy = torch.randn(27, 96, generator=generator)
    return {name: anatomy + 0.02 * torch.randn(count, 27, 96, generator=generator) for name, count, _ in SUBJECTS}


@pytest.fixture(scope="session")
def write_store(known_tokens):
    """A function that writes a store of three subjects and returns it open."""

    def write(folder, dtype="float16", **record):
        writer = TokenStoreWriter(folder, PREPROCESSING, dtype)
        for name, _, phenotypes in SUBJECTS:
            mean = known_tokens[name].mean(0, keepdim=True) if name != "03" else None
            writer.write(
                ScanRecord(name, Path(f"{name}.nii.gz"), task="rest", site="NYU", phenotypes=phenotypes, **record),
                known_tokens[name],
                repetition_time=2.0,
                scan={"name": f"{name}.nii.gz", "bytes": 1, "modified_ns": 2},
                intensity_scale=1000.0,
                clipped_share=0.01,
                mean_tokens=mean,
            )
        return writer.finish()

    return write


@pytest.fixture(scope="session")
def store(write_store, tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("stores") / "float16")


@pytest.fixture(scope="session")
def int8_store(write_store, tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("stores") / "int8", "int8")
