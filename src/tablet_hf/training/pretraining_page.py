"""What pre-training leaves to look at: the loss, and held-out frames with their hidden tokens predicted."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tablet_hf.datasets.splits import Split, runs_in
from tablet_hf.errors import InputError
from tablet_hf.feature_extraction_tablet import TabletFeatureExtractor
from tablet_hf.intensities import PERCENT_CHANGE_WINDOW
from tablet_hf.modeling_tablet import TabletForMaskedTokenModeling, standardize_over_frames
from tablet_hf.report.page import Picture, Section, Table, write_page
from tablet_hf.report.pictures import save_figure
from tablet_hf.report.training_pictures import hidden_tokens_figure, pretraining_curve_figure
from tablet_hf.training.arguments import Settings
from tablet_hf.training.pretraining import MaskedWindows, PretrainingResult

__all__ = ["HiddenFrame", "hidden_frame", "write_pretraining_page"]

MOST_PICTURES = 2


@dataclass(frozen=True)
class HiddenFrame:
    """Tokens of one frame `(cells, features)` float32, as they are, at their mean where hidden, and as predicted there.

    Attributes:
        mean: of each cell over its visible tokens in the window.
        hidden: `(cells,)` bool.
        explained: share of the hidden tokens' squared deviation from that mean, over the whole window, that the
            prediction takes away: 0 is naming the mean, 1 is perfect.
    """

    original: torch.Tensor
    visible: torch.Tensor
    predicted: torch.Tensor
    mean: torch.Tensor
    hidden: torch.Tensor
    explained: float


@torch.no_grad()
def hidden_frame(model: Any, item: dict[str, Any], frame: int | None = None) -> HiddenFrame:
    """Predict the hidden tokens of a window, and give one of its frames.

    Args:
        model: a `TabletForMaskedTokenModeling`.
        item: of `MaskedWindows`.
        frame: by default the middle one.
    """
    device = next(model.parameters()).device
    tokens, hidden = item["input_values"].float(), item["bool_masked_pos"]
    output = model.eval()(
        tokens[None].to(device),
        repetition_time=float(item["repetition_time"]),
        bool_masked_pos=hidden[None].to(device),
        return_loss=False,
    )
    standardised, mean, std = (part[0] for part in standardize_over_frames(tokens[None], None, hidden[None]))
    mean = mean[0]
    predicted = output.reconstruction[0].float().cpu()
    if model.config.norm_target:  # a token's own mean and spread are nothing that the model has to know
        target = standardised if model.config.standardize_tokens else tokens
        predicted = predicted * target.std(-1, keepdim=True, unbiased=False) + target.mean(-1, keepdim=True)
    if model.config.standardize_tokens:
        predicted = predicted * std + mean
    error = (predicted - tokens)[hidden].square().sum()
    deviation = (mean - tokens)[hidden].square().sum()
    place = len(tokens) // 2 if frame is None else frame
    at = hidden[place].unsqueeze(-1)
    return HiddenFrame(
        tokens[place],
        torch.where(at, mean, tokens[place]),
        torch.where(at, predicted[place], tokens[place]),
        mean,
        hidden[place],
        float(1 - error / deviation.clamp_min(1e-30)),
    )


def write_pretraining_page(
    out: str | Path, result: PretrainingResult, store: Any | None, split: Split | None, settings: Settings
) -> Path:
    """Write `index.html` into the folder of a pre-training.

    Args:
        store: a `TokenDataset` from whose validation subjects frames are shown; None for one that was streamed, or one
            whose autoencoder is not to be had, leaves them out, which the page says.
        split: of the pre-training.
        settings: of the pre-training.
    """
    out = Path(out)
    pictures = out / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    curve = pretraining_curve_figure(result.loss, result.validation_loss, result.mean_predictor_loss)
    table = Table(["", "masked loss"], _losses(result))
    sections = [
        Section(
            "Loss",
            ["Mean squared error of tokens that were hidden. The masks of held-out people are the same every time."],
            table,
            [Picture(save_figure(curve, pictures / "loss.png"), "By step; the axis is logarithmic.")],
        )
    ]
    sections.append(_hidden_section(result, store, split, settings, pictures))
    command = f"tablet-hf finetune --dataset STORE --label COLUMN --init {result.folder} --out my-model"
    sections.append(Section("Go on", [], command=command))
    return write_page(out / "index.html", "TABLeT, pre-trained", sections)


def _losses(result: PretrainingResult) -> list[list[str]]:
    rows = [["last steps, windows learnt from", f"{result.loss[-1][1]:.4g}"]] if result.loss else []
    if result.validation_loss:
        rows.append(["held-out people, before", f"{result.validation_loss[0][1]:.4g}"])
        rows.append(["held-out people, after", f"{result.validation_loss[-1][1]:.4g}"])
        rows.append(["held-out people, naming each cell's mean", f"{result.mean_predictor_loss:.4g}"])
    return rows


def _hidden_section(
    result: PretrainingResult, store: Any | None, split: Split | None, settings: Settings, pictures: Path
) -> Section:
    heading = "Hidden tokens, predicted"
    if store is None and split is not None:
        return Section(heading, ["The dataset was streamed, and frames are shown of one that lies on a disk."])
    if store is None or split is None or not split.counts["validation"]:
        return Section(heading, ["There were no held-out people whose frames could be shown; give --splits."])
    model = TabletForMaskedTokenModeling.from_pretrained(result.folder)
    held_out = runs_in(split, store.runs, "validation")
    windows = MaskedWindows(store, settings.window_frames, held_out, model.config, settings.seed, most=MOST_PICTURES)
    frames = [hidden_frame(model, windows[index]) for index in range(len(windows))]
    told = ", ".join(f"{frame.explained:.1%}" for frame in frames)
    paragraphs = [
        f"Of what changes over time in the hidden tokens of these windows the predictions explain {told} (0% is naming "
        "each cell's mean over its visible tokens, and less than that is worse than naming it)."
    ]
    try:
        extractor = TabletFeatureExtractor.from_dict(store.preprocessing)
        extractor.slice_autoencoder  # noqa: B018
    except InputError as error:
        return Section(heading, [*paragraphs, f"They cannot be decoded to be looked at: {error}"])
    drawn = []
    for number, frame in enumerate(frames):
        run = store.runs[windows.windows[number][0]]
        figure = _decoded_figure(frame, extractor, f"{int(frame.hidden.sum())} of {len(frame.hidden)} tokens hidden")
        path = save_figure(figure, pictures / f"hidden-{number + 1}.png")
        drawn.append(Picture(path, f"A frame of {run.key}, whom the model has not learnt from."))
    return Section(heading, paragraphs, pictures=drawn)


def _decoded_figure(frame: HiddenFrame, extractor: TabletFeatureExtractor, title: str) -> Any:
    tokens = torch.stack([frame.mean, frame.original, frame.visible, frame.predicted])
    mean, *volumes = extractor.decode(tokens).numpy()
    is_change = extractor.signal == "percent_change"
    scale = 100 * PERCENT_CHANGE_WINDOW if is_change else 50.0  # intensities of [0, 1] are in [-1, 1]
    changes = [np.asarray(volume - mean) * scale for volume in volumes]
    unit = "% change about the window's mean" if is_change else "% of the run's maximum, about the window's mean"
    return hidden_tokens_figure(*changes, title=title, unit=unit)
