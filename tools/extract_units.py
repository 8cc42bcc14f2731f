"""Recordings -> units: HuBERT and k-means over any number of files, by Apache Beam.

    python -m tools.extract_units --input=recordings --output=units
    python -m tools.extract_units --input=manifest.tsv --hubert=mhubert --output=units

--input is a folder (every recording under it: wav, flac, mp3, ogg, opus, m4a, aiff, ...; hidden and
other files are skipped and counted by suffix), or a manifest: JSONL, TSV or CSV with a `path` per
row, relative to the manifest, and other fields to keep (`text`, `speaker`), or fairseq's TSV.
OUTPUT gets

    units-00000-of-00004.jsonl    the rows, with `units` (repeats removed) and `durations` (in
                                  frames of 20 ms), in the order of the input
    rejects-00000-of-00004.jsonl  rows whose recording can't be encoded, with the `reason`
    summary.tsv, histogram.png    lengths of the recordings, in frames and in units
    manifest.jsonl, plan.json     the run's rows and settings

The same command resumes a killed run: finished shards are kept, and no file is half-written. Units
and their order do not depend on the number of workers. A worker uses all cores of its machine, so
run one per machine. All other flags are Beam's; --runner runs the work on Dataflow, Spark or Flink.
Recordings and manifests may be on any file system that Beam supports; the output and the encoder
are local or on gs://.
"""

from collections.abc import Sequence

from speechgpt_jax import arguments
from speechgpt_jax.arguments import nonempty, positive_int
from speechgpt_jax.corpus.extract_units import extract_units
from speechgpt_jax.shipped import SHIPPED_HUBERT


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments.Parser(__doc__)
    parser.add_argument("--input", type=nonempty, required=True, help="folder, or manifest")
    parser.add_argument(
        "--hubert",
        type=nonempty,
        default=SHIPPED_HUBERT,
        help="folder of HuBERT and centroids; default: the shipped one",
    )
    parser.add_argument("--output", type=arguments.output_folder, required=True, help="folder")
    parser.add_argument("--shard_size", type=positive_int, default=250, help="recordings per shard")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="type of the factors of matrix products; bfloat16 is faster where the hardware has it,"
        " and changes at most about one unit in a hundred",
    )
    parser.add_argument(
        "--batch_seconds", type=positive_int, default=1800, help="seconds encoded together"
    )
    args, beam_arguments = parser.parse_known_args(argv)
    extract_units(
        args.input,
        args.output,
        args.hubert,
        shard_size=args.shard_size,
        dtype=args.dtype,
        batch_seconds=args.batch_seconds,
        beam_arguments=beam_arguments,
    )


if __name__ == "__main__":
    arguments.run(main)
