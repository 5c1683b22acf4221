"""
Make pairs of sentences, for training/translate.py, of what translators of free software wrote.

    python training/parallel_texts.py --descriptions Translation-en Translation-de --output_dir runs/software-en-de
    python training/translate.py training/recipes/software_en_de.yaml --dataset runs/software-en-de

It reads local files; what a Debian system needs to have them is in training/README.md. Passages are aligned by what the
files say of them (checksums, keys, names of elements), sentences where both sides have as many. Validation and test
pairs are of documents that are not trained on.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from chinchilla_hf.data.parallel_texts import (
    Passage,
    clean_pairs,
    hold_out,
    read_catalogue,
    read_descriptions,
    read_manual,
    write_pairs,
)
from chinchilla_hf.recipes import one_line_errors, parse_options


@dataclass
class Options:
    output_dir: str = field(metadata={"help": "Folder of train.en, train.de, validation.en, ..."})
    descriptions: list[str] = field(
        default_factory=list,
        metadata={"help": "Debian's Translation-en, then Translation-de; may be several such pairs."},
    )
    catalogues: list[str] = field(
        default_factory=list, metadata={"help": "Compiled gettext catalogues (.mo), or folders of such."}
    )
    manuals: list[str] = field(
        default_factory=list,
        metadata={"help": "Folders of pages in the source language, each with that of the target's."},
    )
    source_language: str = field(default="en", metadata={"help": "Code of the language to translate from."})
    target_language: str = field(default="de", metadata={"help": "Code of the language to translate to."})
    held_out: int = field(default=1000, metadata={"help": "Pairs to validate on, and to test on."})
    max_characters: int = field(default=400, metadata={"help": "Length of a side, at most."})

    def __post_init__(self) -> None:
        for name in ("descriptions", "manuals"):
            if len(getattr(self, name)) % 2:
                raise ValueError(f"{name} are {len(getattr(self, name))}, but must be two at a time: sources, targets")


def passages(options: Options) -> Iterator[Passage]:
    for source, target in zip(options.descriptions[::2], options.descriptions[1::2], strict=True):
        yield from read_descriptions(source, target)
    for source, target in zip(options.manuals[::2], options.manuals[1::2], strict=True):
        yield from read_manual(source, target, "manuals")
    for name in options.catalogues:
        path = Path(name)
        files = sorted(path.rglob("*.mo")) if path.is_dir() else [path]
        yield from chain.from_iterable(read_catalogue(file) for file in files)


def main() -> None:
    (options,) = parse_options((Options,), __doc__)
    with one_line_errors():
        languages = options.source_language, options.target_language
        pairs, dropped = clean_pairs(passages(options), *languages, options.max_characters)
        splits, not_held_out = hold_out(pairs, options.held_out)
        write_pairs(splits, options.output_dir, *languages)
    for split, pairs in splits.items():
        origins = Counter(pair.origin for pair in pairs)
        characters = sum(len(pair.source) + len(pair.target) for pair in pairs)
        kinds = ", ".join(f"{origin} {count:,}" for origin, count in origins.most_common())
        print(f"{split}: {len(pairs):,} pairs, {characters:,} characters ({kinds})")
    print(
        "left out, because they "
        + ", ".join(f"{count:,} {reason}" for reason, count in (dropped + not_held_out).most_common())
    )
    print(f"python training/translate.py training/recipes/software_en_de.yaml --dataset {options.output_dir}")


if __name__ == "__main__":
    main()
