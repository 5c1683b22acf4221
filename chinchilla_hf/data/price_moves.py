"""
Prices as text: every day's move becomes a symbol, the moves of the last weeks a string, and what comes after them a
label. For `training/classify.py` with a tokenizer of symbols.

Nothing of a label's time is in its string, the bins of the symbols are those of the training part, and the parts follow
each other in time, with a gap as long as a label looks ahead: a score on the test part is that of a forecast.
"""

import string
from pathlib import Path

import numpy as np
import pandas as pd  # type: ignore[import-untyped]

SYMBOLS = string.ascii_lowercase


def read_prices(path: str | Path, price_column: str | None = None) -> np.ndarray:
    """
    The prices in a CSV file, `(days,)`, as they stand in it: the oldest first. Days without a price are left out.

    Args:
        path: of the file, also compressed.
        price_column: the column. Default: `Adj Close`, `Close`, or the only other one than a date.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such column, a price that is no number or not above 0, or dates that do not go up.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path} (the current folder is {Path.cwd()})")
    table = pd.read_csv(path, na_values=["."])  # a dot is how FRED has it
    names = {str(name).strip().lower(): name for name in table.columns}
    date = next((names[name] for name in ("date", "day", "time", "timestamp") if name in names), None)
    if price_column is None:
        others = [name for name in table.columns if name != date]
        known = [names[name] for name in ("adj close", "close", "price") if name in names]
        if not known and len(others) != 1:
            raise ValueError(f"{path} has the columns {', '.join(map(str, others))}: name one by --price_column")
        price_column = (known or others)[0]
    if price_column not in table:
        raise ValueError(f"{path} has no column {price_column!r}, but {', '.join(map(str, table.columns))}")
    if date is not None:
        days = pd.to_datetime(table[date], format="mixed")
        if not days.is_monotonic_increasing:
            row = int(np.flatnonzero(np.diff(days) < np.timedelta64(0))[0]) + 1
            raise ValueError(f"{path}: {table[date][row]} comes after {table[date][row - 1]}: sort it, oldest first")
    table = table[table[price_column].notna()]
    prices = pd.to_numeric(table[price_column], errors="coerce").to_numpy(np.float64)
    wrong = ~(prices > 0)
    if wrong.any():
        value = table[price_column].iloc[int(wrong.argmax())]
        raise ValueError(f"{path} has the price {value} in {price_column!r}, but its moves need prices above 0")
    return prices


def price_moves(
    prices: np.ndarray,
    window: int = 60,
    horizon: int = 5,
    num_symbols: int = 9,
    validation_share: float = 0.15,
    test_share: float = 0.15,
) -> dict[str, pd.DataFrame]:
    """
    Tables of strings and labels, one a part: `train`, `validation`, `test`, in the order of time.

    Columns: `moves`, a string of `window` symbols, `a` for the steepest falls; `volatility`, the logarithm of the root
    mean square of the next `horizon` logarithmic returns, in percent; `direction`, whether the price is then `up` or
    `down` (or the same).

    Args:
        prices: `(days,)`, the oldest first.
        window: moves in a string.
        horizon: days that a label looks ahead.
        num_symbols: bins of a move, each with as many moves of the training part as the others.
        validation_share, test_share: of the days, at the end.

    Raises:
        ValueError: an argument out of range, too few prices, or prices that do not move.
    """
    if window < 1 or horizon < 1:
        raise ValueError(f"window is {window} and horizon {horizon}, but both must be 1 or more")
    if not 2 <= num_symbols <= len(SYMBOLS):
        raise ValueError(f"num_symbols is {num_symbols}, but must be from 2 to {len(SYMBOLS)}")
    if not (0 < validation_share < 1 and 0 < test_share < 1 and validation_share + test_share < 1):
        raise ValueError(
            f"validation_share is {validation_share} and test_share {test_share}, but both must be above 0, and below "
            "1 together"
        )
    returns = 100 * np.diff(np.log(prices))
    count = len(returns)
    train_end, validation_end = round(count * (1 - validation_share - test_share)), round(count * (1 - test_share))
    bounds = {"train": (0, train_end), "validation": (train_end, validation_end), "test": (validation_end, count)}
    needed = window + 2 * horizon
    for name, (begin, end) in bounds.items():
        if end - begin < (needed if name == "train" else horizon + 1):
            raise ValueError(
                f"{len(prices)} prices leave {end - begin} moves for {name}, too few for strings of {window} moves and "
                f"labels {horizon} days ahead: give more prices, or lower window"
            )
    edges = np.quantile(returns[:train_end], np.arange(1, num_symbols) / num_symbols)
    if len(np.unique(edges)) < len(edges):
        raise ValueError(
            f"the moves do not fill {num_symbols} bins, because too many are the same: lower num_symbols, or give "
            "prices that move"
        )
    symbols = np.array(list(SYMBOLS))[np.searchsorted(edges, returns, side="right")]
    tables = {}
    for name, (begin, end) in bounds.items():
        rows = []
        # `day` is the first one that a label looks at; its string may begin in the part before.
        for day in range(max(begin, window), end - horizon + 1):
            ahead = returns[day : day + horizon]
            size = float(np.log(max(np.sqrt((ahead**2).mean()), 1e-3)))
            rows.append(("".join(symbols[day - window : day]), size, "up" if ahead.sum() > 0 else "down"))
        tables[name] = pd.DataFrame(rows, columns=["moves", "volatility", "direction"])
    return tables


def write_price_moves(tables: dict[str, pd.DataFrame], folder: str | Path) -> None:
    """Each table as `<part>.csv` in `folder`, which `training/classify.py` takes as `--dataset`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        temporary = folder / f".{name}.csv.tmp"
        table.to_csv(temporary, index=False)
        temporary.replace(folder / f"{name}.csv")
