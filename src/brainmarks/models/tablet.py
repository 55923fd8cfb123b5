"""
TABLeT in Brainmarks, an evaluation suite for fMRI foundation models (arXiv:2510.13768).

    TABLET_CHECKPOINT=FOLDER python -m brainmarks.main_logistic tablet cls abide_dx

The suite finds this file by itself: `brainmarks` and `brainmarks.models` are namespace packages, to which every
installed package may add modules. An `__init__.py` here would hide the suite.

A sample of the suite's space "mni" is a run or a clip on the FSL grid of 2 mm, with x as in templates (RAS): `bold`
(frames, voxels of the brain), each voxel standardised over time by its `mean` and `std` (1, voxels), and the repetition
time `tr` in seconds. The plugin restores intensities as far as docs/brainmarks.md says.
"""

import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from brainmarks.models.base import Embeddings
from brainmarks.models.registry import register_model
from nibabel import Nifti1Image
from torch import Tensor, nn

from tablet_hf import InputError, TabletFeatureExtractor, TabletModel
from tablet_hf.brain import MAX_NEGATIVE_SHARE
from tablet_hf.convert_tablet_to_hf import RELEASED_REPO
from tablet_hf.hub.loading import load_extractor, load_model
from tablet_hf.pipeline_tablet import FmriFeatureExtractionPipeline, ScanEmbeddings
from tablet_hf.volumes import BoldRun, open_run

SPACE = "mni"
# The first voxel of the suite's space "mni" is left, posterior, inferior; its grid has the shape of MNI152_T1_2mm.
SPACE_AFFINE = np.array([[2.0, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])


def restore_intensities(sample: dict[str, Any]) -> dict[str, Any]:
    """Replace the standardised `bold` of a sample by float32 intensities of at least 0; its `mean` and `std` go."""
    # In float32: thousands of units times a few standard deviations overflow float16.
    intensities = sample["bold"].float() * sample["std"].float() + sample["mean"].float()
    if (intensities < 0).float().mean() > MAX_NEGATIVE_SHARE:
        warnings.warn(
            f"In some samples over {MAX_NEGATIVE_SHARE:.0%} of the restored intensities are negative, so the data "
            "were demeaned before the samples were made; results of TABLeT on them mean little.",
            stacklevel=2,
        )
    others = {name: value for name, value in sample.items() if name not in ("mean", "std")}
    return others | {"bold": intensities.clamp_(min=0)}


class SampleFrames:
    """The intensities (frames, voxels) float32 of a sample as the data of a nibabel image, made frame by frame.

    `brain` (X, Y, Z) bool says which voxels these are; they are listed with x fastest and z slowest.
    """

    ndim, dtype = 4, np.dtype(np.float32)

    def __init__(self, intensities: np.ndarray, brain: np.ndarray):
        self.shape = (*brain.shape, len(intensities))
        self._intensities, self._brain = intensities, brain

    def __getitem__(self, index: tuple[Any, int]) -> np.ndarray:
        """`frames[..., number]`, which is all that `open_run` asks for."""
        frame = np.zeros(self._brain.shape, dtype=self.dtype, order="F")
        frame.T[self._brain.T] = self._intensities[index[-1]]
        return frame


class TabletWrapper(nn.Module):
    """Samples to embeddings, by a frozen encoder with its extractor.

    Args:
        brain: (X, Y, Z) bool, the voxels of a sample on the suite's grid.
        num_frames: frames of a window (default: those the model was trained on, else 256).

    Raises:
        InputError: the autoencoder cannot be loaded, or its tokens do not fit the model.
    """

    __space__ = SPACE

    def __init__(
        self, model: TabletModel, extractor: TabletFeatureExtractor, brain: np.ndarray, num_frames: int | None = None
    ):
        super().__init__()
        self.model, self.brain = model.requires_grad_(False), brain
        self.pipeline = FmriFeatureExtractionPipeline(
            model=model, feature_extractor=extractor, device=model.device, num_frames=num_frames
        )
        self.pipeline.check_extractor()

    def forward(self, batch: dict[str, Any]) -> Embeddings:
        """
        Args:
            batch: with `bold` (samples, frames, voxels), intensities as of `restore_intensities`, and `tr` (samples,).

        Returns:
            float32 on the model's device: `cls_embeds` (samples, 1, pooled_size), the `run` of `ScanEmbeddings`; no
            registers; and `patch_embeds` (samples, frames * cells, hidden_size), its `tokens`.
        """
        device = self.model.device
        samples = [self.embed(*sample) for sample in zip(batch["bold"], batch["tr"].tolist(), strict=True)]
        runs = torch.stack([sample.run for sample in samples])[:, None]
        tokens = torch.stack([sample.tokens.flatten(0, 1) for sample in samples])
        return Embeddings(runs.to(device), None, tokens.to(device))

    def embed(self, intensities: Tensor, repetition_time: float) -> ScanEmbeddings:
        """Embeddings of one sample (frames, voxels), wherever the suite has moved the model."""
        device = self.pipeline.device = self.model.device
        if self.pipeline.feature_extractor.device != device:
            self.pipeline.feature_extractor.to(device, torch.float16 if device.type == "cuda" else torch.float32)
        return self.pipeline(self.open_sample(intensities, repetition_time))

    def open_sample(self, intensities: Tensor, repetition_time: float) -> BoldRun:
        """A sample's intensities (frames, voxels) as a run on the model's grid."""
        voxels = np.count_nonzero(self.brain)
        if intensities.ndim != 2 or intensities.shape[1] != voxels:
            raise InputError(
                f"A sample has the shape {tuple(intensities.shape)}, but those of the space {SPACE!r} are (frames, "
                f"{voxels}); use the data set of that space, made after 14 January 2026."
            )
        image = Nifti1Image(SampleFrames(intensities.float().cpu().numpy(), self.brain), SPACE_AFFINE)
        volume_size = self.pipeline.feature_extractor.volume_size
        return open_run(image, self.brain, repetition_time, volume_size, check_space=False)


def brain_of_space() -> np.ndarray:
    """The voxels of a sample, (X, Y, Z) bool: the brain mask of the suite's reader, from TemplateFlow."""
    from brainmarks.readers import DATA_DIMS
    from templateflow import api

    from brainmarks import nisc

    name = "tpl-MNI152NLin6Asym_res-02_desc-brain_mask.nii.gz"
    try:
        path = api.get("MNI152NLin6Asym", desc="brain", resolution=2, suffix="mask", extension="nii.gz")
    except OSError as error:
        raise InputError(
            f"{name}: TemplateFlow cannot download it now; connect to the network once, or put the file into its "
            "folder (TEMPLATEFLOW_HOME)."
        ) from error
    brain = nisc.read_mni152_2mm_data(path, interpolation="nearest").T > 0
    if np.count_nonzero(brain) != DATA_DIMS[SPACE]:
        raise InputError(f"{path}: not the mask of the space {SPACE!r}; remove it, to download it again.")
    return brain


@register_model
def tablet(ckpt_path: str | None = None, num_frames: int | None = None) -> tuple[Callable, TabletWrapper]:
    """
    A TABLeT checkpoint with the feature extractor saved with it.

    Args (of the suite: `--overrides model_kwargs.num_frames=...`):
        ckpt_path: folder or Hub id; by default the value of the environment variable TABLET_CHECKPOINT, else the
            released checkpoint of arXiv:2604.03619.
        num_frames: frames of a window; by default those the model was trained on.
    """
    checkpoint = ckpt_path or os.environ.get("TABLET_CHECKPOINT") or RELEASED_REPO
    model = load_model(checkpoint, model_class=TabletModel)
    return restore_intensities, TabletWrapper(model, load_extractor(checkpoint, model), brain_of_space(), num_frames)
