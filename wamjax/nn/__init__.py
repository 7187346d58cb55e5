"""Building blocks shared by every network: token plans, attention, norms, linear maps, the joint stack."""
