"""The page of a pre-training: the loss, and held-out frames with their masked tokens predicted."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from tablet_hf.datasets.splits import Split, runs_in
from tablet_hf.datasets.windows import EvaluationWindows
from tablet_hf.errors import InputError
from tablet_hf.feature_extraction_tablet import TabletFeatureExtractor
from tablet_hf.intensities import PERCENT_CHANGE_WINDOW
from tablet_hf.modeling_tablet import TabletForMaskedTokenModeling, standardize_over_frames
from tablet_hf.report.page import Picture, Section, Table, write_page
from tablet_hf.report.pictures import save_figure
from tablet_hf.report.training_pictures import masked_tokens_figure, pretraining_curve_figure
from tablet_hf.training.arguments import TabletTrainingArguments
from tablet_hf.training.pretraining import MaskedWindows, PretrainingResult

__all__ = ["MaskedFrame", "predict_masked_frame", "write_pretraining_page"]

NUM_PICTURES = 2


class MaskedFrame(NamedTuple):
    """The tokens of one frame, each `(cells, features)` float32.

    Attributes:
        mean: mean of each cell over its visible tokens in the window.
        original: the tokens.
        visible: the tokens, masked ones replaced by `mean`.
        predicted: the tokens, masked ones as predicted.
        masked: `(cells,)` bool.
        explained: fraction of the variance of the masked tokens about `mean`, over the whole window, that the
            prediction explains: 0 for predicting the mean, 1 for a perfect prediction.
    """

    mean: torch.Tensor
    original: torch.Tensor
    visible: torch.Tensor
    predicted: torch.Tensor
    masked: torch.Tensor
    explained: float


@torch.no_grad()
def predict_masked_frame(model: Any, item: dict[str, Any]) -> MaskedFrame:
    """Predict the masked tokens of a window, and return its middle frame.

    Args:
        model: a `TabletForMaskedTokenModeling`.
        item: an item of `MaskedWindows`.
    """
    tokens, masked = item["input_values"].float(), item["bool_masked_pos"]
    output = model.eval()(
        tokens[None].to(model.device),
        repetition_time=float(item["repetition_time"]),
        bool_masked_pos=masked[None].to(model.device),
        return_loss=False,
    )
    standardised, mean, std = (part[0] for part in standardize_over_frames(tokens[None], None, masked[None]))
    predicted = output.reconstruction[0].float().cpu()
    if model.config.norm_target:  # the model is not asked for a token's own mean and spread
        target = standardised if model.config.standardize_tokens else tokens
        predicted = predicted * target.std(-1, keepdim=True, unbiased=False) + target.mean(-1, keepdim=True)
    if model.config.standardize_tokens:
        predicted = predicted * std + mean
    mean = mean[0]
    error, variance = (((values - tokens)[masked]).square().sum() for values in (predicted, mean))
    middle = len(tokens) // 2
    frame, is_masked = tokens[middle], masked[middle].unsqueeze(-1)
    visible, predicted = (torch.where(is_masked, values, frame) for values in (mean, predicted[middle]))
    return MaskedFrame(mean, frame, visible, predicted, masked[middle], float(1 - error / variance.clamp_min(1e-30)))


def write_pretraining_page(
    out: str | Path, result: PretrainingResult, store: Any, split: Split | None, arguments: TabletTrainingArguments
) -> Path:
    """Write `index.html` into the folder of a pre-training.

    Args:
        out: folder of the pre-training.
        result: see `pretrain`.
        store: a `TokenDataset`, of whose validation subjects frames are drawn; None for a stream.
        split: split of the pre-training.
        arguments: arguments of the pre-training.
    """
    out = Path(out)
    pictures = out / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    curve = pretraining_curve_figure(result.loss, result.validation_loss, result.mean_predictor_loss)
    rows = [["last steps, training windows", f"{result.loss[-1][1]:.4g}"]] if result.loss else []
    if result.validation_loss:
        (_, first), (_, last) = result.validation_loss[0], result.validation_loss[-1]
        rows += [["validation subjects, before", f"{first:.4g}"], ["validation subjects, after", f"{last:.4g}"]]
        rows.append(["validation subjects, predicting each cell's mean", f"{result.mean_predictor_loss:.4g}"])
    sentence = "Mean squared error of masked tokens. The masks of validation subjects are the same every time."
    picture = Picture(save_figure(curve, pictures / "loss.png"), "Loss by step, on a logarithmic axis.")
    command = f"tablet-hf finetune --dataset STORE --label COLUMN --init {result.folder} --out my-model"
    sections = [
        Section("Loss", [sentence], Table(["", "masked loss"], rows), [picture]),
        _masked_section(result, store, split, arguments, pictures),
        Section("Next step", [], command=command),
    ]
    return write_page(out / "index.html", "TABLeT, pre-trained", sections)


def _masked_section(
    result: PretrainingResult, store: Any, split: Split | None, arguments: TabletTrainingArguments, pictures: Path
) -> Section:
    heading = "Predicted tokens"
    if split is None or not split.counts["validation"]:
        return Section(heading, ["There are no validation subjects to draw frames of; give --splits."])
    if store is None:
        return Section(heading, ["The dataset was streamed; frames are drawn of datasets on disk only."])
    model = TabletForMaskedTokenModeling.from_pretrained(result.folder)
    windows = EvaluationWindows(store, arguments.window_frames, runs_in(split, store.runs, "validation"))
    items = list(MaskedWindows(windows, model.config, arguments.seed, NUM_PICTURES))
    frames = [predict_masked_frame(model, item) for item in items]
    paragraphs = [
        "Fraction of the variance over time of the masked tokens that is explained in these windows: "
        f"{', '.join(f'{frame.explained:.1%}' for frame in frames)} (0%: as good as each cell's mean; less: worse)."
    ]
    try:
        extractor = TabletFeatureExtractor.from_dict(store.preprocessing)
        extractor.slice_autoencoder  # noqa: B018
    except InputError as error:
        return Section(heading, [*paragraphs, f"The frames cannot be decoded: {error}"])
    drawn = []
    for number, (item, frame) in enumerate(zip(items, frames, strict=True), 1):
        title = f"{int(frame.masked.sum())} of {len(frame.masked)} tokens masked"
        path = save_figure(_decoded_figure(frame, extractor, title), pictures / f"hidden-{number}.png")
        drawn.append(Picture(path, f"A frame of {store.runs[item['run_index']].key}, a held-out run."))
    return Section(heading, paragraphs, pictures=drawn)


def _decoded_figure(frame: MaskedFrame, extractor: TabletFeatureExtractor, title: str) -> Any:
    mean, *volumes = extractor.decode(torch.stack(frame[:4])).numpy()
    is_change = extractor.signal == "percent_change"
    scale = 100 * PERCENT_CHANGE_WINDOW if is_change else 50.0  # intensities of [0, 1] are in [-1, 1]
    changes = [(volume - mean) * scale for volume in volumes]
    unit = "% change about the window's mean" if is_change else "% of the run's maximum, about the window's mean"
    return masked_tokens_figure(*changes, title=title, unit=unit)
