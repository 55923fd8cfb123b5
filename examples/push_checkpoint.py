"""Publish a fine-tuned model: look at what would be sent, then send it.

    python examples/push_checkpoint.py my-model lab/sex --dataset STORE --evaluation evaluated/results.json

`tablet-hf push` does the same in one command, and tokens and autoencoders too. Log in first (`hf auth login`).
"""

import argparse
import tempfile
from pathlib import Path

from tablet_hf.hub.publishing import Sharing, prepare, publish


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder that save_pretrained wrote")
    parser.add_argument("repo", help="owner/name")
    parser.add_argument("--dataset", help="store that it was trained on")
    parser.add_argument("--evaluation", type=Path, help="results.json of tablet-hf evaluate")
    parser.add_argument("--public", action="store_true")
    parser.add_argument("--right-to-share", help="of restricted data: what gives you the right, in a sentence")
    parser.add_argument("--tag")
    arguments = parser.parse_args()

    sharing = Sharing(is_private=not arguments.public, right_to_share=arguments.right_to_share)
    with tempfile.TemporaryDirectory() as scratch:
        prepared = prepare(
            arguments.model,
            Path(scratch) / "to-be-sent",
            arguments.repo,
            sharing,
            dataset=arguments.dataset,
            evaluation=arguments.evaluation,
        )
        print((prepared.folder / "README.md").read_text(encoding="utf-8"))
        for name, size in prepared.files.items():
            print(f"{size:>14,}  {name}")
        print("not sent:", ", ".join(prepared.left_behind) or "nothing")
        published = publish(prepared, arguments.repo, tag=arguments.tag)
    print(published.repo_url)


if __name__ == "__main__":
    main()
