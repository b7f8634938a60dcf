"""Where clips come from: the challenge's recordings, or a simulated factory."""
