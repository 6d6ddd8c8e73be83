"""Every network of densekit beside its peers: same input, weights, threads and run. `python -m tools.bench --help`"""
