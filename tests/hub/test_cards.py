"""Cards say what is known, say what is not, and have no number without a source; the Hub understands their headers."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tablet_hf.convert_tablet_to_hf import RELEASED_REPO
from tablet_hf.errors import InputError
from tablet_hf.hub.cards import (
    TERMS,
    TrainingFacts,
    check_card,
    dataset_card,
    facts_of_released,
    model_card,
    read_evaluation,
    template_file,
)
from tablet_hf.hub.publishing import Sharing, prepare
from tablet_hf.hub.training_data import TrainingData

ROOT = Path(__file__).parents[2]
CARDS = ROOT / "hub_cards"
CONFIG = {"architectures": ["TabletForSequenceClassification"], "target_name": "sex"}
CONFIG |= {"problem_type": "multi_label_classification", "id2label": {0: "M"}, "negative_label": "F"}
MADE = {"autoencoder": "mit-han-lab/dc-ae-f32c32-in-1.0-diffusers", "signal": "intensity", "scaling": "max"}
MADE |= {"volume_size": 96}
EXAMPLE = "An example of what `tablet-hf push` writes: no such repository exists, and nothing was measured of it."


class TestExamples:
    """Those in hub_cards/, which show what the templates give."""

    @pytest.fixture(params=["model", "dataset"])
    def kind(self, request):
        return request.param

    @pytest.fixture
    def written(self, kind):
        if kind == "dataset":
            training = TrainingFacts(("ADHD-200",), is_restricted=False)
            return dataset_card("OWNER/tokens", MADE, training=training)
        config = MADE | {"architectures": ["TabletForMaskedTokenModeling"], "position_embedding_type": "none"}
        config |= {"num_hidden_layers": 12, "hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2}
        config |= {"grid_size": 3, "token_size": 3072}
        return model_card("OWNER/tablet-pretrained", config, **facts_of_released(RELEASED_REPO, config))

    def test_they_are_what_the_templates_give_and_say_that_they_are_examples(self, kind, written):
        header, body = written.removeprefix("---\n").split("\n---\n", 1)
        expected = f"---\n# {EXAMPLE}\n{header}\n---\n\n> {EXAMPLE}\n{body}"
        assert (CARDS / f"{kind}.example.md").read_text(encoding="utf-8") == expected

    def test_no_number_stands_without_a_source(self, written):
        assert numbers_without_source(written) == []

    def test_that_would_be_seen(self):
        lines = model_card("lab/sex", CONFIG).replace("Not measured.", "Accuracy is 0.97.")
        ((section, text),) = numbers_without_source(lines)
        assert section == "How good it is"
        assert text.startswith("Accuracy is 0.97.")


def numbers_without_source(card):
    """Lines of prose and tables with a digit, in sections that name no source of figures."""
    body = re.sub(r"```.*?```", "", card.split("---\n", 2)[2], flags=re.DOTALL)
    found = []
    for section in re.split(r"^## ", body, flags=re.MULTILINE):
        title, _, text = section.partition("\n")
        for paragraph in text.split("\n\n") if "Source:" not in text else []:
            # Links, code, and names of the field such as 4D are no figures.
            plain = re.sub(r"\(https?://[^)]*\)|`[^`]*`|\b4D\b|\b2D\b|MNI152|ADHD-200|\w*TABLeT\w*", "", paragraph)
            is_sourced = re.search(r"source: |arXiv 2604\.03619", plain)
            if re.search(r"\d", plain) and not is_sourced:
                found.append((title, paragraph.strip()))
    return found


class TestModelCards:
    def test_figures_stand_with_intervals_beside_baselines_and_in_the_index(self, evaluation):
        results = json.loads(evaluation.read_text())
        text = model_card("lab/sex", CONFIG, evaluation=read_evaluation(evaluation), license="mit")
        header = check_card(text)
        (index,) = header["model-index"]
        measured = {metric["type"]: metric for metric in index["results"][0]["metrics"]}
        expected = results["methods"]["TABLeT"]["metrics"]
        assert next(iter(measured)) == results["main_metric"]
        for name, estimate in expected.items():
            assert measured[name]["value"] == pytest.approx(estimate["value"], rel=1e-3)
            assert measured[name]["args"]["low"] == pytest.approx(estimate["low"], rel=1e-3)
            assert measured[name]["args"]["people"] == 40
        rows = [line for line in text.splitlines() if line.startswith(("| TABLeT", "| functional"))]
        assert len(rows) == 2
        auroc = results["methods"]["functional connectivity"]["metrics"]["auroc"]
        assert f"{auroc['value']:.3g} ({auroc['low']:.3g} to {auroc['high']:.3g})" in rows[1]
        assert numbers_without_source(text) == []
        assert "Not measured" not in text

    @pytest.mark.parametrize("are_held_out", [False, None])
    def test_figures_of_people_it_may_have_learnt_from_are_not_in_the_header(self, evaluation, tmp_path, are_held_out):
        results = json.loads(evaluation.read_text())
        results.pop("are_held_out")
        results |= {} if are_held_out is None else {"are_held_out": are_held_out}
        (tmp_path / "results.json").write_text(json.dumps(results))
        text = model_card("lab/sex", CONFIG, evaluation=read_evaluation(tmp_path))
        assert "model-index" not in check_card(text)
        assert "40 people, whom the model may have learnt from" in text
        assert "held-out" not in text

    def test_one_person_gives_no_interval(self, evaluation, tmp_path):
        """Drawn anew it is always the same one: 1.0 to 1.0 would say that the model is certain."""
        results = json.loads(evaluation.read_text()) | {"num_subjects": 1}
        for values in results["methods"].values():
            values["metrics"] = {name: {"value": 1.0, "low": 1.0, "high": 1.0} for name in values["metrics"]}
        (tmp_path / "results.json").write_text(json.dumps(results))
        text = model_card("lab/sex", CONFIG, evaluation=read_evaluation(tmp_path))
        assert "model-index" not in check_card(text)
        assert "sex, 1 person. Baselines" in text
        assert "| 1 | 1 |" in text
        assert "1 to 1" not in text
        assert "Nobody can tell from one person how far off these figures are" in text

    def test_an_interval_without_length_is_none(self, evaluation, tmp_path):
        results = json.loads(evaluation.read_text())
        results["methods"]["TABLeT"]["metrics"]["accuracy"] = {"value": 1.0, "low": 1.0, "high": 1.0}
        (tmp_path / "results.json").write_text(json.dumps(results))
        text = model_card("lab/sex", CONFIG, evaluation=read_evaluation(tmp_path))
        measured = [metric["type"] for metric in check_card(text)["model-index"][0]["results"][0]["metrics"]]
        assert "auroc" in measured
        assert "accuracy" not in measured
        assert "No interval is given for accuracy: drawn anew" in text

    def test_figures_of_another_label(self, evaluation):
        with pytest.raises(InputError, match="figures are of sex, but the model predicts age"):
            model_card("lab/age", CONFIG | {"target_name": "age"}, evaluation=read_evaluation(evaluation))

    @pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"methods": {}, "baselines": []}'])
    def test_what_is_no_evaluation(self, tmp_path, content):
        if content is not None:
            (tmp_path / "results.json").write_text(content)
        with pytest.raises(InputError, match=r"results.json: (there is no such file|it is no results.json)"):
            read_evaluation(tmp_path)

    def test_labels_and_preprocessing(self, model_folder, tmp_path):
        prepare(model_folder, tmp_path / "sent", "lab/sex", Sharing(license="apache-2.0"))
        text = (tmp_path / "sent" / "README.md").read_text()
        assert "| classes | M (logit above 0), F |" in text
        assert "| autoencoder | `natural-f32c32`, revision sha256:" in text
        assert "| window | 4 frames |" in text
        header = check_card(text)
        assert "`apache-2.0` (the weights). The code of `tablet_hf` is under `apache-2.0`" in text
        assert "pip install -c constraints.txt ." in text
        assert (header["license"], header["library_name"], header["pipeline_tag"]) == (
            "apache-2.0",
            "transformers",
            "other",
        )

    def test_a_head_without_a_task_is_not_said_to_predict(self):
        """A released checkpoint has one; pipelines refuse it."""
        config = {"architectures": ["TabletForSequenceClassification"], "position_embedding_type": "none"}
        text = model_card("lab/x", config)
        assert check_card(text)["pipeline_tag"] == "feature-extraction"
        assert "fmri-classification" not in text
        assert "tablet-hf predict" not in text
        assert "--init lab/x" in text
        assert "| predicts |" not in text
        assert "It has no positions" in text
        assert "fmri-classification" in model_card("lab/x", config | {"problem_type": "regression"})

    def test_figures_are_of_no_study_that_results_do_not_name(self, evaluation):
        stages = [
            TrainingData("masked token modeling", ("HBN",), 9, 0, 9, 90, False, RELEASED_REPO),
            TrainingData("sex", ("ADHD-200",), 5, 0, 5, 50, False, "pretrained"),
        ]
        judged = replace(read_evaluation(evaluation), are_held_out=True)
        text = model_card("lab/sex", {"architectures": ["TabletModel"]}, training_data=stages, evaluation=judged)
        (index,) = check_card(text)["model-index"]
        assert {each["dataset"]["name"] for each in index["results"]} == {"fMRI runs of held-out people"}
        for study in ("UK Biobank](", "Healthy Brain Network](", "ADHD-200]("):
            assert f"[{study}https://" in text, "its terms"

    def test_what_is_said_runs(self, model_folder, tmp_path):
        """The commands of a card are those of this package."""
        prepare(model_folder, tmp_path / "sent", "lab/sex")
        text = (tmp_path / "sent" / "README.md").read_text()
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            compile(block, "card", "exec")
        assert 'pipeline("fmri-classification", model="lab/sex")' in text
        assert "tablet-hf predict lab/sex scan.nii.gz" in text


class TestNamesOfOthers:
    """Labels and columns are called as whoever made the data liked."""

    NAME = "age\n\n# Not measured | 1 | <script>"

    def test_they_stay_in_their_line(self):
        made = {"autoencoder": "natural-f32c32"}
        dataset = dataset_card(
            "lab/x", made, training=TrainingFacts(), phenotypes={self.NAME: ""}, left_out={self.NAME: "so"}
        )
        model = model_card("lab/x", CONFIG | {"target_name": self.NAME, "id2label": {0: self.NAME}})
        for text in (dataset, model):
            assert "age # Not measured \\| 1 \\| &lt;script>" in text
            assert "\n# Not measured" not in text


class TestDatasetCards:
    def test_what_it_holds_and_leaves_out(self, make_store, tmp_path):
        prepare(make_store().folder, tmp_path / "sent", "lab/tokens")
        text = (tmp_path / "sent" / "README.md").read_text()
        header = check_card(text)
        assert (header["license"], header["license_name"]) == ("other", "terms-of-the-source")
        prepare(make_store().folder, tmp_path / "other", "lab/tokens", Sharing(license="cc-by-4.0"))
        assert check_card((tmp_path / "other" / "README.md").read_text())["license"] == "cc-by-4.0"
        assert header["configs"] == [{"config_name": "default", "data_files": "data/*.parquet"}]
        assert "| people | 6 |" in text
        assert "| phenotypes | `age` (in whole years, 90 from 90 on), `sex`, `dx` |" in text
        assert "- remark: columns called remark lead to people" in text
        assert TERMS["ADHD-200"][1] in text
        assert numbers_without_source(text) == []

    def test_names_of_studies_that_nobody_knows(self):
        text = dataset_card("lab/x", {}, training=TrainingFacts(("Ours",), 3, 4, 5, None))
        assert "Terms of Ours: not recorded here; ask its owner." in text

    def test_restricted_ones_say_so(self):
        text = dataset_card("lab/x", {}, training=TrainingFacts(("UKB",), is_restricted=True))
        assert "**Restricted.** The terms of these data forbid or limit passing on" in text
        assert "They are marked as restricted: their terms forbid or limit" in text


class TestHeaders:
    @pytest.mark.parametrize(
        ("header", "said"),
        [
            ("license: proprietary", "--license proprietary: the Hub knows no licence of this name; choose"),
            ("tags: fmri", "tags: 'fmri'"),
            ("tags: [1]", "not all text"),
            ("colour: red", "colour"),
            ("a: [", "no YAML"),
            ("- a", "no fields"),
        ],
    )
    def test_what_the_hub_would_not_take(self, header, said):
        with pytest.raises(InputError, match=re.escape(said)):
            check_card(f"---\n{header}\n---\n\n# x\n")

    def test_none(self):
        with pytest.raises(InputError, match="no header"):
            check_card("# x\n")

    def test_of_the_autoencoder_that_is_shipped(self, shipped_autoencoder, tmp_path):
        prepare(shipped_autoencoder, tmp_path / "sent", "lab/autoencoder")
        text = (tmp_path / "sent" / "README.md").read_text()
        assert text == (CARDS / "natural-f32c32.md").read_text()
        for license, said in (
            ("nonsense", "the Hub knows no licence"),
            ("mit", "comes with the package, under apache"),
        ):
            with pytest.raises(InputError, match=f"--license {license}: .*{said}"):
                prepare(shipped_autoencoder, tmp_path / "other", "lab/autoencoder", Sharing(license=license))
        public = Sharing(is_private=False, license="apache-2.0")
        assert prepare(shipped_autoencoder, tmp_path / "public", "lab/x", public).sharing.is_restricted is False
        assert yaml.safe_load(text.split("---\n")[1])["library_name"] == "diffusers"

    def test_of_another_autoencoder(self, shipped_autoencoder, tmp_path):
        import shutil

        shutil.copytree(shipped_autoencoder, tmp_path / "mine")
        with pytest.raises(InputError, match=r"not recorded whether the terms.*; say --source-open"):
            prepare(tmp_path / "mine", tmp_path / "sent", "lab/mine", Sharing(is_private=False))
        assert prepare(tmp_path / "mine", tmp_path / "open", "lab/mine").sharing.is_restricted is None
        right = "Our agreement names this project"
        restricted = Sharing(is_restricted=True, right_to_share=right, license="MIT")
        assert prepare(tmp_path / "mine", tmp_path / "restricted", "lab/mine", restricted).sharing.is_gated
        text = (tmp_path / "restricted" / "README.md").read_text()
        assert right in text
        assert check_card(text)["license"] == "mit"
        assert "`mit` (the weights)." in text
        assert "extra_gated_fields" in check_card(text)
        prepare(tmp_path / "mine", tmp_path / "sent", "lab/mine")
        text = (tmp_path / "sent" / "README.md").read_text()
        assert check_card(text)["library_name"] == "diffusers"
        assert "on 1600 natural photographs, 4 stages (source: `training.json`" in text
        assert "Not measured." in text
        assert numbers_without_source(text) == []


def test_what_is_installed_has_the_templates(tmp_path):
    """They lie in hub_cards/ and nowhere else in the repository; building puts them into the package."""
    built = tmp_path / "lib"
    words = [sys.executable, "setup.py", "-q", "build", "--build-base", tmp_path, "--build-lib", built]
    subprocess.run([*map(str, words)], cwd=ROOT, check=True, capture_output=True)
    assert not list((ROOT / "src").rglob("*.jinja"))
    code = "from tablet_hf.hub.cards import template_file; print(template_file('model.md.jinja'))"
    environment = os.environ | {"PYTHONPATH": str(built)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(built / "tablet_hf" / "hub" / "hub_cards" / "model.md.jinja"), done.stderr
    for name in ("dataset.md.jinja", "autoencoder.md.jinja", "released.json", "natural-f32c32.md"):
        assert (built / "tablet_hf" / "hub" / "hub_cards" / name).read_bytes() == template_file(name).read_bytes()
