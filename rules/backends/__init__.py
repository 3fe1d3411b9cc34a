"""One file per engine family. `rules/backend.py` says which names each of them offers."""
