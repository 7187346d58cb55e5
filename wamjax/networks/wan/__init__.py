"""The Wan family (arXiv 2503.20314): diffusion transformers and video autoencoders."""
