"""Old photo restoration via deep latent space translation (Wan et al., 2020).

The declaration is in `system`: importing this package alone, as for faces, loads no torch.
"""
