"""The model repository that Triton reads; a package only so that it can be found when installed."""
