"""Draw the figures in the documents from published records, or check that the two agree.

    python -m scripts.figures [--write] [DOCUMENT...]

Without `--write` every figure that differs from its record is named, and the exit code is 1; the
tests and CI run that. Three kinds of marks, both invisible in rendered Markdown:

    Runs in <!--= h100/videos fast video -->14.4 s<!--/--> on an H100.

    <!-- figures
    from: h100/videos
    columns: {video: video, peak memory: peak}
    rows: [fast, bf16]
    -->
    ... the table, written by this script ...
    <!-- /figures -->

    <!-- figures
    command: qbench pick --records results/published/h100/videos --vram 24GB
    -->
    ... the command and what it prints ...
    <!-- /figures -->

An expression names a folder below results/published, a recipe, and a figure (`FIGURES` below). It
may narrow the records down by a field of the recipe (`measure.memory_limit_gib=12`), and divide,
add or subtract figures: `h200/peers diffusers-torchao step / fast step`, where what comes later
takes over the folder and, with one word, the recipe; `0.7GiB` is a constant.
`h200/peers-caches peers/sea-20 psnr against peers/steps-20` is the difference of a metric from
another recipe's, paired by video, with its interval, in bold where that leaves out zero. Of a JSON
file it names the path, a dotted path inside, and the form:
`h100/text_encoder.json rows[scheme=int8].peak.allocated_bytes GiB`.

In a document that says `<!-- figures: all -->`, a measurement (a number with a unit) outside of
marks is a fault too, unless `<!--: why -->0.7 GiB<!--/-->` says where it comes from.
"""
