"""Load a model by its name on the Hub, and predict from a scan or from a token dataset.

    python examples/load_from_hub.py lab/sex scan.nii.gz
    python examples/load_from_hub.py lab/sex --dataset lab/tokens        # streamed
    python examples/load_from_hub.py lab/sex --dataset lab/tokens --revision v1

Private repositories need a login (`hf auth login`). For predictions in one call, see the pipelines in the README.
"""

import argparse

import torch
from transformers import AutoFeatureExtractor, AutoModelForSequenceClassification

import tablet_hf  # noqa: F401  (registers TABLeT with the Auto classes)
from tablet_hf.datasets import StreamedWindows, TabletCollator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Hub id or folder")
    parser.add_argument("scans", nargs="*", help="4D NIfTI files in MNI152 space")
    parser.add_argument("--dataset", help="Hub id or folder of a token dataset")
    parser.add_argument("--revision", help="branch, tag or commit of the model")
    arguments = parser.parse_args()

    model = AutoModelForSequenceClassification.from_pretrained(arguments.model, revision=arguments.revision).eval()
    print(f"{arguments.model}: {model.config.target_name}, {', '.join(model.config.id2label.values())}")
    num_frames = model.config.num_frames or 256
    for scan in arguments.scans:
        extractor = AutoFeatureExtractor.from_pretrained(arguments.model, revision=arguments.revision)
        batch = extractor(scan, num_frames=num_frames, padding=True)
        with torch.no_grad():
            print(scan, model(**batch).logits.tolist())
    if arguments.dataset:
        collate = TabletCollator()
        for window in StreamedWindows(arguments.dataset, num_frames, is_training=False):
            batch = collate([window])
            with torch.no_grad():
                print(window["run"], model(**batch).logits.tolist())


if __name__ == "__main__":
    main()
