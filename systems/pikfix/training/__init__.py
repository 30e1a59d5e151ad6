"""Training of Pik-Fix: its options, samples, stages, and how a run is put together."""
