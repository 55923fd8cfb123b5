"""
TABLeT in Brainmarks, an evaluation suite for fMRI foundation models (arXiv:2510.13768).

    TABLET_CHECKPOINT=FOLDER python -m brainmarks.main_logistic tablet cls abide_dx

The suite finds this file by itself: `brainmarks` and `brainmarks.models` are namespace packages, to which every
installed package may add modules. An `__init__.py` here would hide the suite.

A sample of the suite's space "mni" is a run or a clip of one on the FSL grid of 2 mm, but in the direction of x that
templates have (RAS): `bold` (frames, voxels of the brain), each voxel standardised over time, with the `mean` and `std`
(1, voxels) that were taken out, and the repetition time `tr` in seconds. From these come intensities again, which a
`TabletFeatureExtractor` tokenizes as it does any scan: moved to the cube by whole voxels, scaled, encoded.

What cannot be rebuilt:

- voxels outside the suite's brain mask, and the grid that the scan was stored on: the suite's reader has interpolated
  every scan linearly, which smooths those that did not lie on this lattice;
- the scale of the whole run, where a sample is a clip: the maximum and the mean are those of the frames that are there;
- intensities below 0, which tokenizing sets to 0 in any case, and what rounding the stored numbers has cost;
- the mean, where a data set was demeaned before its samples were made. Then there are no intensities to tokenize, and
  a warning says so.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from brainmarks.models.base import Embeddings
from brainmarks.models.registry import register_model
from torch import Tensor, nn
from transformers.utils import CONFIG_NAME

from tablet_hf import InputError, TabletFeatureExtractor, TabletModel
from tablet_hf.brain import MAX_NEGATIVE_SHARE
from tablet_hf.hub.files import fetch
from tablet_hf.hub.loading import load_extractor
from tablet_hf.pipeline_tablet import DEFAULT_NUM_FRAMES, windows_of_all_frames
from tablet_hf.volumes import BoldRun, open_run

CHECKPOINT_VARIABLE = "TABLET_CHECKPOINT"
RELEASED_CHECKPOINT = "beotborry/TABLeT_pretrained"

SPACE = "mni"

# The first voxel of the suite's space "mni" is left, behind, below; its grid has the shape of FSL's MNI152_T1_2mm.
SPACE_AFFINE = np.array([[2.0, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])


class TabletTransform:
    """Gives samples of the suite their intensities back."""

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            sample: with `bold` (frames, voxels), `mean` and `std` (1, voxels) of any floating dtype, and `tr`.

        Returns:
            The sample with `bold` (frames, voxels) float32, intensities of at least 0, without `mean` and `std`.
        """
        # Intensities of some thousands times a few standard deviations overflow float16.
        intensities = sample["bold"].float() * sample["std"].float() + sample["mean"].float()
        if (intensities < 0).float().mean() > MAX_NEGATIVE_SHARE:
            warnings.warn(
                f"In some samples over {MAX_NEGATIVE_SHARE:.0%} of the intensities are negative once mean and standard "
                "deviation are put back, so the data set was demeaned before it was made; TABLeT sees what remains "
                "above 0, and its result on this data set means little.",
                stacklevel=2,
            )
        kept = {name: value for name, value in sample.items() if name not in ("mean", "std")}
        return kept | {"bold": intensities.clamp_(min=0)}


class SampleFrames:
    """The frames of a sample as volumes, one at a time, in the way that images of nibabel hold voxels on disk.

    Args:
        intensities: (frames, voxels) float32.
        brain: (X, Y, Z) bool, which voxels these are; they are listed with x fastest and z slowest.
    """

    ndim, dtype = 4, np.dtype(np.float32)

    def __init__(self, intensities: np.ndarray, brain: np.ndarray):
        self.shape = (*brain.shape, len(intensities))
        self._intensities, self._brain = intensities, brain

    def __getitem__(self, place: tuple[slice, slice, slice, int]) -> np.ndarray:
        frame = np.zeros(self._brain.shape, dtype=self.dtype, order="F")
        frame.T[self._brain.T] = self._intensities[place[3]]
        return frame[place[:3]]


class TabletWrapper(nn.Module):
    """Samples to embeddings: the suite's view of a `TabletModel`.

    Slices are encoded here and not in the transform, because the suite's data loaders work in processes of their own,
    which have no GPU. That is done in float16 on a GPU and in float32 on a CPU, whatever the suite's `amp` says:
    bfloat16 rounds latents as coarsely as BOLD moves them. The model itself runs as the suite wants it.

    Args:
        model: its weights are all that `parameters()` has; the autoencoder stays frozen.
        extractor: makes tokens as the model knows them; other geometries are refused.
        brain: (X, Y, Z) bool, the voxels of a sample on the suite's grid.
        num_frames: frames of a window; by default those the model was trained on, else 256.

    Raises:
        InputError: the autoencoder cannot be loaded, or its tokens do not fit the model.
    """

    __space__ = SPACE

    def __init__(
        self, model: TabletModel, extractor: TabletFeatureExtractor, brain: np.ndarray, num_frames: int | None = None
    ):
        super().__init__()
        if num_frames is not None and num_frames < 1:
            raise InputError(f"A window needs at least one frame, got num_frames={num_frames}.")
        self.model, self.extractor, self.brain = model, extractor, brain
        self.num_frames = num_frames or model.config.num_frames or DEFAULT_NUM_FRAMES
        _ = extractor.slice_autoencoder
        try:
            model.config.check_tokens_compatible(extractor)
        except ValueError as error:
            raise InputError(f"{extractor.autoencoder}: {error}") from error

    def extra_repr(self) -> str:
        made_by = f"autoencoder={self.extractor.autoencoder!r}, signal={self.extractor.signal!r}"
        return f"{self.model.name_or_path!r}, {made_by}, num_frames={self.num_frames}"

    def forward(self, batch: dict[str, Any]) -> Embeddings:
        """
        Args:
            batch: with `bold` (samples, frames, voxels), intensities as of `TabletTransform`, and `tr` (samples,).

        Returns:
            float32 on the model's device. `cls_embeds` (samples, 1, pooled_size): what a head would read, by
            `config.pooling_type`; of several windows the mean, each by the number of frames that it adds.
            `patch_embeds` (samples, frames * cells, hidden_size): the token states, frame by frame; frames that do
            not fill a window are seen in a last one that reaches back. There are no registers.
        """
        pooled, tokens = [], []
        for intensities, seconds in zip(batch["bold"], batch["tr"], strict=True):
            of_run, of_tokens = self.embed(self.open_sample(intensities, float(seconds)))
            pooled.append(of_run)
            tokens.append(of_tokens)
        return Embeddings(torch.stack(pooled)[:, None], None, torch.stack(tokens))

    def open_sample(self, intensities: Tensor, seconds: float) -> BoldRun:
        """A sample's intensities (frames, voxels) as a run on the model's grid."""
        from nibabel import Nifti1Image

        voxels = np.count_nonzero(self.brain)
        if intensities.ndim != 2 or intensities.shape[1] != voxels:
            raise InputError(
                f"A sample has the shape {tuple(intensities.shape)}, but those of the space {SPACE!r} are (frames, "
                f"{voxels}); use the data set of that space, made after 14 January 2026."
            )
        frames = SampleFrames(intensities.cpu().numpy(), self.brain)
        return open_run(
            Nifti1Image(frames, SPACE_AFFINE), self.brain, seconds, self.extractor.volume_size, check_space=False
        )

    def embed(self, run: BoldRun) -> tuple[Tensor, Tensor]:
        """What a head would read of a run (pooled_size,), and its token states (frames * cells, hidden_size)."""
        device = self.model.device
        if self.extractor.device != device:
            self.extractor.to(device, torch.float16 if device.type == "cuda" else torch.float32)
        with torch.autocast(device.type, enabled=False):
            tokens = self.extractor.tokenize(run).tokens
        pooled, states = 0, []
        for window in windows_of_all_frames(run.num_frames, self.num_frames):
            outputs = self.model(
                tokens[None, window.start : window.stop].to(device, self.model.dtype),
                repetition_time=run.repetition_time,
            )
            share = (window.stop - window.new_from) / run.num_frames
            pooled = pooled + share * outputs.pooler_output[0].float()
            of_frames = outputs.last_hidden_state[0, 1:].float().unflatten(0, (-1, tokens.shape[1]))
            states.append(of_frames[window.new_from - window.start :].flatten(0, 1))
        return pooled, torch.cat(states)


def load_encoder(checkpoint: str | Path) -> TabletModel:
    """The encoder of any TABLeT checkpoint, in evaluation mode: pre-trained, fine-tuned, or of the released layout.

    Raises:
        InputError: there is none, or some of its weights are missing, which would be random then.
    """
    fetch(checkpoint, CONFIG_NAME)  # says in a sentence what is wrong with a name
    try:
        model, info = TabletModel.from_pretrained(str(checkpoint), use_safetensors=True, output_loading_info=True)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{checkpoint}: no model could be loaded from there; {' '.join(str(error).split())}"
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise InputError(
            f"{checkpoint}: it holds no weights for {', '.join(missing[:4])}{' ...' if len(missing) > 4 else ''}; give "
            "the checkpoint of a whole model."
        )
    return model.eval()


def brain_of_space() -> np.ndarray:
    """The voxels of a sample in the suite's space "mni", (X, Y, Z) bool: the brain mask that its reader takes, which
    TemplateFlow has or downloads."""
    from brainmarks.readers import DATA_DIMS
    from templateflow import api

    from brainmarks import nisc

    name = "tpl-MNI152NLin6Asym_res-02_desc-brain_mask.nii.gz"
    try:
        path = api.get("MNI152NLin6Asym", desc="brain", resolution=2, suffix="mask", extension="nii.gz")
    except OSError as error:
        raise InputError(
            f"{name}: TemplateFlow has no copy of the brain mask of the space {SPACE!r} and cannot download it now; "
            "connect to the network once, or put the file into its folder (TEMPLATEFLOW_HOME)."
        ) from error
    brain = nisc.read_mni152_2mm_data(path, interpolation="nearest").T > 0
    if np.count_nonzero(brain) != DATA_DIMS[SPACE]:
        raise InputError(
            f"{path}: this mask has {np.count_nonzero(brain)} voxels, but samples of the space {SPACE!r} have "
            f"{DATA_DIMS[SPACE]}; remove it, so that TemplateFlow downloads it again."
        )
    return brain


@register_model
def tablet(ckpt_path: str | None = None, num_frames: int | None = None) -> tuple[TabletTransform, TabletWrapper]:
    """
    A TABLeT checkpoint with the feature extractor saved next to it.

    Args:
        ckpt_path: a folder or Hub id (`--overrides model_kwargs.ckpt_path=...`); by default what the environment
            variable TABLET_CHECKPOINT names, else the released checkpoint of arXiv:2604.03619.
        num_frames: frames of a window (`--overrides model_kwargs.num_frames=...`); by default those that the model
            was trained on.
    """
    checkpoint = ckpt_path or os.environ.get(CHECKPOINT_VARIABLE) or RELEASED_CHECKPOINT
    model = load_encoder(checkpoint)
    return TabletTransform(), TabletWrapper(model, load_extractor(checkpoint, model), brain_of_space(), num_frames)
