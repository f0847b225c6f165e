"""What the client costs, as ratios: `python -m benchmarks`. Timings differ from machine to machine; ratios less so."""
