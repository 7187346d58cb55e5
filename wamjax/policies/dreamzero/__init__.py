"""DreamZero (arXiv 2602.15922): a Wan video transformer that denoises future frames and actions together."""
