"""
Seconds that `import chinchilla_hf` takes beyond `import transformers`, in fresh processes, in turns.

    python tests/benchmarks/import_time.py
"""

import subprocess
import sys
from statistics import median

ROUNDS = 15
SCRIPT = "import time; start = time.perf_counter(); {imports}; print(time.perf_counter() - start)"


def seconds(imports: str) -> float:
    command = [sys.executable, "-c", SCRIPT.format(imports=imports)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    differences = []
    for _ in range(ROUNDS):
        plain = seconds("import transformers")
        differences.append(seconds("import transformers, chinchilla_hf") - plain)
    print(f"import chinchilla_hf: {median(differences):.3f} s beyond import transformers (median of {ROUNDS})")


if __name__ == "__main__":
    main()
