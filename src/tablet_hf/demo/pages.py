"""The pictures of a demo and the page that says what they show."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tablet_hf.datasets.store import TokenDataset
from tablet_hf.demo.finetune import FinetuneResult
from tablet_hf.demo.results import RESULT_COLUMNS, MethodResult, Split, next_command, result_rows, verdict
from tablet_hf.demo.terminal import OnProgress
from tablet_hf.feature_extraction_tablet import TabletFeatureExtractor
from tablet_hf.sources.simulated import GROUPS, NETWORKS, CohortDesign, Person, load_anatomy, network_maps
from tablet_hf.volumes import (
    PERCENT_CHANGE_WINDOW,
    grid_affine,
    open_run,
    percent_change,
    undo_percent_change,
    unscale_intensity,
)

__all__ = ["draw_demo"]

VIEW_MM = (-26.0, -56.0, 42.0)
"""A point whose three planes cut nodes of both coupled networks."""

NODE_RADIUS_MM = 8.0


def draw_demo(
    out: Path,
    design: CohortDesign,
    people: Sequence[Person],
    store: TokenDataset,
    extractor: TabletFeatureExtractor,
    split: Split,
    tuned: FinetuneResult,
    methods: dict[str, MethodResult],
    chance: float,
    on_progress: OnProgress,
) -> Path:
    """Draw everything into `out/pictures`, write `out/index.html`, and return its path."""
    from tablet_hf.report.page import Picture, Section, Table, write_page
    from tablet_hf.report.pictures import (
        learning_curve_figure,
        networks_figure,
        predictions_figure,
        reconstruction_figure,
        results_figure,
        save_figure,
        time_series_figure,
    )

    folder = out / "pictures"
    folder.mkdir(exist_ok=True)
    held_out = [people[index] for index in split.held_out]
    shown = held_out[0]
    fidelity = _Fidelity(shown, store, extractor, on_progress)
    frame = fidelity.liveliest_frame()

    def picture(name: str, figure, caption: str) -> Picture:
        return Picture(save_figure(figure, folder / f"{name}.png"), caption)

    maps, examples = _maps_on_grid(design, extractor.volume_size), {}
    for label, group in enumerate(GROUPS):
        person = next(person for person in people if person.label == label)
        examples[f"{group} ({person.name})"] = _network_courses(person, maps, extractor.volume_size)
    networks = picture(
        "networks",
        networks_figure(
            fidelity.original.mean(0), maps, examples, design.repetition_time, VIEW_MM, "What was simulated"
        ),
        f"Above: the nodes of the three networks, seen through the brain of {shown.name}. Below: their courses as "
        "measured in the NIfTI file of one person of each group.",
    )
    intensities = picture(
        "reconstruction_intensity",
        reconstruction_figure(
            fidelity.original[frame],
            fidelity.decoded[frame],
            f"One frame, through tokens and back ({shown.name}, frame {frame})",
            "intensity (scanner units)",
            VIEW_MM,
        ),
        "Intensities. The colours of the difference have their own scale.",
    )
    changes = picture(
        "reconstruction_change",
        reconstruction_figure(
            100 * fidelity.original_change[frame],
            100 * fidelity.decoded_change[frame],
            f"Its change about the run's mean ({shown.name}, frame {frame})",
            "change (%)",
            VIEW_MM,
            is_signed=True,
        ),
        "The same frame as a change about the mean: what the tokens hold here. The noise of single voxels is lost, the "
        f"networks stay: over all voxels of the brain the median correlation over time is {fidelity.median_r():.2f}.",
    )
    courses = picture(
        "time_series",
        time_series_figure(
            fidelity.node_courses(), design.repetition_time, f"Nodes over time ({shown.name})", "change (%)"
        ),
        f"Averages of spheres of {NODE_RADIUS_MM:.0f} mm radius about nodes of the two coupled networks.",
    )
    learning = picture(
        "learning_curve",
        learning_curve_figure(tuned.train_loss, tuned.held_out_loss, float(np.log(2))),
        "The people held out are only looked at: nothing was chosen by their loss, and training runs to its end.",
    )
    name, tablet = next(iter(methods.items()))
    predictions = picture(
        "predictions",
        predictions_figure(
            [person.name for person in held_out],
            [person.label for person in held_out],
            tablet.probabilities,
            GROUPS,
            f"{name}: people held out",
        ),
        "Each line is a person whom the model never saw.",
    )
    results = picture(
        "results",
        results_figure(
            {method: result.metrics["accuracy"] for method, result in methods.items()},
            {method: result.interval for method, result in methods.items()},
            chance,
            f"{len(held_out)} people held out",
        ),
        "The same figures: points are accuracies, lines their intervals.",
    )
    sections = [
        Section(
            "What came out",
            [
                verdict(methods, chance),
                "Intervals are exact binomial ones; the last column shuffles who belongs to which group.",
            ],
            Table(RESULT_COLUMNS, result_rows(methods, chance)),
            [results],
        ),
        Section(
            "The task",
            [
                f"{len(people)} people were simulated on the ICBM152 template, {design.num_frames} frames each at a "
                f"repetition time of {design.repetition_time:g} s; nobody was scanned. In one group the default mode "
                "and the dorsal attention network rise and fall together, in the other one rises while the other "
                "falls. Mean, variance and autocorrelation of every voxel follow the same law in both groups.",
                "The sign of a correlation is just what functional connectivity measures, so its linear model is a "
                "hard one to beat here. A linear model of the average token shows what is left without the order and "
                "the company of frames; the autoencoder is not linear, so that need not be nothing.",
            ],
            pictures=[networks],
        ),
        Section(
            "From scan to tokens and back",
            [
                f"Each frame became {extractor.grid_size**3} tokens of {extractor.token_size:,} numbers through the "
                f"autoencoder {extractor.autoencoder}, which was trained on photographs only. Decoding them shows what "
                "they hold."
            ],
            pictures=[intensities, changes, courses],
        ),
        Section(
            "Learning",
            [
                f"A TABLeT of {tuned.model.num_parameters():,} parameters learnt from {len(split.train)} people, from "
                "scratch. (The published network has 129 million and is pre-trained on UK Biobank.)"
            ],
            pictures=[learning, predictions],
        ),
        Section(
            "What to type next",
            ["The model lies beside the settings of its feature extractor, so a scan is all that it needs:"],
            command=next_command(out / "model", shown.scan),
        ),
    ]
    return write_page(out / "index.html", "TABLeT, a demonstration", sections)


class _Fidelity:
    """One run before and after its tokens.

    Attributes:
        original, decoded: `(frames, V, V, V)` float32 intensities.
        original_change, decoded_change: the same as a change about the run's mean, as a fraction of it.
        has_change: `(V, V, V)` bool, where a change is defined.
    """

    def __init__(self, person: Person, store: TokenDataset, extractor: TabletFeatureExtractor, on_progress: OnProgress):
        scan = open_run(person.scan, volume_size=extractor.volume_size)
        self.original = np.concatenate([volumes for _, volumes in scan.blocks()])
        self.has_change = scan.has_change
        window = np.float32(PERCENT_CHANGE_WINDOW)
        self.original_change = percent_change(self.original, scan.mean, self.has_change) * window

        (run,) = (run for run in store.runs if f"sub-{run.subject}" == person.name)
        num_decoded, blocks = run.num_frames + 1, []
        for number, tokens in enumerate((*store.window(run.key).split(1), store.mean_tokens(run.key)), 1):
            blocks.append(extractor.decode(tokens.to(extractor.dtype)).numpy())
            on_progress(number, num_decoded)
        *frames, mean = blocks
        change = np.concatenate(frames)
        self.decoded_change = change * window * self.has_change
        intensities = undo_percent_change(change, unscale_intensity(mean[0], run.intensity_scale))
        self.decoded = intensities * scan.mask

    def liveliest_frame(self) -> int:
        """The frame that differs most from the mean."""
        return int(np.square(self.original_change).mean(axis=(1, 2, 3)).argmax())

    def median_r(self) -> float:
        """The median over voxels of the correlation over time."""
        from tablet_hf.evaluation.fidelity import temporal_correlation

        frames = (torch.from_numpy(changes) for changes in (self.original_change, self.decoded_change))
        return float(temporal_correlation(*frames, torch.from_numpy(self.has_change)).median())

    def node_courses(self) -> list:
        """Courses in percent of two nodes of each coupled network."""
        from tablet_hf.report.pictures import Course

        courses = []
        for name in list(NETWORKS)[:2]:
            for centre in NETWORKS[name][:2]:
                node = _sphere(centre, self.has_change.shape[0]) & self.has_change
                place = f"{name}, ({', '.join(map(str, centre))}) mm"
                original, decoded = self.original_change[:, node], self.decoded_change[:, node]
                courses.append(Course(place, 100 * original.mean(1), 100 * decoded.mean(1)))
        return courses


def _sphere(centre_mm: Sequence[float], volume_size: int) -> np.ndarray:
    """Voxels of the grid within `NODE_RADIUS_MM` of a point, `(V, V, V)` bool."""
    from nibabel.affines import apply_affine

    places = apply_affine(grid_affine(volume_size), np.stack(np.indices((volume_size,) * 3), axis=-1))
    return np.linalg.norm(places - np.asarray(centre_mm), axis=-1) <= NODE_RADIUS_MM


def _maps_on_grid(design: CohortDesign, volume_size: int) -> dict[str, np.ndarray]:
    """For each network `(V, V, V)` in [0, 1] on the model's grid, with nodes at their usual places."""
    from tablet_hf.grid import way_to_grid

    anatomy = load_anatomy()
    way = way_to_grid(anatomy.brain.shape, anatomy.affine, volume_size)
    maps = network_maps(anatomy, design)
    return {name: way.to_grid(volume) for name, volume in zip(NETWORKS, maps, strict=True)}


def _network_courses(person: Person, maps: dict[str, np.ndarray], volume_size: int) -> np.ndarray:
    """Mean change in percent over the inner half of each network's nodes, from the file: `(frames, networks)`."""
    scan = open_run(person.scan, volume_size=volume_size)
    frames = np.concatenate([volumes for _, volumes in scan.blocks()])
    change = 100 * PERCENT_CHANGE_WINDOW * percent_change(frames, scan.mean, scan.has_change)
    return np.stack([change[:, (volume > 0.5) & scan.has_change].mean(1) for volume in maps.values()], axis=1)
