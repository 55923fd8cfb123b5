"""Cards print what is known, say what is not, and have no number without a source; the Hub can read their headers."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, RepoCard

from tablet_hf.convert_tablet_to_hf import RELEASED_REPO
from tablet_hf.errors import InputError
from tablet_hf.hub.cards import CardFacts, read_evaluation, template_file, write_card
from tablet_hf.hub.publishing import Sharing, prepare
from tablet_hf.hub.training_data import TrainingData

pytestmark = pytest.mark.filterwarnings("ignore:.*training data are not recorded")
ROOT = Path(__file__).parents[2]
CARDS = ROOT / "hub_cards"
TEXTS = json.loads((CARDS / "texts.json").read_text())
EXAMPLE = "An example of what `tablet-hf push` writes: this repository does not exist, and nothing was measured."
MADE = {"autoencoder": "mit-han-lab/dc-ae-f32c32-in-1.0-diffusers", "signal": "intensity", "scaling": "max"}
MADE |= {"volume_size": 96}
SEX = {"architectures": ["TabletForSequenceClassification"], "target_name": "sex", "id2label": {0: "M"}}
SEX |= {"problem_type": "multi_label_classification", "negative_label": "F"}
PRETRAINED = MADE | {"architectures": ["TabletForMaskedTokenModeling"], "position_embedding_type": "none"}
PRETRAINED |= {"num_hidden_layers": 12, "hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2}
PRETRAINED |= {"grid_size": 3, "token_size": 3072}
STAGES = (
    TrainingData("masked token modeling", ("HBN", "Ours"), 9, 3, 9, 1_090, False, "lab/first"),
    TrainingData("sex", ("ADHD-200",), 5, 0, 5, 50, False, "pretrained"),
)
FACTS = {
    "model": CardFacts("OWNER/tablet-pretrained", settings=PRETRAINED, converted_from=RELEASED_REPO),
    "dataset": CardFacts("OWNER/tokens", settings=MADE, store=STAGES[1]),
}


def parsed(text):
    card = RepoCard(text)
    return card.data.to_dict(), card.text


def numbers_without_source(card):
    """Paragraphs and tables with a digit, in sections that name no source of figures."""
    body = re.sub(r"```.*?```", "", card.split("---\n", 2)[2], flags=re.DOTALL)
    found = []
    for section in re.split(r"^## ", body, flags=re.MULTILINE):
        title, _, text = section.partition("\n")
        for paragraph in text.split("\n\n") if "Source:" not in text else []:
            # Links, code, and names of the field such as 4D are no figures.
            plain = re.sub(r"\(https?://[^)]*\)|`[^`]*`|\b4D\b|\b2D\b|MNI152|ADHD-200|\w*TABLeT\w*", "", paragraph)
            if re.search(r"\d", plain) and not re.search(r"source: |arXiv 2604\.03619", plain):
                found.append((title, paragraph.strip()))
    return found


@pytest.mark.parametrize("kind", FACTS)
def test_examples_are_what_the_templates_give(kind):
    written = write_card(kind, FACTS[kind])
    header, body = written.removeprefix("---\n").split("\n---\n", 1)
    expected = f"---\n# {EXAMPLE}\n{header}\n---\n\n> {EXAMPLE}\n{body}"
    assert (CARDS / f"{kind}.example.md").read_text(encoding="utf-8") == expected
    assert numbers_without_source(written) == []


def test_a_number_without_a_source_would_be_seen():
    text = write_card("model", CardFacts("lab/sex", settings=SEX)).replace("Not measured.", "Accuracy is 0.97.")
    ((section, paragraph),) = numbers_without_source(text)
    assert (section, paragraph[:17]) == ("Performance", "Accuracy is 0.97.")


class TestFigures:
    def card(self, results, folder, **facts):
        (folder / "results.json").write_text(json.dumps(results))
        return write_card("model", CardFacts("lab/sex", settings=SEX, evaluation=read_evaluation(folder), **facts))

    def test_they_have_intervals_next_to_baselines_and_are_in_the_header(self, results, tmp_path):
        text = self.card(results, tmp_path)
        header, body = parsed(text)
        (entry,) = header["model-index"][0]["results"]
        measured = {metric["type"]: metric for metric in entry["metrics"]}
        assert list(measured) == ["auroc", "accuracy"]
        assert (measured["auroc"]["value"], measured["auroc"]["args"]["low"]) == (0.8764, 0.75)
        assert measured["auroc"]["args"]["subjects"] == 40
        assert entry["dataset"]["name"] == "fMRI runs of held-out subjects"
        assert "| TABLeT | 0.876 (0.75 to 0.95) | 0.8 (0.7 to 0.9) |\n| functional connectivity | 0.765" in body
        assert "Subjects: 40, held out." in body
        assert numbers_without_source(text) == []
        assert "Not measured" not in body
        assert "twice" not in text, "a warning of the evaluation"

    @pytest.mark.parametrize("doubt", [{"are_held_out": False}, {"are_held_out": None}, {"about": {}}])
    def test_unknown_is_not_held_out(self, results, tmp_path, doubt):
        header, body = parsed(self.card(results | doubt, tmp_path))
        assert "model-index" not in header
        assert ("not known to be held out" in body) == ("are_held_out" in doubt)
        assert "0.876" in body

    def test_a_degenerate_interval_is_none(self, results, tmp_path):
        results["methods"]["TABLeT"]["metrics"]["accuracy"] = {"value": 1.0, "low": 1.0, "high": 1.0}
        header, body = parsed(self.card(results, tmp_path))
        assert [metric["type"] for metric in header["model-index"][0]["results"][0]["metrics"]] == ["auroc"]
        assert "degenerate" in body

    def test_another_label(self, results, tmp_path):
        with pytest.raises(InputError, match="predicts sex"):
            self.card(results | {"label": "age"}, tmp_path)

    @pytest.mark.parametrize(
        "content", [None, "{", "[]", "{}", {"methods": {}}, {"baselines": ["TABLeT", "functional connectivity"]}]
    )
    def test_damaged_results(self, results, tmp_path, content):
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(results | content)
            (tmp_path / "results.json").write_text(text)
        with pytest.raises(InputError, match=r"results\.json"):
            read_evaluation(tmp_path)


class TestModels:
    def test_one_of_a_folder(self, model_folder, tmp_path):
        prepare(model_folder, tmp_path / "to-upload", "lab/sex", Sharing(license="apache-2.0"))
        header, body = parsed((tmp_path / "to-upload" / "README.md").read_text())
        assert "| classes | M (logit above 0), F |" in body
        assert "| autoencoder | `natural-f32c32`, revision sha256:" in body
        assert "| frames per window | 4 |" in body
        assert (header["license"], header["pipeline_tag"]) == ("apache-2.0", "other")
        for block in re.findall(r"```python\n(.*?)```", body, re.DOTALL):
            compile(block, "card", "exec")
        assert 'pipeline("fmri-classification", model="lab/sex")' in body
        assert "tablet-hf predict lab/sex scan.nii.gz" in body

    def test_a_head_without_a_task_does_not_predict(self):
        """A released checkpoint has one; pipelines refuse it."""
        config = {"architectures": ["TabletForSequenceClassification"], "position_embedding_type": "none"}
        header, body = parsed(write_card("model", CardFacts("lab/x", settings=config)))
        assert header["pipeline_tag"] == "feature-extraction"
        assert "fmri-classification" not in body
        assert "| predicts |" not in body
        assert "--init lab/x" in body
        assert "no positions" in body

    def test_trainings(self):
        header, body = parsed(write_card("model", CardFacts("lab/sex", settings=SEX, stages=STAGES, with_code=True)))
        assert header["base_model"] == "lab/first"
        assert "subjects: 9, runs: 9, frames: 1,090, starting from `lab/first`; validation subjects: 3." in body
        assert "2. sex: [ADHD-200]" in body
        assert "Training data of `lab/first`: not recorded." in body
        assert "Ours: terms not recorded" in body
        assert TEXTS["terms"]["HBN"]["terms"] in body
        assert "trust_remote_code=True" in body

    def test_from_the_released_checkpoint(self):
        stages = (replace(STAGES[0], started_from=RELEASED_REPO),)
        header, body = parsed(write_card("model", CardFacts("lab/sex", settings=SEX, stages=stages)))
        assert header["base_model"] == RELEASED_REPO
        assert TEXTS["terms"]["UKB"]["terms"] in body
        assert TEXTS["released"]["training"] in body

    def test_a_store_without_a_record(self):
        text = write_card("model", CardFacts("lab/x", settings=SEX, store=STAGES[0], datasets=["lab/tokens"]))
        assert "Subjects: 9, runs: 9, frames: 1,090." in text
        assert parsed(text)[0]["datasets"] == ["lab/tokens"]

    def test_conditions(self):
        sharing = Sharing(is_restricted=True, right_to_share="Our agreement\n\n# allows", is_gated=True)
        facts = CardFacts("lab/x", sharing, SEX)
        for kind in ("model", "dataset", "autoencoder"):
            header, body = parsed(write_card(kind, facts))
            assert '"Our agreement # allows"' in body
            assert set(header["extra_gated_fields"].values()) == {"text", "checkbox"}
            assert ("marked as restricted" in body) == (kind != "autoencoder")

    def test_names_of_others_stay_in_their_line(self):
        name = "age\n\n# Not measured | 1 | <script>"
        config = SEX | {"target_name": name, "id2label": {0: name}}
        for kind, facts in (
            ("model", CardFacts("lab/x", settings=config, stages=[replace(STAGES[0], task=name, studies=(name,))])),
            ("dataset", CardFacts("lab/x", store=replace(STAGES[0], studies=(name,)), rows={name: name})),
        ):
            text = write_card(kind, facts)
            assert text.count("age # Not measured \\| 1 \\| &lt;script>") > 1
            assert "\n# Not measured" not in text


class TestDatasets:
    def test_one_of_a_store(self, make_store, tmp_path):
        phenotypes = ["age", "sex", "family"]
        prepare(make_store().folder, tmp_path / "a", "lab/tokens", phenotypes=phenotypes)
        text = (tmp_path / "a" / "README.md").read_text()
        header, body = parsed(text)
        assert (header["license"], header["license_name"]) == ("other", "terms-of-the-source")
        assert header["configs"] == [{"config_name": "default", "data_files": "data/*.parquet"}]
        assert "| subjects | 6 |\n| runs | 6 |\n| frames | 30 |" in body
        assert "| phenotypes | `age` (in whole years, 90 for 90 and over), `sex`, families |" in body
        assert TEXTS["terms"]["ADHD-200"]["terms"] in body
        assert "pseudonyms" in body
        assert numbers_without_source(text) == []
        prepare(make_store().folder, tmp_path / "b", "lab/tokens", Sharing(license="cc-by-4.0"), keep_subjects=True)
        header, body = parsed((tmp_path / "b" / "README.md").read_text())
        assert header["license"] == "cc-by-4.0"
        assert "pseudonyms" not in body
        assert "| phenotypes | none |" in body


class TestAutoencoders:
    def test_the_shipped_one(self, shipped_autoencoder, tmp_path):
        public = Sharing(is_private=False, license="apache-2.0")
        prepared = prepare(shipped_autoencoder, tmp_path / "to-upload", "lab/autoencoder", public)
        assert prepared.sharing.is_restricted is False
        assert (tmp_path / "to-upload" / "README.md").read_bytes() == (CARDS / "natural-f32c32.md").read_bytes()
        header = ModelCard.load(CARDS / "natural-f32c32.md").data
        assert (header.license, header.library_name) == ("apache-2.0", "diffusers")
        with pytest.raises(InputError, match="apache"):
            prepare(shipped_autoencoder, tmp_path / "other", "lab/autoencoder", Sharing(license="mit"))

    def test_another_one(self, shipped_autoencoder, tmp_path):
        shutil.copytree(shipped_autoencoder, tmp_path / "mine")
        config = json.loads((tmp_path / "mine" / "config.json").read_text()) | {"trained in": "hospital-7"}
        (tmp_path / "mine" / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match="--source-open"):
            prepare(tmp_path / "mine", tmp_path / "to-upload", "lab/mine", Sharing(is_private=False))
        right = Sharing(is_restricted=True, right_to_share="Our agreement names this project", license="mit")
        prepared = prepare(tmp_path / "mine", tmp_path / "to-upload", "lab/mine", right)
        assert prepared.sharing.is_gated
        assert set(prepared.files) == {"README.md", "config.json", "diffusion_pytorch_model.safetensors"}
        assert "hospital-7" not in (tmp_path / "to-upload" / "config.json").read_text()
        text = (tmp_path / "to-upload" / "README.md").read_text()
        header, body = parsed(text)
        assert (header["license"], header["library_name"]) == ("mit", "diffusers")
        assert "Not measured." in body
        assert "Our agreement names this project" in body
        assert numbers_without_source(text) == []


def test_what_is_installed_has_the_templates(tmp_path):
    """They are in hub_cards/ and nowhere else in the repository; building puts them into the package."""
    built = tmp_path / "lib"
    words = [sys.executable, "setup.py", "-q", "build", "--build-base", tmp_path, "--build-lib", built]
    subprocess.run([*map(str, words)], cwd=ROOT, check=True, capture_output=True)
    assert not list((ROOT / "src").rglob("*.jinja"))
    code = "from tablet_hf.hub.cards import template_file; print(template_file('model.md.jinja'))"
    environment = os.environ | {"PYTHONPATH": str(built)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(built / "tablet_hf" / "hub" / "hub_cards" / "model.md.jinja"), done.stderr
    for name in ("dataset.md.jinja", "autoencoder.md.jinja", "texts.json", "natural-f32c32.md"):
        assert (built / "tablet_hf" / "hub" / "hub_cards" / name).read_bytes() == template_file(name).read_bytes()
