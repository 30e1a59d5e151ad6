"""Old photo restoration via deep latent space translation (Wan et al., 2020)."""
