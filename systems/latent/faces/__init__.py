"""Faces of a photo, one by one: found, aligned, drawn anew, and put back."""
