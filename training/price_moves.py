"""
Turn a table of daily prices into strings of symbols with labels, for training/classify.py.

    python training/price_moves.py --prices sp500.csv --output_dir runs/sp500
    python training/classify.py training/recipes/price_moves.yaml --dataset runs/sp500

Every day's move becomes a letter, by bins that hold as many moves of the training part each. A string is the moves of
some weeks; the labels are the volatility of the days that follow, a number, and whether the price is then up or down.
The parts follow each other in time: the test part is the latest.
"""

from dataclasses import dataclass, field

from chinchilla_hf.data.price_moves import price_moves, read_prices, write_price_moves
from chinchilla_hf.recipes import one_line_errors, parse_options, resolve_location


@dataclass
class Options:
    prices: str = field(
        metadata={"help": "CSV file with a row a day, the oldest first; also package://NAME/PATH in a PyPI package."}
    )
    output_dir: str = field(metadata={"help": "Folder of train.csv, validation.csv and test.csv."})
    price_column: str | None = field(
        default=None, metadata={"help": "Column of the prices. Default: Adj Close, Close, or the only one."}
    )
    window: int = field(default=60, metadata={"help": "Moves in a string."})
    horizon: int = field(default=5, metadata={"help": "Days that a label looks ahead."})
    num_symbols: int = field(default=9, metadata={"help": "Letters, from 2 to 26."})
    validation_share: float = field(default=0.15, metadata={"help": "Share of the days to validate on."})
    test_share: float = field(default=0.15, metadata={"help": "Share of the days to test on, the latest."})


def main() -> None:
    (options,) = parse_options((Options,), __doc__)
    with one_line_errors():
        prices = read_prices(resolve_location(options.prices), options.price_column)
        names = ("window", "horizon", "num_symbols", "validation_share", "test_share")
        tables = price_moves(prices, **{name: getattr(options, name) for name in names})
        write_price_moves(tables, options.output_dir)
    for name, table in tables.items():
        up = (table["direction"] == "up").mean()
        print(f"{name}: {len(table)} strings, price up after {up:.1%} of them")
    print(f"python training/classify.py training/recipes/price_moves.yaml --dataset {options.output_dir}")


if __name__ == "__main__":
    main()
