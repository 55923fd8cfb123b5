"""Train the autoencoder that ships with the package, on natural photographs only.

    python -m benchmarks.train_autoencoder PHOTOGRAPHS OUT

PHOTOGRAPHS is a folder of images with a shorter side of at least 96 pixels; files named `held_out*` are used for
measurement only. No brain image is used: the claim of arXiv:2604.03619 is that an autoencoder of natural images carries
fMRI.

The network is diffusers' `AutoencoderDC`. Two things make a small one useful for fMRI, and neither needs a scan:

- Views. A slice of a brain is grey and smooth on an empty background, so photographs are also shown grey, magnified, at
  low contrast, and cut out by random silhouettes.
- Loss. A BOLD signal is a change of one or two per cent on a constant anatomy, and a good autoencoder of images may
  lose all small changes. Some images are therefore shown twice, the second time with another photograph as a faint
  overlay, and the loss includes the error of the *difference* of the two.

Most views are unaltered photographs, and the loss also counts errors in decibels, which preserves the fidelity to
photographs. Later stages alter the photographs more (colours, proportions, blends of two), because after the first one
training photographs were reconstructed 0.7 dB better than held-out ones (training.json of the weights).
Convolutions are trained with `Muon`.
"""

import json
import math
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from tablet_hf.evaluation.fidelity import psnr
from tablet_hf.files import atomic_write

IMAGE_SIZE = 96
BACKGROUND = -1.0

# No attention blocks: at 6 x 6 and 3 x 3 positions a convolution sees as much, and under float16 autocast the linear
# attention divides by a sum that underflows to zero.
ARCHITECTURE = {
    "in_channels": 3,
    "latent_channels": 32,
    "attention_head_dim": 32,
    "encoder_block_types": ("ResBlock",) * 6,
    "decoder_block_types": ("ResBlock",) * 6,
    "encoder_block_out_channels": (16, 24, 48, 96, 192, 256),
    "decoder_block_out_channels": (16, 32, 64, 128, 256, 256),
    "encoder_layers_per_block": (0, 1, 2, 3, 1, 1),
    "decoder_layers_per_block": (0, 2, 3, 2, 1, 1),
    "encoder_qkv_multiscales": ((),) * 6,
    "decoder_qkv_multiscales": ((),) * 6,
    "upsample_block_type": "interpolate",
}


@dataclass(frozen=True)
class Recipe:
    """Settings of one stage; the defaults are those of the first stage of the shipped weights, `STAGES` has all.

    Args:
        minutes: Training time, on an H200 without compilation.
        pair_share: Share of a batch that is also shown with an overlay.
        learning_rate: Of the convolutions, under `Muon`.
        other_learning_rate: Of everything else, under AdamW.
        difference_weight: Weight of the error of the change, relative to its power, against the image errors.
        overlay_strengths: Range of factors on a photograph in [-1, 1]. The BOLD signal of a run scaled by its maximum
            has a standard deviation of about 0.01 on that scale; the step of bfloat16 sets the lower bound.
        stretch: Largest ratio of the sides of a crop.
        filled_share: Share of the cut-out images that have another photograph as their background.
        blended_share: Share of the images that are a blend of two photographs.
    """

    minutes: float = 8.1
    batch_size: int = 256
    pair_share: float = 0.25
    learning_rate: float = 3e-3
    other_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 200
    average_decay: float = 0.999
    decibel_weight: float = 0.03
    difference_weight: float = 0.02
    overlay_strengths: tuple[float, float] = (0.05, 0.3)
    native_scale_share: float = 0.7
    smallest_crop: int = 48
    stretch: float = 1.0
    grey_share: float = 0.3
    recoloured_share: float = 0.0
    low_contrast_share: float = 0.15
    silhouette_share: float = 0.25
    filled_share: float = 0.0
    blended_share: float = 0.0
    seed: int = 0


STAGES = (
    Recipe(),
    Recipe(
        batch_size=384,
        learning_rate=2e-3,
        weight_decay=0.2,
        native_scale_share=0.5,
        smallest_crop=64,
        stretch=1.25,
        recoloured_share=0.3,
        silhouette_share=0.45,
        filled_share=0.5,
        seed=1,
    ),
    Recipe(
        batch_size=384,
        pair_share=0.125,
        learning_rate=2e-3,
        weight_decay=0.3,
        native_scale_share=0.4,
        smallest_crop=64,
        stretch=1.4,
        grey_share=0.2,
        recoloured_share=0.5,
        low_contrast_share=0.1,
        silhouette_share=0.35,
        filled_share=0.6,
        blended_share=0.25,
        seed=2,
    ),
    # Photographs almost unaltered, for too short a time to memorise them.
    Recipe(
        minutes=4.0,
        batch_size=384,
        pair_share=0.125,
        learning_rate=6e-4,
        other_learning_rate=3e-4,
        weight_decay=0.2,
        native_scale_share=0.8,
        smallest_crop=64,
        grey_share=0.2,
        recoloured_share=0.1,
        silhouette_share=0.25,
        filled_share=0.2,
        seed=3,
    ),
)


class Photographs:
    """Photographs in the memory of one device.

    Args:
        paths: Image files with a shorter side of at least 96 pixels.

    Raises:
        ValueError: If there are no files, or one is too small.
    """

    def __init__(self, paths: list[Path], device: torch.device | str):
        from PIL import Image

        if not paths:
            raise ValueError("There are no photographs to train on, or none that are held out.")
        images = [Image.open(path).convert("RGB") for path in paths]
        for path, image in zip(paths, images, strict=True):
            if min(image.size) < IMAGE_SIZE:
                raise ValueError(f"{path}: {image.size} pixels; the shorter side must have at least {IMAGE_SIZE}.")
        self.sizes = torch.tensor([(image.height, image.width) for image in images], device=device)
        pixels = torch.zeros(len(paths), 3, *self.sizes.amax(0).tolist(), dtype=torch.uint8)
        for photograph, image in zip(pixels, images, strict=True):
            flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
            photograph[:, : image.height, : image.width] = flat.view(image.height, image.width, 3).permute(2, 0, 1)
        self.pixels = pixels.to(device)

    def __len__(self) -> int:
        return len(self.pixels)

    def crop(self, index: Tensor, corner: Tensor, side: Tensor) -> Tensor:
        """Crop photographs and resize the crops to 96 x 96 pixels by bilinear interpolation.

        Args:
            index: (N,) indices of photographs.
            corner: (N, 2) upper left corners in pixels (row, column).
            side: (N, 2) sides of the crops in pixels.

        Returns:
            (N, 3, 96, 96) float32 in [-1, 1].
        """
        extent = torch.tensor(self.pixels.shape[-2:], device=self.pixels.device)
        steps = (torch.arange(IMAGE_SIZE, device=self.pixels.device) + 0.5) / IMAGE_SIZE
        centres = corner[:, :, None] + side[:, :, None] * steps
        rows, columns = (2 * centres / extent[:, None] - 1).unbind(1)
        grid = torch.stack(
            [columns[:, None, :].expand(-1, IMAGE_SIZE, -1), rows[:, :, None].expand(-1, -1, IMAGE_SIZE)], -1
        )
        return F.grid_sample(self.pixels[index].float() / 127.5 - 1, grid, align_corners=False, padding_mode="border")

    def centre_crops(self) -> Tensor:
        """Return the centre of each photograph at its own scale: (photographs, 3, 96, 96) float32 in [-1, 1]."""
        corner = (self.sizes - IMAGE_SIZE) // 2
        index = torch.arange(len(self), device=corner.device)
        return self.crop(index, corner, torch.full_like(self.sizes, IMAGE_SIZE))


class TrainingViews:
    """Draw training images, and faint overlays for those that are shown twice."""

    def __init__(self, photographs: Photographs, recipe: Recipe):
        self.photographs = photographs
        self.recipe = recipe
        self.device = photographs.pixels.device
        self.generator = torch.Generator(self.device).manual_seed(recipe.seed)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.device) * (high - low) + low

    def draw(self) -> tuple[Tensor, Tensor]:
        """Return images (batch, 3, 96, 96) in [-1, 1], and overlays that may be added to them in that range."""
        images = self._views()
        overlays = self._views()
        silhouettes = self._silhouettes()
        low, high = (math.log(strength) for strength in self.recipe.overlay_strengths)
        strength = self.uniform(len(images), 1, 1, 1, low=low, high=high).exp()
        inside = silhouettes > 0
        overlays = (overlays - overlays.mean((2, 3), keepdim=True)) * strength * inside
        # An empty background is that of an intensity frame, or the zero of a frame of changes.
        surround = torch.where(self.uniform(len(images), 1, 1, 1) < 0.75, BACKGROUND, 0.0)
        filled = self.uniform(len(images), 1, 1, 1) < self.recipe.filled_share
        images = torch.where(inside, images, torch.where(filled, images.roll(1, 0), surround))
        overlays = (images + overlays).clamp(-1, 1) - images
        return images, overlays

    def _views(self) -> Tensor:
        recipe, photographs, count = self.recipe, self.photographs, self.recipe.batch_size
        index = torch.randint(len(photographs), (count,), generator=self.generator, device=self.device)
        shorter = photographs.sizes[index].amin(1)
        magnified = recipe.smallest_crop * (shorter / recipe.smallest_crop) ** self.uniform(count)
        native = (self.uniform(count) < recipe.native_scale_share)[:, None]
        narrower = torch.stack([self.uniform(count, low=1 / recipe.stretch), torch.ones_like(magnified)], 1)
        swapped = self.uniform(count, 1) < 0.5
        narrower = torch.where(swapped, narrower.flip(1), narrower)
        side = torch.where(native, float(IMAGE_SIZE), magnified[:, None] * narrower)
        room = photographs.sizes[index] - side
        corner = room * self.uniform(count, 2)
        corner = torch.where(native, corner.round(), corner)
        views = photographs.crop(index, corner, side)
        views = torch.where(self.uniform(count, 1, 1, 1) < 0.5, views.flip(3), views)
        views = torch.where(self.uniform(count, 1, 1, 1) < 0.5, views.transpose(2, 3), views)
        views = torch.where(self.uniform(count, 1, 1, 1) < 0.5, views.flip(2), views)
        order = self.uniform(count, 3).argsort(1)[:, :, None, None].expand_as(views)
        gains = self.uniform(count, 3, 1, 1, low=0.8, high=1.2)
        recoloured = self.uniform(count, 1, 1, 1) < recipe.recoloured_share
        views = torch.where(recoloured, (views.gather(1, order) * gains).clamp(-1, 1), views)
        # Weights with squares that sum to one keep the contrast of a photograph.
        angle = self.uniform(count, 1, 1, 1, high=math.pi / 2)
        blended = self.uniform(count, 1, 1, 1) < recipe.blended_share
        both = (views * angle.cos() + views.roll(1, 0) * angle.sin()).clamp(-1, 1)
        views = torch.where(blended, both, views)
        grey = self.uniform(count, 1, 1, 1) < recipe.grey_share
        views = torch.where(grey, views.mean(1, keepdim=True), views)
        contrast = self.uniform(count, 1, 1, 1, low=math.log(0.1), high=math.log(1.2)).exp()
        brightness = self.uniform(count, 1, 1, 1, low=-0.4, high=0.4)
        low_contrast = self.uniform(count, 1, 1, 1) < recipe.low_contrast_share
        return torch.where(low_contrast, views * contrast + brightness, views).clamp(-1, 1)

    def _silhouettes(self) -> Tensor:
        """Return (batch, 1, 96, 96): positive inside a random blob, and everywhere in images that are not cut out."""
        count = self.recipe.batch_size
        steps = torch.linspace(-1, 1, IMAGE_SIZE, device=self.device)
        radius = self.uniform(count, 1, 1, low=0.3, high=1.1)
        stretch = self.uniform(count, 1, 1, low=0.7, high=1.4)
        middle = self.uniform(count, 2, 1, 1, low=-0.25, high=0.25)
        rows, columns = steps[None, :, None] - middle[:, 0], steps[None, None, :] - middle[:, 1]
        ellipse = radius - (rows.square() * stretch + columns.square() / stretch).sqrt()
        coarse = self.uniform(count, 1, 7, 7, low=-1.0, high=1.0)
        wobble = F.interpolate(coarse, size=IMAGE_SIZE, mode="bicubic", align_corners=True)
        blobs = ellipse[:, None] + 0.2 * wobble
        return torch.where(self.uniform(count, 1, 1, 1) < self.recipe.silhouette_share, blobs, 1.0)


class Muon:
    """Keller Jordan's optimizer for hidden layers: weights move by the orthogonal matrix nearest to their momentum.

    The five Newton-Schulz steps and their coefficients are those of kellerjordan.github.io/posts/muon (2024).
    `torch.optim.Muon` takes matrices only; here the kernel of a convolution is one matrix (out, in * height * width),
    and weights of one shape are updated together.
    """

    def __init__(
        self, weights: list[nn.Parameter], momentum: float = 0.95, weight_decay: float = 0.0, compiled: bool = False
    ):
        self.momentum, self.weight_decay = momentum, weight_decay
        self.orthogonalize = torch.compile(nearly_orthogonal, dynamic=True) if compiled else nearly_orthogonal
        self.groups: dict[torch.Size, list[nn.Parameter]] = {}
        for weight in weights:
            self.groups.setdefault(weight.shape, []).append(weight)
        self.averages = {
            shape: torch.zeros(len(group), shape[0], math.prod(shape[1:]), device=group[0].device)
            for shape, group in self.groups.items()
        }

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        for shape, group in self.groups.items():
            gradients = torch.stack([weight.grad.reshape(shape[0], -1) for weight in group])
            average = self.averages[shape].lerp_(gradients, 1 - self.momentum)
            updates = self.orthogonalize(gradients.lerp(average, self.momentum))
            # A tall matrix has fewer directions than rows: without this factor its rows would move less.
            updates = updates * max(1.0, updates.shape[1] / updates.shape[2]) ** 0.5
            torch._foreach_mul_(group, 1 - learning_rate * self.weight_decay)
            torch._foreach_add_(group, [update.reshape(shape) for update in updates], alpha=-learning_rate)


def nearly_orthogonal(matrices: Tensor) -> Tensor:
    """Return matrices (N, rows, columns) with singular values near 1 (0.7 to 1.2) and the same singular vectors."""
    tall = matrices.shape[1] > matrices.shape[2]
    result = matrices.mT if tall else matrices
    result = result / (result.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if result.is_cuda:
        result = result.bfloat16()
    for _ in range(5):
        square = result @ result.mT
        result = 3.4445 * result + (-4.7750 * square + 2.0315 * square @ square) @ result
    return (result.mT if tall else result).float()


def training_loss(autoencoder: nn.Module, images: Tensor, overlays: Tensor, recipe: Recipe) -> dict[str, Tensor]:
    """Return the loss and its parts for images (N, 3, H, W), of which the first `len(overlays)` are shown twice."""
    pairs = len(overlays)
    shown = torch.cat([images, images[:pairs] + overlays])
    decoded = autoencoder(shown).sample.float()
    plain, overlaid = decoded[:pairs], decoded[len(images) :]
    by_image = (decoded - shown).square().mean((1, 2, 3))
    squared = by_image.mean()
    # The constant bounds the weight of images that are already good (33 dB is 0.002 of the squared range of 2).
    decibels = (by_image + 0.002).log().mean()
    power = overlays.square().mean((1, 2, 3))
    # Clipping may leave nothing of an overlay.
    relative = (overlaid - plain - overlays).square().mean((1, 2, 3)) / power.clamp_min(1e-5)
    difference = relative.clamp_max(4).mean()
    total = squared + recipe.decibel_weight * decibels + recipe.difference_weight * difference
    return {"loss": total, "squared": squared, "difference": difference}


@torch.no_grad()
def photograph_psnr(autoencoder: nn.Module, images: Tensor) -> dict[str, float]:
    """Return the mean PSNR in dB of images (N, 3, 96, 96) in [-1, 1], in colour and in grey."""
    grey = images.mean(1, keepdim=True).expand_as(images)

    def mean_psnr(shown: Tensor) -> float:
        decoded = autoencoder(shown).sample.float().clamp(-1, 1)
        return sum(psnr(image, estimate, peak=2) for image, estimate in zip(shown, decoded, strict=True)) / len(shown)

    return {"colour": mean_psnr(images), "grey": mean_psnr(grey)}


def train(
    training: Photographs,
    held_out: Photographs,
    recipe: Recipe,
    report_every: int = 500,
    compiled: bool = True,
    start: nn.Module | None = None,
    architecture: dict | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> nn.Module:
    """Train for a given time, from `start` or from random weights; in bfloat16 on CUDA.

    The learning rate follows the remaining time, not the number of steps, so that the schedule ends with the time.

    Returns:
        `AutoencoderDC` with the running average of the weights, float32, on the device of the photographs.

    Raises:
        FloatingPointError: If the loss is not finite.
    """
    from diffusers import AutoencoderDC

    torch.manual_seed(recipe.seed)
    device = training.pixels.device
    on_gpu = device.type == "cuda"
    autoencoder = deepcopy(start) if start is not None else AutoencoderDC(**(architecture or ARCHITECTURE))
    autoencoder = autoencoder.to(device, memory_format=torch.channels_last).train().requires_grad_(True)
    average = deepcopy(autoencoder).requires_grad_(False).eval()
    views = TrainingViews(training, recipe)
    measured = held_out.centre_crops()
    # The first and the last convolution have three channels on one side, too few to make orthogonal.
    convolutions = [weight for weight in autoencoder.parameters() if weight.ndim == 4 and min(weight.shape[:2]) > 3]
    others = [weight for weight in autoencoder.parameters() if not any(weight is taken for taken in convolutions)]
    muon = Muon(convolutions, weight_decay=recipe.weight_decay, compiled=compiled)
    adam = torch.optim.AdamW(others, lr=recipe.other_learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    compute_loss = torch.compile(training_loss) if compiled else training_loss
    pairs = max(1, round(recipe.pair_share * recipe.batch_size))

    def one_step(step: int, share_done: float) -> dict[str, Tensor]:
        factor = min(1.0, (step + 1) / recipe.warmup_steps) * 0.5 * (1 + math.cos(math.pi * share_done))
        adam.param_groups[0]["lr"] = recipe.other_learning_rate * factor
        images, overlays = (part.to(memory_format=torch.channels_last) for part in views.draw())
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            losses = compute_loss(autoencoder, images, overlays[:pairs], recipe)
        autoencoder.zero_grad(set_to_none=True)
        losses["loss"].backward()
        # Reading the loss waits for the device, so it is not read in every step.
        if step % 20 == 0 and not losses["loss"].isfinite():
            raise FloatingPointError(f"The loss is not finite at step {step}.")
        adam.step()
        muon.step(recipe.learning_rate * factor)
        decay = min(recipe.average_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(autoencoder.parameters()), 1 - decay)
        return losses

    one_step(0, 0.0)  # compilation does not count as training time
    step, started, seconds = 1, clock(), 60 * recipe.minutes
    while (elapsed := clock() - started) < seconds:
        losses = one_step(step, elapsed / seconds)
        step += 1
        if step % report_every == 0:
            parts = {name: f"{value.item():.4f}" for name, value in losses.items()}
            print(f"step {step:6d} {elapsed:5.0f} s", parts, photograph_psnr(average, measured), flush=True)
    print(f"{step} steps of {recipe.batch_size} images in {clock() - started:.0f} s", flush=True)
    return average


def main(
    photographs: Annotated[Path, typer.Argument(help="Folder of natural photographs.")],
    out: Annotated[Path, typer.Argument(help="Folder for the weights (float16) and the training record.")],
    minutes: Annotated[float | None, typer.Option(help="Minutes per stage (default: recipe).")] = None,
    stages: Annotated[int, typer.Option(help="Number of stages to train.")] = len(STAGES),
    start_from: Annotated[Path | None, typer.Option(help="Output folder of earlier stages to continue from.")] = None,
    device: Annotated[str, typer.Option(help="Device.")] = "cuda" if torch.cuda.is_available() else "cpu",
    batch_size: Annotated[int | None, typer.Option(help="Images per step (default: recipe).")] = None,
    compiled: Annotated[bool, typer.Option(help="Use torch.compile.")] = True,
) -> None:
    """Train an autoencoder on natural photographs."""
    from diffusers import AutoencoderDC

    out.mkdir(parents=True, exist_ok=True)
    files = sorted(path for path in photographs.iterdir() if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    training = Photographs([path for path in files if not path.name.startswith("held_out")], device)
    held_out = Photographs([path for path in files if path.name.startswith("held_out")], device)
    record = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "training_photographs": len(training),
        "held_out_photographs": len(held_out),
        "stages": [],
    }
    autoencoder = None
    if start_from is not None:
        autoencoder = AutoencoderDC.from_pretrained(start_from, torch_dtype=torch.float32)
        record["stages"] += json.loads((start_from / "training.json").read_text())["stages"]
    recipes = STAGES[len(record["stages"]) :][:stages]
    if not recipes:
        raise typer.BadParameter(f"{start_from or 'stages'}: there is no further stage to train.")
    for recipe in recipes:
        recipe = replace(recipe, minutes=minutes or recipe.minutes, batch_size=batch_size or recipe.batch_size)
        autoencoder = train(training, held_out, recipe, compiled=compiled, start=autoencoder)
        figures = {
            "held_out_psnr_db": photograph_psnr(autoencoder, held_out.centre_crops()),
            "training_psnr_db": photograph_psnr(autoencoder, training.centre_crops()[:: max(1, len(training) // 100)]),
        }
        record["stages"].append({**figures, "recipe": asdict(recipe)})
    # The config is published and must not contain a local path.
    autoencoder.register_to_config(_name_or_path=None)
    autoencoder.half().save_pretrained(out)
    with atomic_write(out / "training.json") as unfinished:
        unfinished.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(record["stages"][-1]["held_out_psnr_db"])


if __name__ == "__main__":
    typer.run(main)
