"""The simulated cohort: what differs between its groups, what does not, and that its files are what they claim."""

import json
import re

import numpy as np
import pytest

from tablet_hf.errors import InputError
from tablet_hf.sources.simulated import (
    GROUPS,
    NETWORKS,
    CohortDesign,
    _design_record,
    is_cohort,
    load_anatomy,
    network_courses,
    network_maps,
    read_cohort,
    simulate_run,
    write_cohort,
)
from tablet_hf.volumes import open_run

DESIGN = CohortDesign(num_subjects=4, num_frames=3, seed=3)
NUM_DRAWS = 20_000


@pytest.fixture(scope="module")
def courses():
    """Courses of many people of each group: (group, person, frame, network)."""
    rng = np.random.default_rng(0)
    design = CohortDesign()
    return np.stack([[network_courses(design, label, rng) for _ in range(NUM_DRAWS)] for label in (0, 1)])


def test_every_moment_of_every_network_has_the_same_mean_and_variance_in_both_groups(courses):
    # Standard errors at 20,000 draws: 0.007 of a mean and, for a cosine of random phase, 0.005 of a variance.
    assert np.abs(courses.mean(axis=1)).max() < 0.035
    assert np.abs(courses.var(axis=1) - 1).max() < 0.035


def test_autocorrelation_is_the_same_in_both_groups(courses):
    first, second = (np.einsum("pfn,pgn->nfg", group, group) / NUM_DRAWS for group in courses)
    assert np.abs(first - second).max() < 0.05


def test_the_coupled_networks_go_together_in_one_group_and_apart_in_the_other(courses):
    coupling = CohortDesign().coupling
    for group, sign in zip(courses, (1, -1), strict=True):
        covariance = np.einsum("pfm,pfn->fmn", group, group) / NUM_DRAWS
        assert covariance[:, 0, 1] == pytest.approx(sign * coupling, abs=0.035)
        assert covariance[:, 0, 2] == pytest.approx(0, abs=0.035)
        assert covariance[:, 1, 2] == pytest.approx(0, abs=0.035)


def test_voxels_have_the_same_mean_and_variance_in_both_groups():
    # Coarse voxels and many people: the same numbers make noise and courses of both, only the label differs.
    anatomy = load_anatomy(resolution=8)
    design = CohortDesign(num_frames=4)
    runs = np.stack(
        [[simulate_run(design, person, label, anatomy)[anatomy.brain] for person in range(150)] for label in range(2)]
    )
    relative = runs / runs.mean(axis=(0, 1, 3), keepdims=True)
    means, variances = relative.mean(axis=(1, 3)), relative.var(axis=(1, 3))
    assert np.abs(means[0] - means[1]).max() < 0.005
    # A standard error of 3% at 150 people: voxels that followed two networks would stand out by 100%.
    assert np.abs(variances[0] / variances[1] - 1).max() < 0.2


def test_networks_lie_at_their_places_and_nowhere_else():
    from nibabel.affines import apply_affine

    anatomy = load_anatomy()
    maps = network_maps(anatomy, DESIGN)
    assert maps.shape == (len(NETWORKS), *anatomy.brain.shape)
    assert not maps[:, ~anatomy.brain].any()
    for network, centres in zip(maps, NETWORKS.values(), strict=True):
        for centre in centres:
            voxel = tuple(np.rint(apply_affine(np.linalg.inv(anatomy.affine), centre)).astype(int))
            assert network[voxel] > 0.98
    assert np.count_nonzero(maps, axis=0).max() == 1


def test_one_seed_makes_one_run():
    anatomy = load_anatomy(resolution=8)
    runs = [simulate_run(DESIGN, person, 0, anatomy) for person in (0, 0, 1)]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "cohort"
    return folder, write_cohort(folder, DESIGN)


def test_the_folder_is_a_bids_derivatives_dataset(cohort):
    folder, people = cohort
    description = json.loads((folder / "dataset_description.json").read_text())
    assert {"Name", "BIDSVersion", "DatasetType", "GeneratedBy"} <= set(description)
    table = (folder / "participants.tsv").read_text().splitlines()
    assert table[0] == "participant_id\tgroup"
    assert sorted(line.split("\t")[1] for line in table[1:]) == sorted(GROUPS * 2)

    pattern = re.compile(
        r"(sub-\d+)/func/\1_task-rest_space-MNI152NLin2009aAsym_res-2_desc-(preproc_bold|brain_mask)\.(nii\.gz|json)"
    )
    files = [str(path.relative_to(folder)) for path in folder.glob("sub-*/**/*") if path.is_file()]
    assert len(files) == 4 * len(people)
    assert all(pattern.fullmatch(name) for name in files)


def test_scans_are_read_as_runs_in_mni_space(cohort):
    folder, people = cohort
    assert [person.name for person in people] == ["sub-01", "sub-02", "sub-03", "sub-04"]
    assert read_cohort(folder) == people
    run = open_run(people[0].scan)
    assert (run.num_frames, run.repetition_time) == (3, 2.0)
    assert not run.is_resampled
    assert run.mask_source == "bids"
    assert run.mask.sum() == load_anatomy(2, DESIGN.field_of_view).brain.sum()
    assert 1000 < run.maximum < 32767


def test_a_finished_cohort_is_known_by_its_design(cohort, tmp_path):
    folder, _ = cohort
    assert is_cohort(folder, DESIGN)
    assert not is_cohort(folder, CohortDesign(num_subjects=4, num_frames=3, seed=4))
    assert not is_cohort(tmp_path)


def test_what_is_half_written_does_not_count_and_is_cleared_away(tmp_path, monkeypatch):
    import tablet_hf.sources.simulated as module

    design = CohortDesign(num_subjects=2, num_frames=2)
    folder = tmp_path / "cohort"
    finish = module._write_description
    monkeypatch.setattr(module, "_write_description", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_cohort(folder, design, resolution=8)
    assert not folder.exists()

    monkeypatch.setattr(module, "_write_description", finish)
    write_cohort(folder, design, resolution=8)
    assert is_cohort(folder, design, resolution=8)
    assert [path.name for path in tmp_path.iterdir()] == ["cohort"]


def test_another_design_takes_the_place_of_a_cohort_but_not_of_anything_else(tmp_path):
    folder = tmp_path / "cohort"
    write_cohort(folder, CohortDesign(num_subjects=4, num_frames=2), resolution=8)
    people = write_cohort(folder, CohortDesign(num_subjects=2, num_frames=2), resolution=8)
    assert len(people) == len(list(folder.glob("sub-*"))) == 2

    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("years of work")
    with pytest.raises(InputError, match="choose another --out"):
        write_cohort(other, DESIGN, resolution=8)
    assert (other / "chapter.txt").read_text() == "years of work"


FOREIGN_DESIGNS = {
    "another study": {"groups": ["patients", "controls"]},
    "no object": [1, 2],
    "no maker": _design_record(DESIGN, 8) | {"GeneratedBy": "fMRIPrep"},
    "no maker told": {key: value for key, value in _design_record(DESIGN, 8).items() if key != "GeneratedBy"},
    "a key more": _design_record(DESIGN, 8) | {"groups": ["patients", "controls"]},
}


@pytest.mark.parametrize("name", FOREIGN_DESIGNS)
def test_a_foreign_dataset_with_a_design_file_is_left_alone(tmp_path, name):
    folder = tmp_path / "cohort"
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "design.json").write_text(json.dumps(FOREIGN_DESIGNS[name]))
    (folder / "sub-01_bold.nii.gz").write_text("measured once")

    assert not is_cohort(folder)
    with pytest.raises(InputError, match=r"cohort: this folder is in the way.*choose another --out"):
        write_cohort(folder, CohortDesign(num_subjects=2, num_frames=2), resolution=8)
    assert (folder / "sub-01_bold.nii.gz").read_text() == "measured once"
