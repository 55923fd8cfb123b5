"""`tablet-hf push` and what is behind it, over real HTTP: what is uploaded, round trips, access tokens, what breaks."""

import io
import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from planted import LAB, OTHER, PLANTED, READER, SUBJECTS
from safetensors.torch import load_file
from typer.testing import CliRunner

from tablet_hf import TabletConfig, TabletForMaskedTokenModeling, TabletForSequenceClassification
from tablet_hf.cli.__main__ import app
from tablet_hf.datasets import StreamedWindows, TabletCollator, TokenDataset, TrainingWindows
from tablet_hf.errors import InputError
from tablet_hf.hub.files import fetch
from tablet_hf.hub.loading import load_model
from tablet_hf.hub.publishing import PublishCallback, Sharing, check_may_write, prepare, publish
from tablet_hf.hub.training_data import TrainingData

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(training data are not recorded|figures are in the|autoencoder is a local folder)"
)
RIGHT = "Our agreement with the consortium names this project"
FIRST = TrainingData("masked token modeling", ("ADHD-200",), 112, 12, 130, 20_190, False)
LAST = TrainingData("sex", ("ADHD-200",), 40, 5, 41, 5_000, False, "pretrained")


def run(*words, token=LAB, exit_code=0):
    ended = CliRunner().invoke(app, ["push", *map(str, words)], env={"HF_TOKEN": token or ""})
    printed = " ".join((ended.stdout + ended.stderr).split())
    assert ended.exit_code == exit_code, printed
    return printed


def send(path, repo, out, token=LAB, sharing=None, how=None, **options):
    return publish(prepare(path, out, repo, sharing, **options), repo, token=token, **(how or {}))


@pytest.fixture
def quick(monkeypatch):
    """Clients that try again do so at once."""
    monkeypatch.setattr(time, "sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.01)))


@pytest.fixture
def trained(model_folder, tmp_path):
    """A function that gives the model a record of its trainings."""

    def make(*stages):
        shutil.copytree(model_folder, tmp_path / "model", dirs_exist_ok=True)
        TrainingData.write(tmp_path / "model", stages)
        return tmp_path / "model"

    return make


def everything_received(hub):
    """All that a Hub received, as text: requests, files of every commit, and the cells and headers of Parquet files."""
    texts = [body.decode("latin-1") for body in hub.received]
    contents = [content for each in hub.repositories.values() for commit in each.commits.values()
                for name, content in [*commit.files.items(), ("", commit.title.encode())]]  # fmt: skip
    for content in [*contents, *hub.large_files.values()]:
        texts.append(content.decode("latin-1"))
        if content[:4] == b"PAR1":
            table = pq.read_table(io.BytesIO(content))
            columns = [name for name in table.column_names if name != "tokens"]
            texts += [json.dumps(table.select(columns).to_pylist(), default=str), str(table.schema.metadata)]
    return "\n".join([*texts, *(name for each in hub.repositories.values() for name in each.branches | each.tags)])


def test_nothing_of_the_source_leaves_in_a_whole_push(
    hub, telling_model, model_folder, make_store, results, tmp_path, caplog
):
    """A model with code and figures, one of restricted data, tokens, and their export; each byte that was received."""
    caplog.set_level("DEBUG")
    (tmp_path / "results.json").write_text(json.dumps(results))
    store = make_store(folder=tmp_path / "hospital-7")
    export = ["dataset", "export", str(store.folder), "--out", str(tmp_path / "export")]
    assert CliRunner().invoke(app, export).exit_code == 0
    printed = run(telling_model, "lab/site", "--with-code", "--tag", "v1", "--revision", "tries/1")
    printed += run(model_folder, "lab/sex", "--evaluation", tmp_path / "results.json", "--dataset", store.folder)
    words = ("--phenotypes", "age,sex", "--phenotypes", "family,centre,dx")
    printed += run(store.folder, "lab/tokens", *words)
    printed += run(tmp_path / "export", "lab/export", *words, "--token", LAB, token=None)
    restricted = make_store(True, "HCP-YA", tmp_path / "hcp" / "hospital-7").folder
    printed += run(restricted, "lab/hcp", *words, "--i-have-the-right-to-share", RIGHT)
    received = everything_received(hub)
    found = [
        secret for secret in [*PLANTED, str(tmp_path), str(Path.home()), str(Path.cwd()), LAB] if secret in received
    ]
    assert found == []
    assert LAB not in printed + caplog.text
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert LAB.encode() not in path.read_bytes(), path
    # The search sees what is there: subject ids that are published on purpose, cells, headers and bodies.
    run(store.folder, "lab/open", "--keep-subjects")
    received = everything_received(hub)
    assert all(subject in received for subject in SUBJECTS)
    assert all(word in received for word in ("site-2", "splits-1.csv", "lab/tokens", "tries/1"))


class TestFolders:
    @pytest.mark.parametrize(
        ("content", "word"),
        [({"input_feature_size": 3072}, "convert"), ({"model_type": "bert"}, "not a folder"), (1, r"config\.json")],
    )
    def test_others(self, tmp_path, content, word):
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=word):
            prepare(tmp_path, tmp_path / "to-upload", "lab/x")

    @pytest.mark.parametrize(
        "index", [None, {"x": "../secret.safetensors"}, {"x": "/etc/secret.safetensors"}, {"x": 1}, {}, []]
    )
    def test_weights_are_safetensors_of_the_folder(self, tmp_path, model_folder, index):
        shutil.copytree(model_folder, tmp_path / "model")
        if index is None:
            (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
        else:
            content = json.dumps({"metadata": {}, "weight_map": index})
            (tmp_path / "model" / "model.safetensors.index.json").write_text(content)
        with pytest.raises(InputError, match="safetensors"):
            prepare(tmp_path / "model", tmp_path / "to-upload", "lab/x")
        assert not (tmp_path / "to-upload").exists()

    def test_weights_in_several_files(self, tmp_path, model_folder):
        model = TabletForSequenceClassification.from_pretrained(model_folder)
        shutil.copytree(model_folder, tmp_path / "model")
        (tmp_path / "model" / "model.safetensors").unlink()
        model.save_pretrained(tmp_path / "model", max_shard_size="10KB")
        assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
        prepare(tmp_path / "model", tmp_path / "to-upload", "lab/x")
        again = load_file(tmp_path / "to-upload" / "model.safetensors")
        assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())

    @pytest.mark.parametrize("repo", ["sex", "lab/../../etc", "lab/x/y", "lab/.x", "lab/a b", "", "https://a/b"])
    def test_names_that_no_repository_has(self, repo, model_folder, tmp_path):
        with pytest.raises(InputError, match="owner/name"):
            prepare(model_folder, tmp_path / "to-upload", repo)

    def test_options_of_another_kind(self, tmp_path, model_folder, make_store):
        with pytest.raises(InputError, match="--phenotypes"):
            prepare(model_folder, tmp_path / "to-upload", "lab/x", phenotypes=["age"])
        with pytest.raises(InputError, match="--with-code"):
            prepare(make_store().folder, tmp_path / "to-upload", "lab/x", with_code=True)


class TestModels:
    def test_only_what_others_need_is_uploaded(self, hub, model_folder, tmp_path):
        commit = send(model_folder, "lab/sex", tmp_path / "to-upload")
        assert str(commit.repo_url) == f"{hub.endpoint}/lab/sex"
        files = hub.files("lab/sex")
        names = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
        assert set(files) == names | {".gitattributes"}
        assert files["model.safetensors"] == (model_folder / "model.safetensors").read_bytes()
        assert hub.repositories["models", "lab/sex"].is_private

    def test_its_code_only_where_it_is_asked_for(self, model_folder, tmp_path):
        prepared = prepare(model_folder, tmp_path / "a", "lab/sex", with_code=True)
        assert "modeling_tablet.py" in prepared.files
        assert prepared.left_behind == ("trainer_state.json", "training_args.bin")
        again = prepare(tmp_path / "a", tmp_path / "b", "lab/sex")
        assert not [name for name in again.files if name.endswith(".py")]
        assert "auto_map" not in json.loads((tmp_path / "b" / "config.json").read_text())

    def test_figures_of_other_weights_are_refused(self, model_folder, results, tmp_path):
        results["about"]["weights"] = "0123456789abcdef"
        (tmp_path / "results.json").write_text(json.dumps(results))
        with pytest.raises(InputError, match="other weights"):
            prepare(model_folder, tmp_path / "to-upload", "lab/sex", evaluation=tmp_path)


class TestTrainingData:
    """The record next to the weights is published; one training on restricted data makes a model restricted."""

    @pytest.mark.parametrize("with_store", [False, True])
    def test_restricted(self, trained, make_store, tmp_path, with_store):
        model = trained(FIRST, replace(LAST, is_restricted=True))
        how = {"dataset": make_store().folder} if with_store else {}
        with pytest.raises(InputError, match="--i-have-the-right-to-share"):
            prepare(model, tmp_path / "to-upload", "lab/sex", **how)
        prepared = prepare(model, tmp_path / "to-upload", "lab/sex", Sharing(right_to_share=RIGHT), **how)
        assert (prepared.sharing.is_restricted, prepared.sharing.is_gated) == (True, True)

    def test_open(self, trained, tmp_path):
        prepared = prepare(trained(FIRST, LAST), tmp_path / "to-upload", "lab/sex", Sharing(is_private=False))
        assert prepared.sharing.is_restricted is False
        assert TrainingData.read(tmp_path / "to-upload") == (FIRST, LAST)

    def test_a_restricted_study_counts_where_its_name_is_not_published(self, trained, tmp_path):
        model = trained(replace(FIRST, studies=("/data/HCP",)))
        with pytest.raises(InputError, match="--i-have-the-right-to-share"):
            prepare(model, tmp_path / "to-upload", "lab/sex")

    def test_no_record(self, model_folder, make_store, tmp_path):
        with pytest.warns(UserWarning, match="--dataset"):
            prepare(model_folder, tmp_path / "a", "lab/sex")
        store = make_store(dataset="our-patients").folder
        with pytest.raises(InputError, match="--source-open"):
            prepare(model_folder, tmp_path / "b", "lab/x", Sharing(is_private=False), dataset=store)

    def test_a_dataset_of_the_hub_is_named_in_the_header(self, hub, trained, make_store, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
        send(make_store().folder, "lab/tokens", tmp_path / "tokens", sharing=Sharing(is_private=False))
        prepare(trained(FIRST, LAST), tmp_path / "to-upload", "lab/sex", dataset="lab/tokens")
        assert ModelCard.load(tmp_path / "to-upload" / "README.md").data.datasets == ["lab/tokens"]


class TestTokens:
    def test_restricted_tokens_are_gated_before_anything_is_in_the_repository(self, hub, make_store, tmp_path):
        store = make_store(True).folder
        send(store, "lab/hcp", tmp_path / "a", sharing=Sharing(right_to_share=RIGHT))
        repository = hub.repositories["datasets", "lab/hcp"]
        assert (repository.is_private, repository.gated) == (True, "manual")
        order = [line for line in hub.requests if "/settings" in line or "/commit/main" in line]
        assert ["/settings" in line for line in order] == [True, False]
        assert RIGHT in hub.files("lab/hcp", "datasets")["README.md"].decode()


class TestRepositories:
    def test_an_existing_one_is_updated(self, hub, model_folder, tmp_path):
        first = send(model_folder, "lab/sex", tmp_path / "a")
        HfApi(hub.endpoint, LAB).upload_file(path_or_fileobj=b"{}", path_in_repo="old.json", repo_id="lab/sex")
        with pytest.warns(UserWarning, match=r"deleted .*old\.json"):
            second = send(model_folder, "lab/sex", tmp_path / "b", how={"tag": "v2", "message": "Again"})
        assert "old.json" not in hub.files("lab/sex")
        repository = hub.repositories["models", "lab/sex"]
        assert [each.title for each in repository.history(second.oid)][0::2] == ["Again", "Model by tablet-hf"]
        assert (repository.tags["v2"], repository.branches["main"]) == (second.oid, second.oid)
        assert first.oid != second.oid
        with pytest.raises(InputError, match="v2"):
            send(model_folder, "lab/sex", tmp_path / "c", how={"tag": "v2"})

    def test_branches(self, hub, model_folder, tmp_path):
        send(model_folder, "lab/sex", tmp_path / "a")
        before = hub.files("lab/sex")
        send(model_folder, "lab/sex", tmp_path / "b", sharing=Sharing(license="mit"), how={"revision": "tries/1"})
        assert hub.files("lab/sex") == before
        assert b"license: mit" in hub.files("lab/sex", revision="tries/1")["README.md"]

    def test_a_public_one_does_not_get_what_is_private(self, hub, make_store, tmp_path):
        HfApi(hub.endpoint, LAB).create_repo("lab/hcp", repo_type="dataset", private=False)
        with pytest.raises(InputError, match="public"):
            send(make_store().folder, "lab/hcp", tmp_path / "b")
        assert set(hub.files("lab/hcp", "datasets")) == {".gitattributes"}


class TestAccessTokens:
    @pytest.mark.parametrize(
        ("token", "repo", "word"),
        [
            (None, "lab/tokens", "hf auth login"),
            ("hf_wrong" + "w" * 29, "lab/tokens", "hf auth login"),
            (READER, "lab/tokens", "reading"),
            (OTHER, "lab/tokens", "other or clinic"),
        ],
    )
    def test_it_is_checked_before_anything_is_prepared(self, hub, make_store, tmp_path, token, repo, word):
        hub.organisations = {"other": ["clinic"]}
        store = make_store(folder=tmp_path / "store")
        printed = run(store.folder, repo, token=token, exit_code=2)
        assert word in printed
        assert not token or token not in printed
        assert not (tmp_path / "store.salt").exists(), "it was prepared"
        assert [line.split()[1] for line in hub.requests] == ["/api/whoami-v2"] * (token is not None)
        check_may_write("Clinic/tokens", OTHER)

    @pytest.mark.parametrize("token", [OTHER, READER, None, "hf_wrong" + "w" * 29])
    def test_one_that_may_not_write(self, hub, model_folder, tmp_path, token):
        prepared = prepare(model_folder, tmp_path / "to-upload", "lab/sex")
        for _ in ("new", "existing"):
            with pytest.raises(InputError, match=r"^lab/sex: .*hf auth login") as caught:
                publish(prepared, "lab/sex", token=token)
            assert token is None or token not in str(caught.value)
            publish(prepared, "lab/sex", token=LAB)

    def test_it_is_not_published_as_text(self, hub, model_folder, tmp_path):
        for option in ("--message", "--tag", "--revision", "--i-have-the-right-to-share"):
            assert LAB not in run(model_folder, "lab/sex", option, f"it is my {LAB}", exit_code=2)
        assert "models" not in {kind for kind, _ in hub.repositories}

    @pytest.mark.parametrize("load", [TokenDataset.load, load_model, lambda name: fetch(name, "config.json")])
    @pytest.mark.parametrize(("token", "is_gated"), [(None, False), ("hf_wrong", False), (OTHER, True)])
    def test_loading_what_it_may_not_read(self, hub, monkeypatch, load, token, is_gated):
        api = HfApi(hub.endpoint, LAB)
        for kind in ("model", "dataset"):
            api.create_repo("lab/hidden", repo_type=kind, private=not is_gated)
            api.upload_file(path_or_fileobj=b"{}", path_in_repo="store.json", repo_id="lab/hidden", repo_type=kind)
            if is_gated:
                api.update_repo_settings("lab/hidden", repo_type=kind, gated="manual")
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(InputError, match=r"^lab/hidden: .*hf auth login") as caught:
            load("lab/hidden")
        assert "hf_" not in str(caught.value)


class TestWhatBreaks:
    @pytest.mark.parametrize("at", ["PUT /large-files", "POST .*/preupload", "POST .*/commit"])
    def test_nothing_is_visible_before_the_commit_and_the_second_try_completes(
        self, hub, model_folder, tmp_path, quick, at
    ):
        send(model_folder, "lab/sex", tmp_path / "first")
        before = hub.files("lab/sex")
        shutil.copytree(model_folder, tmp_path / "model")
        model = TabletForSequenceClassification.from_pretrained(tmp_path / "model")
        torch.nn.init.ones_(model.classifier.bias)
        model.save_pretrained(tmp_path / "model")
        hub.break_at(at, 20)
        with pytest.raises(InputError, match="connection"):
            send(tmp_path / "model", "lab/sex", tmp_path / "second")
        assert hub.files("lab/sex") == before
        hub.start()
        send(tmp_path / "model", "lab/sex", tmp_path / "third")
        assert hub.files("lab/sex")["model.safetensors"] == (tmp_path / "model" / "model.safetensors").read_bytes()

    def test_large_files_that_arrived_are_not_uploaded_again(self, hub, make_store, tmp_path, quick):
        store = make_store()
        hub.break_at("POST .*/commit")
        with pytest.raises(InputError, match="connection"):
            send(store.folder, "lab/tokens", tmp_path / "a")
        arrived = list(hub.uploads)
        assert len(arrived) == 2
        hub.start()
        send(store.folder, "lab/tokens", tmp_path / "b")
        assert hub.uploads == arrived

    def test_no_hub_and_offline(self, hub, model_folder, tmp_path, quick, monkeypatch):
        prepared = prepare(model_folder, tmp_path / "to-upload", "lab/sex")
        hub.stop()
        with pytest.raises(InputError, match="connection"):
            publish(prepared, "lab/sex", token=LAB)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
            publish(prepared, "lab/sex", token=LAB)

    def test_a_tag_that_was_not_set(self, hub, model_folder, tmp_path, quick):
        prepared = prepare(model_folder, tmp_path / "to-upload", "lab/sex")
        hub.break_at("POST .*/tag/")
        with pytest.raises(InputError, match="tag v1"):
            publish(prepared, "lab/sex", tag="v1", token=LAB)
        hub.start()
        again = publish(prepared, "lab/sex", tag="v1", token=LAB)
        assert hub.repositories["models", "lab/sex"].tags == {"v1": again.oid}


class TestCommand:
    def test_a_dry_run_writes_what_would_be_uploaded(self, hub, make_store, tmp_path):
        store = make_store(is_restricted=True, dataset="HCP-YA").folder
        words = (store, "lab/hcp", "--dry-run", tmp_path / "dry")
        assert "--i-have-the-right-to-share" in run(*words, exit_code=2)
        assert "hospital-7.salt" in run(*words, "--i-have-the-right-to-share", RIGHT)
        files = {path.relative_to(tmp_path / "dry").as_posix() for path in (tmp_path / "dry").rglob("*.*")}
        table = {"README.md", "store.json", "runs.parquet", "data/train-00000-of-00001.parquet"}
        assert files == table | {"splits/splits-1.csv", "splits/splits-1.json"}
        assert hub.requests == []

    def test_uploading(self, hub, model_folder, make_store):
        printed = run(model_folder, "lab/sex", "--dataset", make_store().folder, "--public", "--license", "apache-2.0")
        assert printed.count(f"{hub.endpoint}/lab/sex") == 1
        assert "trainer_state.json, training_args.bin" in printed
        assert not hub.repositories["models", "lab/sex"].is_private
        assert "--source-open" in run(model_folder, "lab/x", "--public", exit_code=2)
        run(model_folder, "lab/x", "--public", "--source-open")


EXAMPLES = Path(__file__).parents[2] / "examples"
CLIENT = """
import json, runpy, sys, warnings
warnings.filterwarnings("ignore")
import datasets, torch, tablet_hf
from transformers import AutoFeatureExtractor, AutoModelForSequenceClassification
from tablet_hf.datasets import StreamedWindows, TokenDataset
model = AutoModelForSequenceClassification.from_pretrained("lab/sex", revision="v1").eval()
torch.manual_seed(1)
logits = model(torch.randn(1, 4, 27, 3072)).logits.tolist()
tablet_hf.TabletFeatureExtractor("lab/autoencoder").slice_autoencoder
store = TokenDataset.load("lab/tokens")
streamed = list(StreamedWindows("lab/tokens", 99, is_training=False))
found = {"logits": logits, "signal": AutoFeatureExtractor.from_pretrained("lab/sex").signal}
found["rows"] = sum(1 for _ in datasets.load_dataset("lab/tokens", split="train", streaming=True))
found["streamed"] = sorted(float(each["input_values"].double().sum()) for each in streamed)
found["loaded"] = sorted(float(store.window(run.key).double().sum()) for run in store.runs)
example, sys.argv = sys.argv[1], ["load_from_hub.py", "lab/sex", "--dataset", "lab/tokens", "--revision", "v1"]
runpy.run_path(example, run_name="__main__")
print(json.dumps(found))
"""


@pytest.mark.slow
def test_what_was_published_comes_back_by_its_name(
    hub, model_folder, make_store, shipped_autoencoder, tmp_path, monkeypatch, capsys
):
    """Private repositories, from another process, through transformers, diffusers and datasets; and the examples."""
    store = make_store(is_restricted=True, dataset="HCP-YA", token_size=3072)
    with monkeypatch.context() as patch:
        patch.setenv("HF_TOKEN", LAB)
        patch.setattr(sys, "argv", ["push_checkpoint.py", str(model_folder), "lab/sex", "--tag", "v1"])
        runpy.run_path(str(EXAMPLES / "push_checkpoint.py"), run_name="__main__")
    assert capsys.readouterr().out.endswith(f"{hub.endpoint}/lab/sex\n")
    send(shipped_autoencoder, "lab/autoencoder", tmp_path / "b")
    send(store.folder, "lab/tokens", tmp_path / "c", sharing=Sharing(right_to_share=RIGHT))
    environment = os.environ | hub.environment(tmp_path / "home") | {"HF_TOKEN": LAB}
    command = [sys.executable, "-c", CLIENT, str(EXAMPLES / "load_from_hub.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    *lines, last = done.stdout.splitlines()
    found = json.loads(last)
    torch.manual_seed(1)
    model = TabletForSequenceClassification.from_pretrained(model_folder).eval()
    torch.testing.assert_close(torch.tensor(found["logits"]), model(torch.randn(1, 4, 27, 3072)).logits)
    sums = sorted(float(store.window(run.key).double().sum()) for run in store.runs)
    assert found["loaded"] == found["streamed"] == sums
    assert (found["rows"], found["signal"]) == (30, "intensity")
    assert lines[0] == "lab/sex: sex, M"
    assert [line.split("/")[0] for line in lines[1:]] == ["HCP-YA"] * 6


class TestCallback:
    @pytest.fixture
    def trainer(self, hub, make_store, tmp_path, monkeypatch):
        """A function that makes a trainer of the library with the callback."""
        from transformers import Trainer, TrainingArguments

        monkeypatch.setenv("HF_TOKEN", LAB)

        def make(windows=None, sharing=None, start="", **settings):
            sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
            made = {"signal": "intensity", "token_size": 96, "num_labels": 1}
            config = TabletConfig(**sizes, **made, intermediate_size=8, problem_type="regression", target_name="age")
            settings |= {"num_train_epochs": 2, "use_cpu": True, "report_to": [], "remove_unused_columns": False}
            arguments = TrainingArguments(str(tmp_path / "out"), save_strategy="epoch", **settings)
            model = TabletForMaskedTokenModeling(config) if windows else TabletForSequenceClassification(config)
            model.name_or_path = start  # as from_pretrained has it
            collator = TabletCollator(None if windows else "regression")
            windows = windows or TrainingWindows(make_store(is_restricted=sharing is not None), 4, None, "age")
            publishing = PublishCallback(windows, None, "lab/age", sharing)
            return Trainer(model, arguments, collator, windows, callbacks=[publishing])

        return make

    def test_checkpoints_are_published_while_it_trains(self, hub, trainer, tmp_path):
        trainer().train()
        repository = hub.repositories["models", "lab/age"]
        history = repository.history(repository.branches["main"])
        assert [each.title for each in history[:-1]] == [f"Training in progress, step {step}" for step in (2, 1)]
        files = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "training_data.json"}
        assert all(set(commit.files) == files | {".gitattributes"} for commit in history[:-1])
        assert len({commit.files["model.safetensors"] for commit in history[:-1]}) == 2
        assert "subjects: 6, runs: 6, frames: 30, starting from new weights" in history[0].files["README.md"].decode()
        (stage,) = TrainingData.read(tmp_path / "out")
        assert json.loads(history[0].files["training_data.json"]) == {"stages": [json.loads(json.dumps(asdict(stage)))]}
        assert repository.is_private
        received = everything_received(hub)
        assert not [secret for secret in [*PLANTED, str(tmp_path), LAB] if secret in received]

    def test_a_hub_that_dies_does_not_stop_the_training(self, hub, trainer, quick):
        training = trainer()
        hub.break_at("PUT /large-files", 10)
        with pytest.warns(UserWarning, match="lab/age"):
            training.train()
        assert training.state.global_step == 2

    def test_restricted_training_data_need_a_right_before_it_trains(self, hub, trainer, trained, tmp_path):
        first = TrainingData("sex", ("UKB",), 3, 0, 3, 9, True)
        source = trained(first)
        send(source, "lab/first", tmp_path / "sent", sharing=Sharing(False, False, right_to_share=RIGHT))
        with pytest.raises(InputError, match="--i-have-the-right-to-share"):
            trainer(sharing=Sharing()).train()
        training = trainer()
        training.args.push_to_hub = True  # the library would ask for a repository if it were an argument
        with pytest.raises(InputError, match="push_to_hub"):
            training.train()
        assert not list((tmp_path / "out").glob("checkpoint-*"))
        for start in (str(source), "lab/first"):
            with pytest.raises(InputError, match="--i-have-the-right-to-share"):
                trainer(start=start).train()
            trainer(start=start, sharing=Sharing(right_to_share=RIGHT)).train()
            before, this = TrainingData.read(tmp_path / "out")
            assert (before, this.started_from) == (first, "lab/first" if start == "lab/first" else "model")
            shutil.rmtree(tmp_path / "out")

    def test_streamed_windows(self, hub, trainer, make_store, tmp_path):
        store = make_store(is_restricted=True, dataset="HCP-YA").folder
        prepare(store, tmp_path / "tokens", "lab/tokens", Sharing(right_to_share=RIGHT), phenotypes=["age"])
        windows = StreamedWindows(tmp_path / "tokens", 4)
        trainer(windows, Sharing(right_to_share=RIGHT), max_steps=1, save_steps=1).train()
        (this,) = TrainingData.read(tmp_path / "out")
        assert (this.studies, this.num_subjects, this.is_restricted) == (("HCP-YA",), 6, True)
        assert "model.safetensors" in hub.files("lab/age")
