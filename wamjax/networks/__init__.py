"""Networks: one folder or file per architecture; they know tokens and pixels, not policies or datasets."""
