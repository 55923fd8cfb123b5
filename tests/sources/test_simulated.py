"""The simulated cohort: what differs between its groups, what does not, and that its files are BIDS derivatives."""

import numpy as np
import pytest
from nibabel.affines import apply_affine

from tablet_hf.errors import InputError
from tablet_hf.sources import find_scans
from tablet_hf.sources.simulated import (
    COUPLING,
    FIELD_OF_VIEW,
    GROUPS,
    NETWORKS,
    CohortDesign,
    is_cohort,
    load_anatomy,
    network_maps,
    network_time_series,
    simulate_run,
    write_cohort,
)
from tablet_hf.volumes import open_run

DESIGN = CohortDesign(num_subjects=4, num_frames=3, seed=3)
NUM_DRAWS = 8_000


@pytest.fixture(scope="module")
def time_series():
    """Time series of many subjects of each group: (groups, subjects, frames, networks)."""
    rng = np.random.default_rng(0)
    return np.stack([[network_time_series(4, label, rng) for _ in range(NUM_DRAWS)] for label in (0, 1)])


def test_every_frame_of_every_network_has_the_same_mean_and_variance_in_both_groups(time_series):
    # Standard errors at 8,000 draws: 0.011 of a mean and, for a cosine of random phase, 0.008 of a variance.
    assert np.abs(time_series.mean(axis=1)).max() < 0.055
    assert np.abs(time_series.var(axis=1) - 1).max() < 0.055


def test_autocorrelation_is_the_same_in_both_groups(time_series):
    first, second = (np.einsum("pfn,pgn->nfg", group, group) / NUM_DRAWS for group in time_series)
    assert np.abs(first - second).max() < 0.08


def test_the_coupled_networks_correlate_in_one_group_and_anticorrelate_in_the_other(time_series):
    for group, sign in zip(time_series, (1, -1), strict=True):
        covariance = np.einsum("pfm,pfn->fmn", group, group) / NUM_DRAWS
        assert covariance[:, 0, 1] == pytest.approx(sign * COUPLING, abs=0.055)
        assert covariance[:, :2, 2] == pytest.approx(0, abs=0.055)


def test_voxels_have_the_same_mean_and_variance_in_both_groups():
    # Coarse voxels and many subjects; noise and time series have the same random numbers, only the label differs.
    anatomy, design = load_anatomy(resolution=12), CohortDesign(num_frames=4)
    runs = np.stack(
        [[simulate_run(design, subject, label, anatomy)[anatomy.brain] for subject in range(150)] for label in (0, 1)]
    )
    relative = runs / runs.mean(axis=(0, 1, 3), keepdims=True)
    means, variances = relative.mean(axis=(1, 3)), relative.var(axis=(1, 3))
    assert np.abs(means[0] - means[1]).max() < 0.005
    # A standard error of 3% at 150 subjects: voxels in two networks would stand out by 100%.
    assert np.abs(variances[0] / variances[1] - 1).max() < 0.2


def test_networks_are_at_their_centres_and_do_not_overlap():
    anatomy = load_anatomy()
    maps = network_maps(anatomy)
    assert maps.shape == (len(NETWORKS), *anatomy.brain.shape)
    assert not maps[:, ~anatomy.brain].any()
    for network, centres in zip(maps, NETWORKS.values(), strict=True):
        voxels = np.rint(apply_affine(np.linalg.inv(anatomy.affine), centres)).astype(int)
        assert (network[tuple(voxels.T)] > 0.98).all()
    assert np.count_nonzero(maps, axis=0).max() == 1


def test_equal_seeds_give_equal_runs():
    anatomy = load_anatomy(resolution=8)
    first, again, other = (simulate_run(DESIGN, subject, 0, anatomy) for subject in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_folder_is_a_bids_derivatives_dataset(tmp_path):
    folder = tmp_path / "cohort"
    write_cohort(folder, DESIGN)
    cohort = find_scans("bids", folder, dataset="demo")
    assert not cohort.problems
    assert [record.key for record in cohort.records] == [f"demo/sub-0{number}_task-rest" for number in (1, 2, 3, 4)]
    assert sorted(record.phenotypes["group"] for record in cohort.records) == sorted(GROUPS * 2)
    run = open_run(cohort.records[0].scan)
    assert (run.num_frames, run.repetition_time, run.is_resampled, run.mask_source) == (3, 2.0, False, "bids")
    assert run.mask.sum() == load_anatomy(2, FIELD_OF_VIEW).brain.sum()
    assert 1000 < run.maximum < 32767
    assert is_cohort(folder, DESIGN)
    assert not is_cohort(folder, CohortDesign(num_subjects=4, num_frames=3, seed=4))


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="--out"):
        write_cohort(tmp_path, DESIGN)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["years of work"]
    assert not is_cohort(tmp_path, DESIGN)
