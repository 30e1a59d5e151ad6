"""What networks of several systems are built from, and how they measure pictures."""
