"""Run the talk's three systems from beginning to end, print their tables beside the talk's, write a report.

`python -m examples.reproduce --out report` is what `make reproduce` calls.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

from examples.common import Section, add_threads, run_command, use_threads
from examples.report import write_report

TASKS = ("galaxy_bars", "stellar_spectra", "particle_picking")
INTRO = (
    "Three systems of the talk «Applications of Deep Learning in Astronomy and Biology» (A. Kembhavi, IUCAA), rebuilt "
    "with minidl: trained and evaluated in this one run. Figures of the talk stand beside ours where it printed them; "
    "data made by a simulator are called simulated and say nothing about real skies or microscopes."
)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, run the tasks, print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder of the report (default: report)")
    parser.add_argument("--seed", type=int, default=0, help="seed of data, weights and order (default: 0)")
    add_threads(parser)
    parser.add_argument("--only", choices=TASKS, nargs="+", default=TASKS, help="run only these")
    options = parser.parse_args(argv)
    use_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)

    start = time.perf_counter()
    sections: list[Section] = []
    for number, name in enumerate(options.only, 1):
        print(f"\n[{number}/{len(options.only)}] {name}", flush=True)
        task = importlib.import_module(f"examples.{name}.reproduce")
        began = time.perf_counter()
        section = task.reproduce(options.out / name, seed=options.seed)
        section.seconds = time.perf_counter() - began
        sections.append(section)
        print(f"\n{section.title} ({section.data}), {section.seconds:.0f} s")
        for table in section.tables:
            print(f"\n{table.text()}")
    page = options.out / "index.html"
    write_report(page, "minidl: the three systems of the talk", INTRO, sections)
    print(f"\nwritten: {page} ({time.perf_counter() - start:.0f} s in all)")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
