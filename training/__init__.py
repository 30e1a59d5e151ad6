"""Training: data, losses, the loop, and the synthesis of old photos."""
