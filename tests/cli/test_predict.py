"""`tablet-hf predict` on scans and on files of tokens, and the table that it continues."""

import csv
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file
from small_autoencoders import save_f32
from typer.testing import CliRunner

from tablet_hf import TabletConfig, TabletFeatureExtractor, TabletForSequenceClassification
from tablet_hf.cli.__main__ import app
from tablet_hf.cli.predict import read_table, update_table
from tablet_hf.datasets.token_files import load_tokens, save_tokens
from tablet_hf.errors import InputError


def predict(*arguments):
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("predict")


@pytest.fixture(scope="module")
def extractor(folder):
    return TabletFeatureExtractor(autoencoder=str(save_f32(folder / "autoencoder")))


@pytest.fixture(scope="module")
def model(folder, extractor):
    torch.manual_seed(0)
    extractor.save_pretrained(folder / "model")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    task = {"problem_type": "multi_label_classification", "id2label": {0: "female"}, "label2id": {"female": 0}}
    names = ("autoencoder", "autoencoder_revision", "signal", "scaling", "token_size", "grid_size", "volume_size")
    tokens = {name: getattr(extractor, name) for name in names}
    config = TabletConfig(**sizes, **task, **tokens, intermediate_size=8, num_frames=2)
    TabletForSequenceClassification(config).save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def scan(folder, make_scan):
    return make_scan(folder / "sub-01_bold.nii.gz", frames=3)


@pytest.fixture(scope="module")
def tokens(folder, scan, extractor):
    """Files of tokens of the same scan, of all frames and of every second."""
    paths = [folder / f"sub-0{stride}_tokens.safetensors" for stride in (1, 2)]
    for stride, path in enumerate(paths, 1):
        save_tokens(extractor.tokenize(scan, stride=stride), extractor.to_dict(), path)
    return paths


def test_scans_and_their_tokens_have_the_same_prediction(model, scan, tokens, tmp_path):
    result = predict(model, scan, tokens[0], "--out", tmp_path / "predictions.csv")
    assert result.exit_code == 0, result.output
    from_scan, from_tokens = rows_of(tmp_path / "predictions.csv")
    assert float(from_scan["score_female"]) == pytest.approx(float(from_tokens["score_female"]), abs=1e-3)
    for row in (from_scan, from_tokens):
        assert row["prediction"] == ("female" if float(row["score_female"]) >= 0.5 else "not female")
        assert (row["num_frames"], row["num_windows"], row["repetition_time"]) == ("2", "1", "2.0")
    assert from_scan["prediction"] in result.output


@pytest.mark.parametrize("option", ["--mask", "--add-mean", "--repetition-time"])
def test_options_of_reading_scans_are_refused_for_tokens(model, scan, tokens, option):
    result = predict(model, tokens[0], option, 2 if option == "--repetition-time" else scan)
    assert result.exit_code == 2
    assert tokens[0].name in result.output


@pytest.mark.parametrize("option", ["--mask", "--add-mean"])
def test_images_belong_to_one_scan(model, scan, option):
    result = predict(model, scan, scan, option, scan)
    assert result.exit_code == 2
    assert "one scan" in result.output


def test_several_commands_may_write_one_table(tmp_path):
    path = tmp_path / "predictions.csv"

    def add(number):
        update_table(path, "m", {str(number): {"scan": str(number), "model": "m", "prediction": number}})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(20)))
    assert read_table(path, "m").keys() == {str(number) for number in range(20)}


def test_finished_scans_are_kept_unless_overwritten(model, tokens, tmp_path):
    out = tmp_path / "predictions.csv"
    assert predict(model, tokens[0], "--out", out).exit_code == 0
    out.write_text(out.read_text().replace("not female", "female").replace(",female", ",KEPT"))
    first = out.read_text()
    result = predict(f"{model}/", *tokens, "--out", out)  # the same model
    assert result.exit_code == 0, result.output
    assert "1 of 2" in result.output
    assert out.read_text().startswith(first)
    assert rows_of(out)[1]["scan"] == str(tokens[1])
    assert predict(model, tokens[0], "--out", out, "--num-frames", 1, "--overwrite").exit_code == 0
    assert {row["scan"]: row["num_frames"] for row in rows_of(out)} == {str(tokens[0]): "3", str(tokens[1]): "2"}


def test_bad_files_do_not_stop_good_ones_and_lose_their_rows(model, tokens, tmp_path):
    out, bad = tmp_path / "predictions.csv", tmp_path / "bad_tokens.safetensors"
    shutil.copy(tokens[0], bad)
    assert predict(model, bad, "--out", out).exit_code == 0
    shutil.copy(model / "model.safetensors", bad)
    endless = tmp_path / f"{'x' * 300}.nii.gz"
    result = predict(model, bad, endless, tmp_path / "missing.nii.gz", tokens[0], "--out", out, "--overwrite")
    assert result.exit_code == 2, result.output
    assert [row["scan"] for row in rows_of(out)] == [str(tokens[0])]
    assert "3 of 4" in result.output
    assert predict(model, bad, "--out", out, "--overwrite").exit_code == 2


def test_tokens_made_in_another_way_are_warned_of_or_refused(model, tokens, tmp_path):
    run, record = load_tokens(tokens[0])
    save_tokens(run, record | {"signal": "percent_change"}, tmp_path / "other_tokens.safetensors")
    save_tokens(run, record | {"token_size": 96}, tmp_path / "small_tokens.safetensors")
    result = predict(model, tmp_path / "other_tokens.safetensors")
    assert result.exit_code == 0
    assert "other_tokens.safetensors: tokens" in result.output
    result = predict(model, tmp_path / "small_tokens.safetensors")
    assert result.exit_code == 2
    assert "token_size" in result.output


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("problem_type", "problem_type"),
        ("pickled", "model.safetensors"),
        ("config.json", "config.json"),
        ("preprocessor_config.json", "preprocessor_config.json"),
    ],
)
def test_models_that_cannot_predict_are_refused_in_one_line(model, tokens, tmp_path, what, name):
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    if what == "problem_type":
        config = TabletConfig.from_pretrained(model)
        config.problem_type = None
        config.save_pretrained(copy)
    elif what == "pickled":
        torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
        (copy / "model.safetensors").unlink()
    else:
        (copy / what).write_text('{"autoencoder": "natural-f32c32", "signal": "foo"}' if "pre" in what else "{")
    result = predict(copy, tokens[0])
    assert result.exit_code == 2
    assert name in result.output
    assert str(copy) in result.output
    assert len(result.output.splitlines()) == 1


@pytest.mark.parametrize(
    "text", ["name,age\na,3\n", "scan,model,prediction\na.nii,owner/other,F\n", "scan,model\na.nii,{model}\n", ""]
)
def test_a_table_of_something_else_is_left_as_it_is(model, tokens, tmp_path, text):
    out = tmp_path / "predictions.csv"
    out.write_text(text.format(model=model))
    result = predict(model, tokens[0], "--out", out)
    assert (result.exit_code, out.name in result.output) == (2, True)
    assert out.read_text() == text.format(model=model)
    assert predict(model, tokens[0], "--out", tmp_path / "no" / "table.csv").exit_code == 2


def test_labels_of_a_model_from_elsewhere_are_no_formulas(tmp_path):
    """A spreadsheet takes the labels of a model for text; they are read back as they were."""
    path, label = tmp_path / "predictions.csv", '=HYPERLINK("http://example.org", "open")'
    values = [("a.nii", label), ("b.nii", "-1.5"), ("c.nii", -2.5), ("d.nii", "'=1"), ("@e.nii", "-1+1")]
    rows = {scan: {"scan": scan, "model": "evil", "prediction": value, "=x": 1} for scan, value in values}
    update_table(path, "evil", rows)
    with path.open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell[:1] in "=+@" and cell]
    assert {"-1.5", "-2.5", f"'{label}", "''=1", "'-1+1"} <= set(cells)
    again = read_table(path, "evil")
    assert [again[scan]["prediction"] for scan, _ in values] == [label, "-1.5", "-2.5", "'=1", "-1+1"]
    assert again["@e.nii"]["=x"] == "1"
    with pytest.raises(InputError, match=r"predictions\.csv.*evil"):
        read_table(path, "good")
