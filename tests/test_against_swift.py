"""`benchmarks/against_swift.py` finds the network of a checkout, gives it what it takes, and measures both.

The checkout is a stand-in with the layout and the names of the published one, and a network of a few lines.
"""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

from tablet_hf.errors import InputError

LOCATION = Path(__file__).parents[1] / "benchmarks" / "against_swift.py"
MODELS = Path("project/module/models")
SMALL = [
    *("--device", "cpu", "--cube", "12", "--frames", "8", "--batch", "2", "--calls", "1", "--window", "6"),
    *("--frames-limit", "16", "--tablet", "hidden_size=16", "--tablet", "num_attention_heads=2"),
    *("--tablet", "intermediate_size=16", "--tablet", "num_hidden_layers=1", "--tablet", "token_size=12"),
]

NETWORK = """
from torch import nn
from .patchembedding import PatchEmbed

class SwinTransformer4D(nn.Module):
    def __init__(self, img_size, in_chans, embed_dim, window_size, first_window_size, patch_size, depths, num_heads,
                 c_multiplier=2, last_layer_full_MSA=False, drop_rate=0.0):
        super().__init__()
        if embed_dim % num_heads[0]:
            raise ValueError("heads do not divide the width")
        self.img_size, self.full_last, self.drop_rate = img_size, last_layer_full_MSA, drop_rate
        self.embed = PatchEmbed(in_chans, embed_dim, patch_size)

    def forward(self, volumes):
        assert tuple(volumes.shape[2:]) == tuple(self.img_size), (volumes.shape, self.img_size)
        return self.embed(volumes)
"""

PATCHES = """
from torch import nn

class PatchEmbed(nn.Module):
    def __init__(self, in_chans, embed_dim, patch_size):
        super().__init__()
        self.over_space = nn.Conv3d(in_chans, embed_dim, patch_size[:3], stride=patch_size[:3])

    def forward(self, volumes):
        batch, channels, *space, frames = volumes.shape
        patches = self.over_space(volumes.movedim(-1, 1).flatten(0, 1))
        return patches.unflatten(0, (batch, frames)).movedim(1, -1)
"""


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("against_swift", LOCATION)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    models = tmp_path / "SwiFT" / MODELS
    models.mkdir(parents=True)
    # What importing the package would run; the network alone needs none of it.
    (models / "__init__.py").write_text("import pytorch_lightning_is_not_here\n")
    (models / "swin4d_transformer_ver7.py").write_text(NETWORK)
    (models / "patchembedding.py").write_text(PATCHES)
    return tmp_path / "SwiFT"


def test_both_are_measured_and_stand_in_one_table(benchmark, checkout, capsys):
    benchmark.main(["--swift", str(checkout), *SMALL])
    printed = capsys.readouterr().out
    assert f"SwiFT: {MODELS / 'swin4d_transformer_ver7.py'}, SwinTransformer4D, commit unknown" in printed
    assert "img_size=(12, 12, 12, 8)" in printed
    assert f"torch {torch.__version__}" in printed

    lines = [line.strip("|").split("|") for line in printed.splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line] for line in lines]
    assert header[:2] == ["network", "parameters"]
    assert [row[0] for row in rows] == ["SwiFT", "TABLeT", "TABLeT"]
    assert [row[2] for row in rows] == ["8 x 2", "8 x 2", "6 x 2"]
    speeds = [float(row[3].replace(",", "")) for row in rows]
    assert min(speeds) > 0
    for row, speed in zip(rows, speeds, strict=True):
        assert float(row[6].removesuffix("x")) == pytest.approx(speed / speeds[0], rel=0.02, abs=0.01)
        assert row[4] == "not measured"  # on a CPU
        assert row[5] == "at least 16 frames (the limit asked for)"


def test_another_version_is_found_where_the_published_one_is_missing(benchmark, checkout):
    published = checkout / MODELS / "swin4d_transformer_ver7.py"
    assert benchmark.find_model_file(checkout) == published
    for version in ("ver9", "ver11"):
        published.with_name(f"swin4d_transformer_{version}.py").write_text(NETWORK)
    assert benchmark.find_model_file(checkout) == published
    published.unlink()
    assert benchmark.find_model_file(checkout).name == "swin4d_transformer_ver11.py"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("from monai_is_not_here.networks import x", "monai_is_not_here"),
        ("from module.models_of_old import x", "models_of_old"),
        ("from torch import no_such_name", "no_such_name"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_what_a_file_lacks_is_named(benchmark, checkout, line, name):
    path = checkout / MODELS / "swin4d_transformer_ver7.py"
    path.write_text(f"{line}\n{NETWORK}")
    with pytest.raises(InputError, match=name) as caught:
        benchmark.load_model_class(checkout, path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("more", "name"),
    [
        (["--swift", "nowhere"], "nowhere: "),
        (["--option", "num_heads=(5, 5, 5, 5)"], "heads do not divide"),
        (["--option", "patch_size=(48, 48, 48, 1)"], "SwiFT: "),
        (["--frames", "6"], "--frames 6"),
        (["--tablet", "hidden_size=17"], "--tablet"),
    ],
)
def test_what_does_not_work_is_one_sentence_and_exit_code_2(benchmark, checkout, capsys, more, name):
    with pytest.raises(SystemExit) as left:
        benchmark.main(["--swift", str(checkout), *SMALL, *more])
    assert left.value.code == 2
    assert re.fullmatch(rf"(?s).*{name}.*\n", capsys.readouterr().err)


@pytest.mark.parametrize("step", [1, 4, 16])
@pytest.mark.parametrize("limit", [3, 64, 100])
def test_the_longest_run_is_that_of_trying_them_all_with_few_trials(benchmark, step, limit):
    for end in (0, 1, 15, 16, 17, 63, 64, 99, 100, 1000):
        trials = []

        def fits(frames, end=end, trials=trials):
            trials.append(frames)
            return frames <= end

        one_by_one = max([frames for frames in range(step, limit + 1, step) if frames <= end], default=0)
        assert benchmark.longest_fit(fits, step, limit) == one_by_one
        assert len(trials) == len(set(trials)) <= 2 * (limit // step).bit_length() + 1
        assert all(frames % step == 0 and frames <= limit for frames in trials)
