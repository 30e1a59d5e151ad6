"""Many photos: which there are, whose turn they are, what became of each, and whether all is done.

No server is called here: the command line does that, as for a few photos. Standard library and
pikfix.photos alone, so that a million rows are planned in seconds.
"""
