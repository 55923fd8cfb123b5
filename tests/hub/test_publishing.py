"""`tablet-hf push` and what stands behind it, over real HTTP: round trips, tokens, what breaks, what never leaves."""

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
from huggingface_hub import HfApi
from planted import LAB, OTHER, PLANTED, READER, SUBJECTS
from typer.testing import CliRunner

from tablet_hf import TabletForSequenceClassification
from tablet_hf.cli.__main__ import app
from tablet_hf.datasets import StreamedWindows
from tablet_hf.errors import InputError
from tablet_hf.files import saved_weights_checksum
from tablet_hf.hub.cards import check_card
from tablet_hf.hub.publishing import Sharing, check_may_write, check_repo, kind_of, prepare, publish
from tablet_hf.hub.training_data import UNNAMED, TrainingData

RIGHT = "Our agreement with the consortium names this project"


def run(*words, token=None):
    return CliRunner().invoke(app, ["push", *map(str, words)], env={"HF_TOKEN": token or ""})


def told(ended):
    """What a command said, in one line."""
    return " ".join((ended.stdout + ended.stderr).split())


@pytest.fixture
def quick(monkeypatch):
    """Clients that try again do so at once."""
    monkeypatch.setattr(time, "sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.01)))


def send(hub, path, repo, out, token=LAB, sharing=None, options=None, **how):
    prepared = prepare(path, out, repo, sharing, token=token, **(options or {}))
    return publish(prepared, repo, token=token, endpoint=hub.endpoint, **how)


class TestKinds:
    def test_they_are_found(self, model_folder, make_store, shipped_autoencoder, tmp_path):
        store = make_store()
        prepare(store.folder, tmp_path / "export", "lab/x")
        folders = {model_folder: "model", store.folder: "store", shipped_autoencoder: "autoencoder"}
        for folder, kind in (folders | {tmp_path / "export": "export"}).items():
            assert kind_of(folder) == kind

    def test_others_are_told(self, tmp_path, model_folder):
        for content, said in [
            ({"input_feature_size": 3072}, "convert it first"),
            ({"model_type": "bert"}, "is of a 'bert', so it is not of a TABLeT"),
            ({}, "names no model_type, so it is not of a TABLeT"),
        ]:
            (tmp_path / "config.json").write_text(json.dumps(content))
            with pytest.raises(InputError, match=said):
                kind_of(tmp_path)
        (tmp_path / "config.json").unlink()
        shutil.copytree(model_folder, tmp_path / "fold-1" / "model")
        with pytest.raises(InputError, match=r"holds neither .*fold-1/model holds one"):
            kind_of(tmp_path)
        with pytest.raises(InputError, match="there is no such folder"):
            kind_of(tmp_path / "nothing")

    def test_pickled_weights_are_not_sent(self, tmp_path, model_folder):
        shutil.copytree(model_folder, tmp_path / "model")
        (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
        with pytest.raises(InputError, match="weights are sent as safetensors alone"):
            prepare(tmp_path / "model", tmp_path / "sent", "lab/x")
        assert not (tmp_path / "sent").exists()

    def test_weights_outside_of_the_folder_are_not_sent(self, tmp_path, model_folder):
        shutil.copytree(model_folder, tmp_path / "model")
        index = {"metadata": {"total_size": 1}, "weight_map": {"x": "../secret.safetensors"}}
        (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(InputError, match="names files outside of its folder"):
            prepare(tmp_path / "model", tmp_path / "sent", "lab/x")

    @pytest.mark.parametrize(
        "repo", ["sex", "../x/y", "lab/../../etc", "lab/x/y", "lab/.x", "lab/a b", "", "https://a/b"]
    )
    def test_names_that_no_repository_has(self, repo):
        with pytest.raises(InputError, match="are called owner/name"):
            check_repo(repo)

    def test_options_of_another_kind(self, tmp_path, model_folder, make_store):
        with pytest.raises(InputError, match="--phenotypes belongs to token datasets"):
            prepare(model_folder, tmp_path / "sent", "lab/x", phenotypes=["age"])
        with pytest.raises(InputError, match="--with-code belongs to models"):
            prepare(make_store().folder, tmp_path / "sent", "lab/x", with_code=True)


class TestModels:
    def test_only_what_others_need_is_sent(self, hub, model_folder, tmp_path):
        published = send(hub, model_folder, "lab/sex", tmp_path / "sent")
        assert published.url == f"{hub.endpoint}/lab/sex"
        assert not published.was_there
        files = hub.files("lab/sex")
        names = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
        assert set(files) == names | {".gitattributes"}
        assert files["model.safetensors"] == (model_folder / "model.safetensors").read_bytes()
        assert hub.repositories["models", "lab/sex"].is_private
        assert "loads" not in files["README.md"].decode()

    def test_what_stands_in_a_config_and_is_none_of_it_stays_behind(self, model_folder, tmp_path):
        shutil.copytree(model_folder, tmp_path / "model")
        for name in ("config.json", "preprocessor_config.json"):
            settings = json.loads((tmp_path / "model" / name).read_text())
            settings |= {
                "_name_or_path": str(tmp_path / "hospital-7"),
                "autoencoder": str(tmp_path / "own"),
                "made by": "MRN-4711",
            }
            (tmp_path / "model" / name).write_text(json.dumps(settings))
        prepared = prepare(tmp_path / "model", tmp_path / "sent", "lab/x")
        text = "".join(
            (tmp_path / "sent" / name).read_text() for name in prepared.files if name.endswith(("json", "md"))
        )
        assert str(tmp_path) not in text
        assert not [secret for secret in PLANTED if secret in text]
        assert any("push the autoencoder too" in note for note in prepared.notes)
        assert prepared.left_behind == ("trainer_state.json", "training_args.bin")

    def test_its_code_goes_along_where_it_is_asked_for(self, model_folder, tmp_path):
        prepared = prepare(model_folder, tmp_path / "sent", "lab/sex", with_code=True)
        assert {"modeling_tablet.py", "configuration_tablet.py"} <= set(prepared.files)
        assert "auto_map" in json.loads((tmp_path / "sent" / "config.json").read_text())
        assert "trust_remote_code=True" in (tmp_path / "sent" / "README.md").read_text()
        plain = prepare(tmp_path / "sent", tmp_path / "again", "lab/sex")
        assert not [name for name in plain.files if name.endswith(".py")]
        assert "auto_map" not in json.loads((tmp_path / "again" / "config.json").read_text())

    def test_people_of_its_store_are_looked_for_in_it(self, model_folder, make_store, tmp_path):
        shutil.copytree(model_folder, tmp_path / "model")
        config = json.loads((tmp_path / "model" / "config.json").read_text()) | {"target_name": f"sub-{SUBJECTS[1]}"}
        (tmp_path / "model" / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match=r"nothing was sent.*config.json: target_name holds the name of a subject"):
            prepare(tmp_path / "model", tmp_path / "sent", "lab/x", dataset=make_store().folder)
        assert not (tmp_path / "sent").exists()

    def test_a_model_of_restricted_data(self, hub, model_folder, make_store, tmp_path):
        options = {"dataset": make_store(is_restricted=True, dataset="HCP-YA").folder}
        with pytest.raises(InputError, match="--i-have-the-right-to-share"):
            send(hub, model_folder, "lab/sex", tmp_path / "sent", options=options)
        send(hub, model_folder, "lab/sex", tmp_path / "sent", sharing=Sharing(right_to_share=RIGHT), options=options)
        repository = hub.repositories["models", "lab/sex"]
        assert (repository.is_private, repository.gated) == (True, "manual")
        card = hub.files("lab/sex")["README.md"].decode()
        assert RIGHT in card
        assert "Human Connectome Project" in card
        assert "6 people, 6 runs and 30 frames" in card


class TestWhatItLearntFrom:
    """A record beside the weights, which goes along; one training of restricted data makes a model restricted."""

    FIRST = TrainingData("masked token modeling", ("ADHD-200",), 112, 12, 130, 20_190_304, False)
    LAST = TrainingData("sex", ("ADHD-200",), 40, 5, 41, 5_000, False, "pretrained")

    def model(self, model_folder, folder, *stages):
        shutil.copytree(model_folder, folder, copy_function=os.link, dirs_exist_ok=True)
        TrainingData.write(folder, stages)
        return folder

    @pytest.mark.parametrize("restricted", ["marked", "by its name"])
    @pytest.mark.parametrize("which", [0, 1])
    @pytest.mark.parametrize("how", [{}, {"dataset": "an open store"}])
    def test_of_restricted_data_in_any_training(self, model_folder, make_store, tmp_path, restricted, which, how):
        stages = [self.FIRST, self.LAST]
        told = {"is_restricted": True} if restricted == "marked" else {"studies": ("HCP-YA",)}
        stages[which] = replace(stages[which], **told)
        model = self.model(model_folder, tmp_path / "model", *stages)
        how = {"dataset": make_store().folder} if how else {}
        for sharing in (Sharing(), Sharing(is_private=False)):
            with pytest.raises(InputError, match="--i-have-the-right-to-share"):
                prepare(model, tmp_path / "sent", "lab/sex", sharing, **how)
        if restricted == "marked":
            with pytest.raises(InputError, match="--source-open does not change that"):
                prepare(model, tmp_path / "sent", "lab/sex", Sharing(is_restricted=False), **how)
        prepared = prepare(model, tmp_path / "sent", "lab/sex", Sharing(right_to_share=RIGHT), **how)
        assert (prepared.sharing.is_restricted, prepared.sharing.is_gated) == (True, True)

    def test_of_open_data_it_may_be_public(self, model_folder, tmp_path):
        model = self.model(model_folder, tmp_path / "model", self.FIRST, self.LAST)
        prepared = prepare(model, tmp_path / "sent", "lab/sex", Sharing(is_private=False))
        assert prepared.sharing.is_restricted is False
        assert TrainingData.read(tmp_path / "sent") == (self.FIRST, self.LAST)

    @pytest.mark.parametrize(
        "first", [{"studies": ()}, {"studies": ("ADHD-200", UNNAMED)}, {"started_from": "beotborry/TABLeT_pretrained"}]
    )
    def test_where_something_is_not_known_it_is_public_only_if_that_is_asked_for(
        self, model_folder, make_store, tmp_path, first
    ):
        model = self.model(model_folder, tmp_path / "model", replace(self.FIRST, **first), self.LAST)
        for how in ({}, {"dataset": make_store().folder}):
            with pytest.raises(InputError, match=r"not recorded whether the terms.*say --source-open"):
                prepare(model, tmp_path / "sent", "lab/sex", Sharing(is_private=False), **how)
        prepare(model, tmp_path / "sent", "lab/sex", Sharing(is_private=False, is_restricted=False))

    def test_the_card_says_it_training_by_training(self, model_folder, tmp_path):
        model = self.model(model_folder, tmp_path / "model", replace(self.FIRST, started_from="lab/first"), self.LAST)
        prepare(model, tmp_path / "sent", "lab/sex")
        card = (tmp_path / "sent" / "README.md").read_text()
        assert "1. masked token modeling: [ADHD-200]" in card
        assert "112 people, 130 runs and 20,190,304 frames, starting from `lab/first`; 12 other people decided" in card
        assert "40 people, 41 runs and 5,000 frames, starting from `pretrained`; 5 other people decided" in card
        assert "What `lab/first` had learnt from before: not recorded." in card
        assert check_card(card)["base_model"] == "lab/first"

    def test_a_dataset_of_the_hub_stands_in_the_header(self, hub, model_folder, make_store, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
        send(hub, make_store().folder, "lab/tokens", tmp_path / "tokens", sharing=Sharing(is_private=False))
        model = self.model(model_folder, tmp_path / "model", self.FIRST, self.LAST)
        prepare(model, tmp_path / "sent", "lab/sex", dataset="lab/tokens")
        assert check_card((tmp_path / "sent" / "README.md").read_text())["datasets"] == ["lab/tokens"]

    def test_nothing_else_of_the_record_goes_along(self, model_folder, tmp_path):
        model = self.model(model_folder, tmp_path / "model", replace(self.FIRST, started_from="/hospital-7/a/model"))
        record = json.loads((model / "training_data.json").read_text())
        record["stages"][0]["people by name"] = SUBJECTS
        (model / "training_data.json").write_text(json.dumps(record | {"made by": "hospital-7"}))
        prepare(model, tmp_path / "sent", "lab/sex")
        sent = json.loads((tmp_path / "sent" / "training_data.json").read_text())
        assert sent == {"stages": [json.loads(json.dumps(asdict(replace(self.FIRST, started_from="model"))))]}

    @pytest.mark.parametrize("content", ["{", "[]", '{"stages": [{}]}', '{"stages": [1]}', "people"])
    def test_a_record_that_cannot_be_read(self, model_folder, tmp_path, content):
        model = self.model(model_folder, tmp_path / "model", self.FIRST)
        if content == "people":
            content = (model / "training_data.json").read_text().replace("112", '"Ann"')
        (model / "training_data.json").write_text(content)
        with pytest.raises(InputError, match=r"training_data.json: it does not say what a model learnt from"):
            prepare(model, tmp_path / "sent", "lab/sex")


class TestWhatWasLookedThrough:
    """It is what is sent."""

    @pytest.mark.parametrize("how", ["source", "changed", "added", "taken away", "replaced by a link"])
    def test_what_changed_since_is_not_sent(self, hub, model_folder, tmp_path, how):
        source, out = tmp_path / "model", tmp_path / "sent"
        shutil.copytree(model_folder, source)
        prepared = prepare(source, out, "lab/sex")
        if how == "source":  # of which weights are the same file
            with (source / "model.safetensors").open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"7")
        if how == "changed":
            (out / "README.md").write_text(SUBJECTS[0])
        if how == "added":
            (out / "data").mkdir()
            (out / "data" / ".DS_Store").write_text(SUBJECTS[0])
        if how == "taken away":
            (out / "README.md").unlink()
        if how == "replaced by a link":
            (out / "README.md").unlink()
            (out / "README.md").symlink_to(model_folder / "trainer_state.json")
        with pytest.raises(
            InputError, match=r"sent/.*it is not as it was when it was looked through.*prepare it again"
        ):
            publish(prepared, "lab/sex", token=LAB, endpoint=hub.endpoint)
        assert hub.requests == []

    def test_large_files_go_by_the_checksum_of_what_was_looked_through(self, hub, model_folder, tmp_path):
        prepared = prepare(model_folder, tmp_path / "sent", "lab/sex")
        publish(prepared, "lab/sex", token=LAB, endpoint=hub.endpoint)
        assert list(hub.large_files) == [prepared.checksums["model.safetensors"]]


class TestStudiesOfUnknownTerms:
    """A table of scans may be of anybody's."""

    def test_their_tokens_are_public_only_where_somebody_says_that_they_are_open(self, make_store, tmp_path):
        for dataset in (None, "our-patients"):
            store = make_store(dataset=dataset).folder
            for number, right in enumerate((None, RIGHT)):
                with pytest.raises(InputError, match=r"not recorded whether the terms.*say --source-open") as caught:
                    prepare(store, tmp_path / "sent", "lab/x", Sharing(is_private=False, right_to_share=right))
                assert "--dataset" not in str(caught.value), number
            assert prepare(store, tmp_path / f"{dataset}", "lab/x").sharing.is_restricted is None
            prepare(store, tmp_path / f"open {dataset}", "lab/x", Sharing(is_private=False, is_restricted=False))
        prepare(make_store().folder, tmp_path / "adhd", "lab/x", Sharing(is_private=False))

    def test_models_of_them_too(self, model_folder, make_store, tmp_path):
        store = make_store(dataset="our-patients").folder
        with pytest.raises(InputError, match=r"not recorded whether the terms"):
            prepare(model_folder, tmp_path / "sent", "lab/x", Sharing(is_private=False), dataset=store)


def test_how_many_people_are_told_by_what_is_sent_of_them(make_store, tmp_path):
    store = make_store().folder
    prepared = prepare(store, tmp_path / "all", "lab/x")
    assert prepared.notes[0].startswith(
        "Of phenotypes go along: age (in whole years, 90 from 90 on), sex, dx, families;"
    )
    alone = "6 of 6 people are the only ones with this site, age, dx, sex"
    assert any(note.startswith(alone) for note in prepared.notes)
    assert alone in (tmp_path / "all" / "README.md").read_text()
    few = prepare(store, tmp_path / "few", "lab/x", phenotypes=["sex"])
    assert "the only ones" not in " ".join(few.notes) + (tmp_path / "few" / "README.md").read_text()


class TestRepositories:
    def test_one_that_is_there_is_updated(self, hub, model_folder, tmp_path):
        first = send(hub, model_folder, "lab/sex", tmp_path / "a")
        HfApi(hub.endpoint, LAB).upload_file(path_or_fileobj=b"{}", path_in_repo="old.json", repo_id="lab/sex")
        second = send(hub, model_folder, "lab/sex", tmp_path / "b", tag="v2", message="Again")
        assert second.was_there
        assert "was there already" in second.notes[0]
        assert "Deleted there, since nothing of these names is sent: old.json; its history keeps them." in second.notes
        assert "old.json" not in hub.files("lab/sex")
        repository = hub.repositories["models", "lab/sex"]
        assert [each.title for each in repository.history(second.commit)][0::2] == ["Again", "Model by tablet-hf"]
        assert (repository.tags["v2"], repository.branches["main"]) == (second.commit, second.commit)
        assert first.commit != second.commit
        with pytest.raises(InputError, match="has a tag v2 already"):
            send(hub, model_folder, "lab/sex", tmp_path / "c", tag="v2")

    @pytest.mark.parametrize(
        ("option", "words"), [("message", f"of {SUBJECTS[0]}"), ("tag", SUBJECTS[1]), ("revision", "2019-03-04")]
    )
    def test_words_that_tell_of_people(self, hub, model_folder, make_store, tmp_path, option, words):
        options = {"dataset": make_store().folder}
        with pytest.raises(InputError, match=f"^--{option}: it holds (the name of a subject|a date)"):
            send(hub, model_folder, "lab/sex", tmp_path / "a", options=options, **{option: words})
        assert hub.requests == []

    def test_branches(self, hub, model_folder, tmp_path):
        send(hub, model_folder, "lab/sex", tmp_path / "a")
        before = hub.files("lab/sex")
        send(hub, model_folder, "lab/sex", tmp_path / "b", sharing=Sharing(license="mit"), revision="tries/1")
        assert hub.files("lab/sex") == before
        assert b"license: mit" in hub.files("lab/sex", revision="tries/1")["README.md"]

    def test_what_everybody_sees_does_not_get_what_is_private(self, hub, model_folder, make_store, tmp_path):
        api = HfApi(hub.endpoint, LAB)
        api.create_repo("lab/sex", private=False)
        with pytest.raises(InputError, match="everybody can see it; say --public"):
            send(hub, model_folder, "lab/sex", tmp_path / "a")
        api.create_repo("lab/hcp", repo_type="dataset", private=False)
        with pytest.raises(InputError, match="which restricted data must not be"):
            send(hub, make_store(True).folder, "lab/hcp", tmp_path / "b", sharing=Sharing(right_to_share=RIGHT))
        assert set(hub.files("lab/sex")) == set(hub.files("lab/hcp", "datasets")) == {".gitattributes"}

    def test_restricted_tokens_are_gated_before_anything_is_in_it(self, hub, make_store, tmp_path):
        send(hub, make_store(True).folder, "lab/hcp", tmp_path / "a", sharing=Sharing(right_to_share=RIGHT))
        repository = hub.repositories["datasets", "lab/hcp"]
        assert (repository.is_private, repository.gated) == (True, "manual")
        order = [place for place, line in enumerate(hub.requests) if "/settings" in line or "/commit/main" in line]
        assert ["/settings" in hub.requests[place] for place in order] == [True, False]
        assert not leaks_received(hub)


def leaks_received(hub):
    """What of the source's secrets stands in anything that the Hub received, Parquet unpacked."""
    import io

    texts = [body.decode("latin-1") for body in hub.received]
    for body in hub.large_files.values():
        if body[:4] == b"PAR1":
            table = pq.read_table(io.BytesIO(body))
            names = [name for name in table.column_names if name != "tokens"]
            texts.append(json.dumps(table.select(names).to_pylist(), default=str))
    # Regular files travel in base64.
    for repository in hub.repositories.values():
        texts += [
            content.decode("latin-1") for commit in repository.commits.values() for content in commit.files.values()
        ]
    return [secret for secret in PLANTED for text in texts if secret in text]


class TestTokens:
    @pytest.mark.parametrize("token", [None, "hf_wrong" + "w" * 29])
    def test_none_or_a_wrong_one(self, hub, model_folder, tmp_path, token):
        why = "the Hub wants an access token, and none is here" if token is None else "does not know the access token"
        for way in (lambda: send(hub, model_folder, "lab/sex", tmp_path / "a", token=token),
                    lambda: check_may_write("lab/sex", token, hub.endpoint)):  # fmt: skip
            with pytest.raises(InputError, match=rf"^lab/sex: .*{why}.*hf auth login") as caught:
                way()
            assert token is None or token not in str(caught.value)

    @pytest.mark.parametrize(
        ("token", "repo", "said"),
        [
            (None, "lab/tokens", "none is here; log in"),
            ("hf_wrong" + "w" * 29, "lab/tokens", "does not know the access token"),
            (READER, "lab/tokens", "it is one for reading"),
            (OTHER, "lab/tokens", "it is that of other; choose a name of other, or of clinic."),
        ],
    )
    def test_it_is_asked_for_before_anything_is_prepared(self, hub, make_store, tmp_path, token, repo, said):
        hub.organisations = {"other": ["clinic"]}
        store = make_store(folder=tmp_path / "store")
        ended = run(store.folder, repo, token=token)
        assert ended.exit_code == 2
        assert said in told(ended)
        assert not (tmp_path / "store.salt").exists(), "it was prepared"
        assert [line.split()[1] for line in hub.requests] == ["/api/whoami-v2"] * (token is not None)

    def test_organisations_are_names_of_their_members(self, hub):
        hub.organisations = {"other": ["clinic"]}
        check_may_write("Clinic/tokens", OTHER, hub.endpoint)

    @pytest.mark.parametrize("token", [OTHER, READER])
    def test_one_that_may_not_write_there(self, hub, model_folder, tmp_path, token):
        with pytest.raises(InputError, match="your access token may not write there"):
            send(hub, model_folder, "lab/sex", tmp_path / "a", token=token)
        send(hub, model_folder, "lab/sex", tmp_path / "b")
        with pytest.raises(InputError, match="your access token may not write there"):
            send(hub, model_folder, "lab/sex", tmp_path / "c", token=token)

    def test_it_stands_nowhere(self, hub, model_folder, make_store, tmp_path, caplog):
        """Neither in what is printed or logged, nor in files, nor in what the Hub gets but for one header."""
        caplog.set_level("DEBUG")
        work = tmp_path / "work"
        shutil.copytree(model_folder, work / "model")
        make_store(folder=work / "store")
        said = ""
        for words, token in [
            ((work / "model", "lab/sex", "--tag", "v1"), LAB),
            ((work / "store", "lab/tokens", "--token", LAB), None),
            ((work / "model", "lab/sex", "--dry-run", work / "dry"), LAB),
            ((work / "model", "other/sex"), LAB),
            ((work / "model", "lab/again", "--message", f"by {LAB}"), LAB),
            ((work / "model", "lab/again", "--i-have-the-right-to-share", f"it is my {LAB}"), LAB),
        ]:
            ended = run(*words, token=token)
            said += ended.stdout + ended.stderr
            assert ended.exit_code == (2 if "again" in words[1] or "other" in words[1] else 0), told(ended)
        assert "lab/again" not in {name for _, name in hub.repositories}
        for text in (said, caplog.text, str(hub.requests)):
            assert LAB not in text
        assert not [body for body in hub.received if LAB.encode() in body]
        for path in (path for path in tmp_path.rglob("*") if path.is_file()):
            assert LAB.encode() not in path.read_bytes(), path


class TestWhatBreaks:
    @pytest.mark.parametrize("at", ["PUT /large-files", "POST .*/preupload", "POST .*/objects/batch", "POST .*/commit"])
    def test_a_server_that_dies_leaves_nothing_corrupt_and_the_second_try_completes(
        self, hub, model_folder, tmp_path, quick, at
    ):
        send(hub, model_folder, "lab/sex", tmp_path / "first")
        before = hub.files("lab/sex")
        shutil.copytree(model_folder, tmp_path / "model")
        model = TabletForSequenceClassification.from_pretrained(tmp_path / "model")
        torch.nn.init.ones_(model.classifier.bias)
        model.save_pretrained(tmp_path / "model")
        hub.break_at(at, 20)
        with pytest.raises(InputError, match=r"the connection to the Hub was lost.*Run the same again") as caught:
            send(hub, tmp_path / "model", "lab/sex", tmp_path / "second")
        assert "\n" not in str(caught.value)
        assert hub.files("lab/sex") == before
        hub.start()
        send(hub, tmp_path / "model", "lab/sex", tmp_path / "third")
        assert hub.files("lab/sex")["model.safetensors"] == (tmp_path / "model" / "model.safetensors").read_bytes()

    def test_files_that_had_arrived_are_not_sent_again(self, hub, make_store, tmp_path, quick):
        store = make_store()
        hub.break_at("POST .*/commit")
        with pytest.raises(InputError, match="connection"):
            send(hub, store.folder, "lab/tokens", tmp_path / "a")
        arrived = list(hub.uploads)
        assert len(arrived) == 2
        hub.start()
        again = send(hub, store.folder, "lab/tokens", tmp_path / "b")
        assert hub.uploads == arrived
        assert not again.was_there
        assert again.notes[0] == "lab/tokens was there already, with nothing in it, and is filled now."

    def test_no_hub_at_all(self, hub, model_folder, tmp_path, quick):
        hub.stop()
        with pytest.raises(InputError, match="the connection to the Hub was lost or not to be had"):
            send(hub, model_folder, "lab/sex", tmp_path / "a")
        hub.start()

    def test_offline(self, hub, model_folder, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
            send(hub, model_folder, "lab/sex", tmp_path / "a")

    def test_a_tag_that_was_not_set(self, hub, model_folder, tmp_path, quick):
        hub.break_at("POST .*/tag/")
        with pytest.raises(
            InputError, match=r"connection.*it was sent, but its tag v1 was not set. Run the same again"
        ):
            send(hub, model_folder, "lab/sex", tmp_path / "a", tag="v1")
        hub.start()
        again = send(hub, model_folder, "lab/sex", tmp_path / "b", tag="v1")
        assert hub.repositories["models", "lab/sex"].tags == {"v1": again.commit}


class TestCommand:
    def test_a_dry_run_writes_what_would_be_sent(self, hub, make_store, tmp_path):
        store = make_store(is_restricted=True, dataset="HCP-YA")
        ended = run(store.folder, "lab/hcp", "--dry-run", tmp_path / "dry", token=LAB)
        assert ended.exit_code == 2
        assert "--i-have-the-right-to-share" in told(ended)
        words = (store.folder, "lab/hcp", "--dry-run", tmp_path / "dry", "--i-have-the-right-to-share", RIGHT)
        assert "leave out --public" in told(run(*words, "--public", token=LAB))
        ended = run(*words, "--phenotypes", "age,sex", "--without", "sex", token=LAB)
        assert ended.exit_code == 0, told(ended)
        assert "Of phenotypes go along: age (in whole years, 90 from 90 on); --phenotypes and --without" in told(ended)
        assert "Nothing was sent." in told(ended)
        sent = {
            path.relative_to(tmp_path / "dry").as_posix() for path in (tmp_path / "dry").rglob("*") if path.is_file()
        }
        assert sent == {
            "README.md",
            "store.json",
            "runs.parquet",
            "data/train-00000-of-00001.parquet",
            "splits/sex.csv",
            "splits/sex.json",
        }
        assert RIGHT in (tmp_path / "dry" / "README.md").read_text()
        assert hub.requests == []

    def test_sending(self, hub, model_folder, make_store, evaluation, tmp_path):
        shutil.copytree(model_folder, tmp_path / "model")
        words = (tmp_path / "model", "lab/sex", "--evaluation", evaluation, "--dataset", make_store().folder)
        ended = run(*words, "--public", "--license", "apache-2.0", token=LAB)
        assert ended.exit_code == 0, told(ended)
        assert ended.stdout.splitlines()[-1] == f"{hub.endpoint}/lab/sex"
        assert "Not sent: trainer_state.json, training_args.bin." in told(ended)
        assert not hub.repositories["models", "lab/sex"].is_private
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tablet")] == []

    def test_figures_of_other_weights_are_refused(self, model_folder, evaluation, tmp_path):
        results = json.loads(evaluation.read_text())
        told_apart = tmp_path / "results.json"
        words = (model_folder, "lab/sex", "--evaluation", told_apart, "--dry-run", tmp_path / "dry")
        told_apart.write_text(json.dumps(results | {"about": {"weights": "0123456789abcdef"}}))
        ended = run(*words, token=LAB)
        assert ended.exit_code == 2
        assert "these figures are of other weights than those in" in told(ended)
        own = saved_weights_checksum(model_folder)
        told_apart.write_text(json.dumps(results | {"about": {"weights": f"0123456789abcdef, {own}"}}))
        ended = run(*words, token=LAB)
        assert ended.exit_code == 0, told(ended)
        assert "does not say of which weights" not in told(ended)

    def test_what_it_was_trained_on_decides_whether_everybody_may_see_it(self, hub, model_folder):
        assert "--source-open" in told(run(model_folder, "lab/sex", "--public", token=LAB))
        assert run(model_folder, "lab/sex", "--public", "--source-open", token=LAB).exit_code == 0

    def test_an_export_says_that_people_keep_their_names_there(self, make_store, tmp_path):
        words = ["dataset", "export", str(make_store().folder), "--out", str(tmp_path / "export")]
        ended = CliRunner().invoke(app, words)
        assert ended.exit_code == 0, told(ended)
        assert "tablet-hf push gives people other names" in told(ended)
        assert f"sub-{SUBJECTS[0]}" in str(pq.read_table(tmp_path / "export" / "runs.parquet").to_pylist())

    def test_a_mark_is_not_taken_away(self, hub, make_store):
        ended = run(make_store(is_restricted=True).folder, "lab/hcp", "--source-open", token=LAB)
        assert "--source-open does not change that" in told(ended)


EXAMPLES = Path(__file__).parents[2] / "examples"
CLIENT = """
import json, runpy, sys, warnings
example, other = sys.argv[1:]
warnings.filterwarnings("ignore")
import torch
from huggingface_hub import HfApi
import tablet_hf
from transformers import AutoFeatureExtractor, AutoModelForSequenceClassification
from tablet_hf import TabletFeatureExtractor
from tablet_hf.datasets import StreamedWindows, TokenDataset
model = AutoModelForSequenceClassification.from_pretrained("lab/sex", revision="v1").eval()
extractor = AutoFeatureExtractor.from_pretrained("lab/sex")
torch.manual_seed(1)
logits = model(torch.randn(1, 4, 27, 3072)).logits.tolist()
autoencoder = TabletFeatureExtractor("lab/autoencoder")
autoencoder.slice_autoencoder
store = TokenDataset.load("lab/tokens")
streamed = list(StreamedWindows("lab/tokens", 99, is_training=False))
same = all(torch.equal(each["input_values"], store.window(each["run"])) for each in streamed)
import datasets
rows = datasets.load_dataset("lab/tokens", split="train", streaming=True)
num_rows = sum(1 for _ in rows)
sys.argv = ["load_from_hub.py", "lab/sex", "--dataset", "lab/tokens", "--revision", "v1"]
runpy.run_path(example, run_name="__main__")
import os
from tablet_hf.hub.loading import load_model
os.environ.pop("HF_TOKEN")
refused = []
for load in (TokenDataset.load, load_model):
    try:
        load("lab/hidden")
    except tablet_hf.InputError as error:
        refused.append(str(error))
from tablet_hf.hub.files import fetch
for token, load in ((other, fetch), ("hf_wrong", fetch), ("hf_wrong", lambda *_: TokenDataset.load("lab/hidden"))):
    os.environ["HF_TOKEN"] = token
    try:
        load("lab/gate", "config.json")
    except tablet_hf.InputError as error:
        refused.append(str(error))
print(json.dumps({"refused": refused, "logits": logits,
                  "signal": extractor.signal, "token_size": autoencoder.token_size, "same": same,
                  "windows": len(streamed), "rows": num_rows,
                  "config": model.config.target_name,
                  "sums": sorted(float(store.window(run.key).double().sum()) for run in store.runs)}))
"""


@pytest.mark.slow
def test_what_was_sent_comes_back_by_its_name(
    hub, model_folder, make_store, shipped_autoencoder, tmp_path, monkeypatch, capsys
):
    """Private repositories, from another process, through transformers, diffusers and datasets; and the examples."""
    store = make_store(is_restricted=True, dataset="HCP-YA", token_size=3072)
    with monkeypatch.context() as patch:
        patch.setenv("HF_TOKEN", LAB)
        patch.setattr(sys, "argv", ["push_checkpoint.py", str(model_folder), "lab/sex", "--tag", "v1"])
        runpy.run_path(str(EXAMPLES / "push_checkpoint.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "# sex" in said
    assert said.endswith(f"not sent: trainer_state.json, training_args.bin\n{hub.endpoint}/lab/sex\n")
    send(hub, shipped_autoencoder, "lab/autoencoder", tmp_path / "b")
    send(hub, store.folder, "lab/tokens", tmp_path / "c", sharing=Sharing(right_to_share=RIGHT))
    send(hub, model_folder, "lab/gate", tmp_path / "d", sharing=Sharing(False, True, False))
    for kind in ("model", "dataset"):
        HfApi(hub.endpoint, LAB).create_repo("lab/hidden", repo_type=kind, private=True)
    environment = os.environ | hub.environment(tmp_path / "home") | {"HF_TOKEN": LAB}
    command = [sys.executable, "-c", CLIENT, str(EXAMPLES / "load_from_hub.py"), OTHER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    *lines, last = done.stdout.splitlines()
    found = json.loads(last)
    torch.manual_seed(1)
    model = TabletForSequenceClassification.from_pretrained(model_folder).eval()
    torch.testing.assert_close(torch.tensor(found["logits"]), model(torch.randn(1, 4, 27, 3072)).logits)
    sums = sorted(float(store.window(run.key).double().sum()) for run in store.runs)
    assert found["sums"] == sums
    assert (found["windows"], found["rows"], found["same"]) == (6, 30, True)
    assert (found["signal"], found["token_size"], found["config"]) == ("intensity", 3072, "sex")
    *private, gated, wrong, wrong_of_dataset = found["refused"]
    assert gated.startswith("lab/gate: its owner wants to be asked; request access on its page")
    for sentence in (wrong, wrong_of_dataset):
        assert "the Hub does not know the access token that it was given; log in anew" in sentence
        assert "hf_wrong" not in sentence
    assert len(private) == 2
    assert all("log in with `hf auth login` if it is private or gated" in sentence for sentence in private)
    assert lines[0] == "lab/sex: sex, M"
    assert [line.split("/")[0] for line in lines[1:]] == ["HCP-YA"] * 6
    assert not [secret for secret in PLANTED if secret in done.stdout]


class TestTraining:
    def trainer(self, hub, make_store, folder, sharing=None, started_from="", **settings):
        from transformers import TrainingArguments

        from tablet_hf import TabletConfig
        from tablet_hf.datasets import TabletCollator, TrainingWindows
        from tablet_hf.hub.trainer import PublishingTrainer

        store = make_store(is_restricted=sharing is not None)
        sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
        made = {"autoencoder": "natural-f32c32", "signal": "intensity", "token_size": 96, "num_labels": 1}
        config = TabletConfig(**sizes, **made, intermediate_size=8, problem_type="regression", target_name="age")
        settings = {"hub_model_id": "lab/age", "push_to_hub": True, "save_strategy": "epoch"} | settings
        settings |= {"num_train_epochs": 2, "use_cpu": True, "report_to": [], "remove_unused_columns": False}
        arguments = TrainingArguments(str(folder), hub_token=LAB, hub_always_push=True, **settings)
        windows = TrainingWindows(store, 4, None, "age")
        model = TabletForSequenceClassification(config)
        model.name_or_path = started_from  # as from_pretrained has it
        return PublishingTrainer(model, arguments, TabletCollator("regression"), windows, sharing=sharing)

    def test_pushes_while_it_trains_send_model_extractor_and_card(self, hub, make_store, tmp_path):
        trainer = self.trainer(hub, make_store, tmp_path / "out")
        trainer.train()
        trainer.push_to_hub()
        repository = hub.repositories["models", "lab/age"]
        history = repository.history(repository.branches["main"])
        titles = [commit.title for commit in history]
        # The end of training changed nothing, and makes no commit.
        assert titles[:-1] == ["Training in progress, step 2", "Training in progress, step 1"]
        files = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "training_data.json"}
        assert all(set(commit.files) == files | {".gitattributes"} for commit in history[:-1])
        assert len({commit.files["model.safetensors"] for commit in history[:-1]}) == 2
        assert history[0].files["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
        card = history[0].files["README.md"].decode()
        assert "Not measured." in card
        assert "model-index" not in card
        assert "1. age: [ADHD-200]" in card
        assert "6 people, 6 runs and 30 frames, starting from new weights." in card
        (stage,) = TrainingData.read(tmp_path / "out")
        assert json.loads(history[0].files["training_data.json"]) == {"stages": [json.loads(json.dumps(asdict(stage)))]}
        assert repository.is_private
        assert not leaks_received(hub)
        assert not [body for body in hub.received if LAB.encode() in body]
        for path in (path for path in (tmp_path / "out").rglob("*") if path.is_file()):
            assert LAB.encode() not in path.read_bytes(), path
        assert not list((tmp_path / "out").glob(".push-*"))

    def test_a_hub_that_dies_does_not_stop_the_training(self, hub, make_store, tmp_path, quick):
        trainer = self.trainer(hub, make_store, tmp_path / "out")
        hub.break_at("PUT /large-files", 10)
        with pytest.warns(UserWarning, match="A push while training did not go through: lab/age: the connection"):
            trainer.train()
        hub.start()
        trainer.push_to_hub()
        assert "model.safetensors" in hub.files("lab/age")

    def test_what_its_first_weights_learnt_from_counts_too(self, hub, make_store, model_folder, tmp_path):
        """They may lie in a folder or on a Hub."""
        first = TrainingData("sex", ("UKB",), 3, 0, 3, 9, True)
        source = TestWhatItLearntFrom().model(model_folder, tmp_path / "first", first)
        send(hub, source, "lab/first", tmp_path / "sent", sharing=Sharing(False, False, right_to_share=RIGHT))
        for name in (str(source), "lab/first"):
            with pytest.raises(InputError, match="--i-have-the-right-to-share"):
                self.trainer(hub, make_store, tmp_path / "out", started_from=name)
            trainer = self.trainer(
                hub, make_store, tmp_path / "out", sharing=Sharing(right_to_share=RIGHT), started_from=name
            )
            trainer.save_model(str(tmp_path / "out"), _internal_call=True)
            before, this = TrainingData.read(tmp_path / "out")
            assert before == first
            assert this.started_from == ("lab/first" if name == "lab/first" else "first")

    def test_windows_of_other_data_are_told_as_such(self, hub, make_store, tmp_path):
        """Data sets of torch say nothing of whom they are of; those that are streamed do."""
        trainer = self.trainer(hub, make_store, tmp_path / "out")
        trainer.train_dataset, trainer._store, trainer._trainings = [{}], None, ()
        trainer.save_model(str(tmp_path / "out"), _internal_call=True)
        (this,) = TrainingData.read(tmp_path / "out")
        assert (this.studies, this.people, this.is_restricted) == ((UNNAMED,), 0, False)
        store = make_store(is_restricted=True, dataset="HCP-YA").folder
        prepare(store, tmp_path / "tokens", "lab/tokens", Sharing(right_to_share=RIGHT))
        trainer.train_dataset, trainer._trainings = StreamedWindows(tmp_path / "tokens", 4), ()
        trainer.save_model(str(tmp_path / "out"), _internal_call=True)
        (this,) = TrainingData.read(tmp_path / "out")
        assert (this.studies, this.people, this.is_restricted) == (("HCP-YA",), 6, True)

    def test_what_is_not_allowed_is_told_before_it_trains(self, hub, make_store, tmp_path):
        with pytest.raises(InputError, match="--i-have-the-right-to-share"):
            self.trainer(hub, make_store, tmp_path, sharing=Sharing())
        for strategy in ("checkpoint", "all_checkpoints"):
            with pytest.raises(InputError, match="checkpoints hold pickles"):
                self.trainer(hub, make_store, tmp_path, hub_strategy=strategy)
        with pytest.raises(InputError, match="hub_model_id"):
            self.trainer(hub, make_store, tmp_path, hub_model_id=None)
        assert hub.requests == []
