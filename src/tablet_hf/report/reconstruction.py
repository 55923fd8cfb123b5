"""Decode the tokens of a run into volumes on the scan's own grid, and compare them with the scan."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from tablet_hf.evaluation.fidelity import RunningFidelity
from tablet_hf.feature_extraction_tablet import FRAMES_PER_BLOCK, TabletFeatureExtractor, TokenizedRun
from tablet_hf.nifti import write_nifti
from tablet_hf.volumes import BoldRun

__all__ = ["write_reconstruction"]


def write_reconstruction(
    tokenized: TokenizedRun,
    run: BoldRun,
    extractor: TabletFeatureExtractor,
    path: str | Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> RunningFidelity:
    """Decode tokens into a NIfTI file, in the scan's unit and on its grid, a block of frames at a time.

    Args:
        tokenized: tokens of some or all frames of `run`, made by `extractor` or read by `load_tokens`.
        run: the run they were made from, on the extractor's grid.
        path: the file to write, .nii or .nii.gz.
        on_progress: is reported frames done and frames in all.

    Returns:
        What the brain's voxels keep: `psnr(run.maximum)` and `temporal_correlation()`.

    Raises:
        InputError: the file cannot be written there, or the scan cannot be read.
    """
    brain = torch.from_numpy(run.mask)
    fidelity = RunningFidelity(brain)
    num_frames = len(tokenized.tokens)

    def decoded_blocks() -> Iterator[np.ndarray]:
        originals = run.blocks(tokenized.frames, FRAMES_PER_BLOCK)
        done = 0
        for tokens, (_, original) in zip(tokenized.tokens.split(FRAMES_PER_BLOCK), originals, strict=True):
            decoded = extractor.decode(tokens, tokenized.intensity_scale, tokenized.mean_tokens)
            decoded *= brain
            fidelity.add(torch.from_numpy(original), decoded)
            yield decoded.numpy()
            done += len(tokens)
            if on_progress is not None:
                on_progress(done, num_frames)

    write_nifti(decoded_blocks(), num_frames, run, path, tokenized.repetition_time)
    return fidelity
