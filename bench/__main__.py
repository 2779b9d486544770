"""Print the benchmarks as Markdown: `python -m bench [--write] [--nist]`."""

import argparse

from bench import (
    accuracy,
    batch,
    curve_fit,
    face,
    first,
    joint,
    joint_stream,
    layer,
    likelihoods,
    report,
    rows,
    single,
    size,
    stream,
)

RESULTS = report.ROOT / "bench" / "RESULTS.md"
NOTES = report.ROOT / "bench" / "NOTES.md"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"also write {RESULTS}")
    parser.add_argument(
        "--nist", action="store_true", help="only print the digits on NIST's problems"
    )
    arguments = parser.parse_args()
    if arguments.nist:
        print(accuracy.report(), accuracy.problems(), sep="\n\n")
        return
    parts = []
    for section in (
        report.header,
        single.report,
        curve_fit.report,
        first.report,
        batch.report,
        rows.report,
        stream.report,
        joint.report,
        joint_stream.report,
        size.report,
        likelihoods.report,
        layer.report,
        face.report,
        accuracy.report,
        accuracy.problems,
    ):
        parts.append(section())
        print(parts[-1], end="\n\n", flush=True)
    parts.append(NOTES.read_text().strip())
    if arguments.write:
        RESULTS.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
