"""
Check the folder of a finished run or an export, and put it on the Hub: card, code, plots and weights in one commit.

    python training/publish.py --folder runs/tweets --license apache-2.0 --language en --check_only true
    python training/publish.py --folder runs/tweets --license apache-2.0 --language en --repo_id me/tweets --tag v1

What is checked: that it loads where this package is not installed, that the card is complete and names licence and
data, that nothing is a pickle, that all classes have names, and that the code files are those of this version. A
new repository is private unless --private false. An upload that broke off goes on: repeat the command.
"""

import logging
import sys
from dataclasses import dataclass, field

from chinchilla_hf.publishing import (
    check_folder,
    check_login,
    complete_card,
    describe_data,
    halve_weights,
    publish,
    refresh_code,
)
from chinchilla_hf.recipes import one_line_errors, parse_options

logger = logging.getLogger("publish")


@dataclass
class PublishArguments:
    """What goes where."""

    folder: str = field(metadata={"help": "Folder of a finished run, or of an export."})
    repo_id: str | None = field(default=None, metadata={"help": "Name on the Hub, such as me/model."})
    check_only: bool = field(default=False, metadata={"help": "Check the folder, and upload nothing."})
    private: bool = field(default=True, metadata={"help": "Make a new repository private."})
    revision: str | None = field(default=None, metadata={"help": "A branch to put it on. Default: main."})
    tag: str | None = field(default=None, metadata={"help": "A tag for what was uploaded."})
    license: str | None = field(default=None, metadata={"help": "Licence for the card, such as apache-2.0."})
    license_name: str | None = field(default=None, metadata={"help": "Its name, of the licence other."})
    language: list[str] | None = field(default=None, metadata={"help": "Languages for the card, such as en."})
    data_description: str | None = field(
        default=None, metadata={"help": "For record and card: what the data are, with their sources and licences."}
    )
    refresh_code: bool = field(
        default=False, metadata={"help": "Replace code files of another version of this package by those of this one."}
    )
    half_weights: bool = field(
        default=False, metadata={"help": "Store weights as float16, in half the bytes; they are loaded as float32."}
    )
    message: str = field(default="Upload with chinchilla_hf", metadata={"help": "Of the commit."})

    def __post_init__(self) -> None:
        if self.repo_id is None and not self.check_only:
            raise ValueError("--repo_id is not given: name the repository, or add --check_only true")


def main() -> None:
    (options,) = parse_options((PublishArguments,), __doc__)
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line for every request
    with one_line_errors():
        if not options.check_only:
            check_login(options.repo_id)
        if options.data_description is not None:
            describe_data(options.folder, options.data_description)
        complete_card(
            options.folder, license=options.license, license_name=options.license_name, language=options.language
        )
        if options.refresh_code:
            for name in refresh_code(options.folder):
                logger.info("%s is now that of this version", name)
        if options.half_weights:
            logger.info("the weights take %.1f MB", halve_weights(options.folder) / 1e6)
        problems = check_folder(options.folder)
        if problems:
            listed = "\n".join(f"- {problem}" for problem in problems)
            sys.exit(f"error: {options.folder} is not ready for the Hub:\n{listed}")
        if options.check_only:
            print(f"{options.folder} is ready for the Hub")
            return
        published = publish(
            options.folder,
            options.repo_id,
            private=options.private,
            revision=options.revision,
            tag=options.tag,
            message=options.message,
        )
    print(f"{published.files} files are at {published.url}, commit {published.commit}")


if __name__ == "__main__":
    main()
