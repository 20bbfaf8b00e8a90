"""The competitors: each in its own module, each giving a `benchmarks.measure.Sample` of one run."""
