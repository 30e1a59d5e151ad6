"""Systems, one per paper: what each is made of, for all that exports, serves or trains it."""
